"""Weights of the examples: those of weight zero take no part in a run, in its certificate, or in its resumption."""

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import InputError, Interrupted
from equipoise.integrate.loop import run_flow
from equipoise.integrate.manifest import Origin
from equipoise.integrate.objective import shares

NETWORK = {"widths": [5, 6, 5, 1], "linear_tail": 2, "seed": 1}
SHARES = torch.tensor([0.0, 2.0, 1.0, 0.0, 0.5, 1.0, 3.0, 1.0, 0.0, 1.5, 1.0, 0.0, 2.0, 1.0])
WEIGHTED = SHARES > 0


def network():
    return eq.networks.mlp(**NETWORK)


def examples():
    """Separable data, but for examples of weight zero: one of them has the input of another and the other label."""
    X, y = (tensor.clone() for tensor in eq.data.load("separable", n=14, d=5))
    X[0], y[0] = X[1], -y[1]
    X[3] = 1e6
    return X, y


def flow(data, weights, folder=None, until="log_loss=-100"):
    return run_flow(
        network(), data, until=until, observe=[], out=folder, example_weights=weights, origin=Origin(NETWORK)
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with examples of weight zero, and the run without them."""
    X, y = examples()
    return (
        flow((X, y), SHARES, tmp_path_factory.mktemp("runs") / "zeros"),
        flow((X[WEIGHTED], y[WEIGHTED]), SHARES[WEIGHTED]),
    )


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_is_that_of_the_examples_that_weigh(runs):
    run, without = runs
    assert run.status == "reached"
    assert same(run.final, without.final)
    assert (run.log_loss, run.gradient_evaluations) == (without.log_loss, without.gradient_evaluations)
    assert torch.equal(run.example_weights[WEIGHTED], without.example_weights)
    assert not run.example_weights[~WEIGHTED].any()
    margins = run.data.y * run.model(run.data.X).flatten().detach()
    expected = torch.logsumexp(torch.log(run.example_weights) - margins, 0)
    assert run.log_loss == pytest.approx(float(expected), rel=1e-12)
    assert float(margins[0]) < 0


def test_its_certificate_is_that_of_the_examples_that_weigh(runs):
    run, without = runs
    certificate, expected = eq.certify(run), eq.certify(without)
    assert certificate.holds
    assert certificate.to_json() == expected.to_json()
    loaded = eq.Run.load(run.folder, data=examples())
    assert certificate.recheck(loaded).holds
    X, y = examples()
    assert certificate.recheck(run.model, (X, y), initial=run.initial, example_weights=3 * SHARES).differences
    others = SHARES.roll(1)
    lines = certificate.recheck(run.model, (X, y), initial=run.initial, example_weights=others).differences
    assert any(line.startswith("example_weights: ") for line in lines)


def test_a_resumed_run_is_bit_identical(runs, tmp_path):
    run, steps = runs[0], []

    def interrupt(step, *_):
        steps.append(step)
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run_flow(
            network(),
            examples(),
            until="log_loss=-100",
            observe=[],
            out=tmp_path / "run",
            example_weights=SHARES,
            callback=interrupt,
            origin=Origin(NETWORK),
        )
    resumed = eq.resume(tmp_path / "run", data=examples())
    assert same(resumed.final, run.final)
    assert resumed.log_loss == run.log_loss
    assert resumed.example_weights is not None
    assert torch.equal(resumed.example_weights, run.example_weights)


def test_shares_that_add_up_to_one_stay_what_they_are():
    once = shares(SHARES, len(SHARES), SHARES)
    assert torch.equal(shares(once, len(SHARES), SHARES), once)
    assert torch.equal(shares(once.tolist(), len(SHARES), SHARES), once)


def test_separation_is_that_of_the_least_weight():
    X, y = eq.data.load("separable", n=14, d=5)
    run = flow((X, y), SHARES, until="separated")
    assert run.log_loss == pytest.approx(float(torch.log(SHARES[WEIGHTED].min() / SHARES.sum())), rel=1e-6)
    assert bool((y[WEIGHTED] * run.model(X[WEIGHTED]).flatten() > 0).all())


def test_dead_examples_and_contradictions_are_named_by_their_positions():
    X, y = examples()
    weights = SHARES.clone()
    weights[0] = 1e-3
    contradictory = eq.flow(network(), (X, y), until="log_loss=-100", observe=[], example_weights=weights)
    assert contradictory.status == "not_separable"
    assert contradictory.reason == "examples 0 and 1 are the same input with two labels"
    weights[0], X, y = 0.0, X.clone(), y.clone()
    X[9], y[9] = X[12], -y[12]
    contradictory = eq.flow(network(), (X, y), until="log_loss=-100", observe=[], example_weights=weights)
    assert contradictory.reason == "examples 9 and 12 are the same input with two labels"


class Dying(nn.Module):
    """One neuron, off for inputs that are not positive."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.fill_(1.0)
            self.head.weight.fill_(1.0)

    def forward(self, x):
        return self.head(torch.relu(self.layer(x)))


def test_a_dead_example_is_named_by_its_position():
    data = [[-1.0], [5.0], [2.0], [-3.0]], [1, -1, 1, -1]
    run = eq.flow(Dying(), data, until="log_loss=-100", observe=[], example_weights=[0, 0, 1, 1])
    assert run.status == "stalled"
    assert "off for 1 of 2 examples (3)" in str(run.reason)


@pytest.mark.parametrize("weights", [[0.0] * 14, [-1.0, *[1.0] * 13], [float("nan"), *[1.0] * 13], [1.0] * 13])
def test_weights_that_leave_nothing_are_refused(weights):
    with pytest.raises(InputError, match="14 weights, one for each example, none negative and not all zero"):
        flow(examples(), weights)
    with pytest.raises(InputError, match="14 weights, one for each example, none negative and not all zero"):
        eq.certify(network(), examples(), example_weights=weights)


def test_weights_that_leave_one_class_are_refused():
    X, y = examples()
    with pytest.raises(InputError, match="examples of two classes or more; found only label 1"):
        flow((X, y), (y > 0).double())
