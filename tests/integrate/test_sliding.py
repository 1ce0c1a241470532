"""Pairs that stay on their kink (T4.5): the engine's secant slopes against the exact sliding solution."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import nn

import equipoise as eq
import reference
from helpers.images import needs_images
from helpers.sampling import sampled

ANGLE = math.radians(60)
X = torch.tensor([[1.0, 0.0], [math.cos(ANGLE), math.sin(ANGLE)]], dtype=torch.float64)
Y = torch.tensor([-1.0, 1.0], dtype=torch.float64)
NORMALS = torch.tensor([[0.0, 1.0], [math.sin(ANGLE), -math.cos(ANGLE)]], dtype=torch.float64)  # to each example
KINKS = {"relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.2), "absolute": lambda: nn.LeakyReLU(-1.0)}


class Pooled(nn.Module):
    """`v max(w_a·x, w_b·x)`."""

    def __init__(self):
        super().__init__()
        self.pair = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        self.pool = nn.MaxPool1d(2)
        self.out = nn.Linear(1, 1, bias=False, dtype=torch.float64)

    def forward(self, x):
        return self.out(self.pool(self.pair(x)[:, None])[:, 0])


@dataclass(frozen=True)
class Slopes:
    """Every slope, by step."""

    seen: list = field(default_factory=list)
    name: ClassVar[str] = "slopes"

    def init(self, scene):
        return {}

    def observe(self, scene, memory, snapshot):
        self.seen.append([slope.clone() for slope in snapshot.slopes])
        return memory, []


def two_neurons(kink="relu", inward=(0.5, 0.7), outward=(0.6, 0.4), off=0.0):
    """Each neuron has one example on its kink, which the other example pulls back: 0 < α < 1 by design.

    The first one's example starts `off` above the kink.
    """
    model = nn.Sequential(nn.Linear(2, 2, bias=False), KINKS[kink](), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(NORMALS * torch.tensor(inward).double()[:, None] + off * torch.tensor([[1.0, 0], [0, 0]]))
        model[2].weight.copy_(torch.tensor([[outward[0], -outward[1]]]))
    return model


def flat(parameters):
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def grown(start, growth):
    return lambda w: float(0.5 * torch.log(w.square().sum() / start.square().sum()) - growth)


def margins(w, slopes, sliding=(0, 1)):
    """Of `two_neurons`, where both neurons are on for what they do not slide on."""
    z = X @ w[:4].view(2, 2).T
    alpha = torch.ones(2, dtype=w.dtype)
    for pair, slope in zip(sliding, slopes, strict=True):
        alpha = alpha * (1 - torch.eye(2, dtype=w.dtype)[pair]) + slope * torch.eye(2, dtype=w.dtype)[pair]
    return Y * ((z * (1 - torch.eye(2, dtype=w.dtype) + torch.diag(alpha))) @ w[4:])


def surfaces(w):
    return (X @ w[:4].view(2, 2).T).diagonal()


def errors(model, exact, growth, sizes, observe=()):
    found = []
    for size in sizes:
        stepper = eq.steppers.EntropicMidpoint(step_size=size, rtol=1.0)
        run = eq.flow(model, (X, Y), until=eq.Growth(growth), stepper=stepper, observe=[eq.Drift(), *observe])
        table = run.table()
        assert run.status == "reached"
        assert table[table.quantity == "relative_drift"].value.max() < 1e-15
        end = flat(run.final.values())
        found.append(float((end - exact).norm() / exact.norm()))
    return found


def slope(errors):
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


@pytest.mark.parametrize("kink", sampled(KINKS, ["leaky"]))
def test_slides_are_followed_to_second_order(kink):
    model = two_neurons(kink, inward=(0.4, 0.9), outward=(0.8, 0.3))
    start = flat(model.parameters())
    exact, slopes = reference.slid(margins, surfaces, start, grown(start, 0.2))
    seen = Slopes()
    found = errors(model, exact, 0.2, (0.1, 0.05, 0.025), [seen])
    assert 1.7 < slope(found) < 2.3, found
    assert found[-1] < 3e-6
    last = seen.seen[-1][0]
    assert torch.equal(last[[0, 1], [1, 0]], torch.ones(2).double())
    assert torch.allclose(last.diagonal(), slopes, rtol=0, atol=1e-3)
    assert float((slopes[0] - slopes[1]).abs()) > 0.01  # or a half would do for both


def test_the_way_onto_a_kink_costs_no_order():
    model = two_neurons(off=0.1)
    start = flat(model.parameters())
    arrival, _ = reference.slid(
        lambda w, slopes: margins(w, slopes, (1,)), lambda w: surfaces(w)[1:], start, lambda w: -float(surfaces(w)[0])
    )
    assert 0.2 < grown(start, 0.0)(arrival) < 0.25
    exact, _ = reference.slid(margins, surfaces, arrival, grown(start, 0.6))
    found = errors(model, exact, 0.6, (0.1, 0.05, 0.025, 0.0125))
    assert slope(found) > 1.5, found


def test_ties_of_a_maximum_are_followed_to_second_order():
    model = Pooled()
    with torch.no_grad():
        model.pair.weight.copy_(torch.tensor([[-0.4, 1.3], [-0.4, 0.8]]))
        model.out.weight.fill_(0.6)

    def margins(w, slopes):
        z = X @ w[:4].view(2, 2).T
        return Y * w[4] * torch.stack([slopes[0] * z[0, 0] + (1 - slopes[0]) * z[0, 1], z[1, 0]])

    def tie(w):
        z = X @ w[:4].view(2, 2).T
        return z[:1, 0] - z[:1, 1]

    start = flat(model.parameters())
    exact, slopes = reference.slid(margins, tie, start, grown(start, 0.2))
    found = errors(model, exact, 0.2, (0.1, 0.05))
    assert 0.55 < float(slopes) < 0.95
    assert 1.7 < slope(found) < 2.3, found
    run = eq.flow(model, (X, Y), until=eq.Growth(0.2))
    (tied,) = run.slides().to_dict("records")
    assert (tied["example"], tied["neuron"], tied["from_growth"], tied["ended"]) == (0, 0, 0.0, False)
    assert tied["layer"].startswith("max_pool1d")


def test_a_slide_goes_on_to_any_depth():
    """Both neurons alike: `α = cos θ` for ever, and `u² - v²` is constant, so that the growth tells the weights."""
    model = two_neurons(inward=(0.5, 0.5), outward=(0.4, 0.4))
    run = eq.flow(model, (X, Y), until=eq.LogLoss(-1e6), observe=[eq.Activity(), eq.Drift()])
    half = math.exp(2 * run.growth) * (0.5**2 + 0.4**2)
    inward, outward = (math.sqrt((half + sign * (0.5**2 - 0.4**2)) / 2) for sign in (1, -1))
    exact = torch.cat([inward * NORMALS.flatten(), outward * torch.tensor([1.0, -1.0]).double()])
    assert run.status == "reached"
    assert float((flat(run.final.values()) - exact).norm() / exact.norm()) < 1e-7
    assert run.last("activity", "sliding_pairs", "0.weight") == 2
    assert run.table().query("quantity == 'relative_drift'").value.max() < 1e-15


def test_every_slide_is_listed_with_its_start_and_its_end(tmp_path):
    """The first example reaches the kink of the first neuron on the way; the second is on its own from the start."""
    model = two_neurons(off=0.1)
    stepper = eq.steppers.EntropicMidpoint(step_size=0.0125, rtol=1.0)
    run = eq.flow(model, (X, Y), until=eq.Growth(0.6), stepper=stepper, out=tmp_path / "run")
    slides = run.slides().set_index(["example", "neuron"])
    assert set(slides.index) == {(0, 0), (1, 1)}
    assert slides.from_growth[0, 0] == pytest.approx(0.22428, abs=0.0125)  # as the exact solution arrives
    assert slides.from_growth[1, 1] == 0
    assert slides.to_growth.tolist() == pytest.approx([0.6, 0.6])
    assert not slides.ended.any()
    assert (slides.growth == slides.to_growth - slides.from_growth).all()
    assert (slides.steps == slides.to_step - slides.from_step).all()
    assert set(slides.layer) == {"0.weight"}
    assert run.summary()["slides"] == {"pairs": 2, "longest_growth": run.growth}
    again = eq.Run.load(tmp_path / "run", model=model, data=(X, Y))
    assert again.slides().equals(run.slides())


def test_slides_name_examples_by_their_positions_in_the_data(tmp_path):
    """Beside examples of weight zero, which are off, and slide nowhere."""
    data = torch.cat([X[:1], X, X[1:]]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    options = {"until": eq.Steps(6), "observe": [eq.Activity()], "example_weights": [0, 1, 1, 0]}
    run = eq.flow(two_neurons(), data, out=tmp_path / "run", **options)
    assert sorted(run.slides()[["example", "neuron"]].values.tolist()) == [[1, 0], [2, 1]]
    again = eq.Run.load(tmp_path / "run", model=two_neurons(), data=data)
    assert again.slides().equals(run.slides())


def pair_drift(run, below, above, start):
    """`|ΔC_uv|/‖w‖²` of `C = W Wᵀ - W₊ᵀ W₊` from a saved point to the end."""
    conserved = [w[below] @ w[below].T - w[above].T @ w[above] for w in (run.saved[start], run.final)]
    return (conserved[1] - conserved[0]).abs() / sum(float(w.square().sum()) for w in run.final.values())


@needs_images
def test_vertex_and_pair_laws_of_handwritten_digits_while_pairs_slide():
    """T2: a pair of neurons keeps its law while their slopes agree on every example; others need not, and do not."""
    data, seen = eq.data.load("mnist", (0, 1), n=200), Slopes()
    run = eq.flow(
        eq.networks.mlp([784, 32, 32, 1], linear_tail=1),
        data,
        until=eq.LogLoss(-1e2),
        save_at=[eq.Steps(12)],
        observe=[eq.Drift(), eq.Activity(), seen],
    )
    drifts = run.table().query("quantity == 'relative_drift'")
    assert run.status == "reached"
    assert drifts.value.max() < 1e-12
    assert len(run.slides()) > 10
    agree = torch.ones(32, 32, dtype=torch.bool)
    for slopes in seen.seen[13:]:
        agree &= (slopes[0].T[:, None] == slopes[0].T[None]).all(2)
    pairs = agree & ~torch.eye(32, dtype=torch.bool) & (seen.seen[-1][0] > 0).any(0)
    drift = pair_drift(run, "layer1.weight", "layer2.weight", "steps=12")
    assert int(pairs.sum()) >= 2
    assert float(drift[pairs].max()) < 1e-12
    assert float(drift[~agree].max()) > 1e-6


@pytest.mark.parametrize(
    ("max_steps", "status"), [(40, "step_limit"), pytest.param(300, "stalled", marks=pytest.mark.slow)]
)
def test_no_step_keeps_the_slopes_of_the_step_before_where_that_raises_the_loss(max_steps, status):
    """Two narrow layers of ReLUs: a pair that has left its kink moves nothing by its old slope, and seems settled."""
    model, examples = eq.networks.mlp([20, 2, 2, 1], linear_tail=1, seed=1), eq.data.load("separable", n=40, seed=1)
    run = eq.flow(model, examples, until=eq.LogLoss(-1000), max_steps=max_steps)
    steps = [record for record in run.records if record.quantity == "step_size"]
    assert run.status == status
    assert len(steps) >= min(max_steps, 100)
    for before, after in pairwise(steps):  # a step may miss by what a second-order step neglects
        assert after.log_loss - before.log_loss < 2e-6 + 0.1 * after.value**2
