import math

import mpmath
import pytest
import torch

import equipoise as eq
from equipoise.errors import InputError
from equipoise.losses import LOSSES, log_risk, named_loss, tailed_losses
from equipoise.measure.margins import binary_margins, class_margins
from equipoise.networks import mlp

MARGINS = [-700.0, -30.0, -1.0, 0.0, 1.0, 29.9, 30.1, 36.0, 700.0, 1e12]
BINARY = [name for name, loss in LOSSES.items() if not loss.multiclass]
CLASSES = [name for name, loss in LOSSES.items() if loss.multiclass]


def exact_potential(name, margins):
    """`u_c` and `D` of one example in 60 digits, from the formulas of docs/theory.md §0 and T6.3 alone."""
    margins = [mpmath.mpf(margin) for margin in margins]

    def loss(ms):
        if name == "squared":
            return (1 - ms[0]) ** 2 / 2
        total = mpmath.fsum(mpmath.exp(-m) for m in ms)
        return mpmath.log1p(total) if name in ("logistic", "cross_entropy") else total

    def potentials(ms):
        total = mpmath.fsum(mpmath.exp(-m) for m in ms)
        return [-mpmath.log(loss(ms)) - mpmath.log(mpmath.exp(-m) / total) for m in ms]

    step = mpmath.mpf(10) ** -25
    u = potentials(margins)
    columns = []
    for c in range(len(margins)):
        ends = [potentials([m + sign * step * (k == c) for k, m in enumerate(margins)]) for sign in (1, -1)]
        columns.append([(above - below) / (2 * step) for above, below in zip(*ends, strict=True)])
    return u, [list(row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("name", BINARY)
def test_potential_and_slope_agree_with_high_precision(name):
    loss, margins = named_loss(name), torch.tensor(MARGINS, dtype=torch.float64)
    slopes = loss.differential(margins).jvp(torch.ones_like(margins))
    with mpmath.workdps(700):
        for margin, potential, slope in zip(MARGINS, loss.potential(margins).tolist(), slopes.tolist(), strict=True):
            if margin == 1e12 and name != "squared":
                assert (potential, slope) == (margin, 1.0)
            elif margin == 1.0 and name == "squared":
                assert math.exp(-potential) < 1e-299
            else:
                (u,), ((d,),) = exact_potential(name, [margin])
                assert potential == pytest.approx(float(u), rel=1e-13)
                assert slope == pytest.approx(float(d), rel=1e-13)


ROWS = [[-5.0, 0.3, 2.0], [0.0, 0.0, 0.0], [29.0, 31.0, 40.0], [-300.0, 2.0, 500.0], [35.0, 36.0, 300.0]]


@pytest.mark.parametrize("name", CLASSES)
def test_potentials_of_classes_and_their_blocks_agree_with_high_precision(name):
    loss, margins = named_loss(name), torch.tensor(ROWS, dtype=torch.float64)
    potentials, unit = loss.potential(margins), torch.eye(3, dtype=torch.float64)
    columns = torch.stack([loss.differential(margins).jvp(e.expand(5, 3)) for e in unit], 2)
    rows = torch.stack([loss.differential(margins).vjp(e.expand(5, 3)) for e in unit], 1)
    with mpmath.workdps(500):
        for i, row in enumerate(ROWS):
            u, block = exact_potential(name, row)
            assert potentials[i].tolist() == pytest.approx([float(x) for x in u], rel=1e-13, abs=1e-13)
            exact = torch.tensor([[float(x) for x in line] for line in block], dtype=torch.float64)
            assert torch.allclose(columns[i], exact, rtol=0, atol=1e-13)
            assert torch.allclose(rows[i], exact, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", CLASSES)
def test_risk_of_classes_is_that_of_the_formula(name):
    margins = torch.tensor(ROWS[:3], dtype=torch.float64)
    total = torch.exp(-margins).sum(1)
    expected = (torch.log1p(total) if name == "cross_entropy" else total).mean().log()
    assert log_risk(named_loss(name).potential(margins)) == pytest.approx(float(expected), rel=1e-14)


def test_blocks_of_some_examples():
    differential = named_loss("cross_entropy").differential(torch.tensor(ROWS, dtype=torch.float64))
    forces = torch.rand(3, 3, dtype=torch.float64)
    picked = torch.tensor([4, 0, 0])
    whole = torch.stack([differential.vjp(forces[[k]].expand(5, 3))[row] for k, row in enumerate(picked)])
    assert torch.equal(differential.take(picked).vjp(forces), whole)


def test_log_risk_needs_no_risk():
    potential = torch.tensor([1e12, 1e12 + 1.0], dtype=torch.float64)
    assert log_risk(potential) == pytest.approx(-1e12 + math.log((1 + math.exp(-1)) / 2), rel=1e-15)


def scores_and_targets(loss):
    generator = torch.Generator().manual_seed(0)
    if loss.multiclass:
        return torch.randn(6, 4, generator=generator).double(), torch.arange(6) % 4
    return torch.randn(6, 1, generator=generator).double(), torch.tensor([1.0, -1.0] * 3).double()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_loss_of_scores_and_its_gradient_are_those_of_the_potentials(loss):
    scores, target = scores_and_targets(loss)
    scores.requires_grad_()
    seen = class_margins(scores, target) if loss.multiclass else binary_margins(scores, target)
    value, u = loss.mean(scores, target), loss.potential(seen)
    assert float(value.detach().log()) == pytest.approx(log_risk(u.detach()), rel=1e-14)
    cotangents = loss.differential(seen).vjp(torch.exp(-u)) / len(scores)
    (expected,) = torch.autograd.grad(seen, scores, -cotangents.detach(), retain_graph=True)
    (gradient,) = torch.autograd.grad(value, scores)
    assert torch.allclose(gradient, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", tailed_losses())
@pytest.mark.parametrize("margin", [-3.0, 0.5, 50.0])
def test_the_margin_of_a_loss_is_found_again(name, margin):
    loss = named_loss(name)
    seen = torch.tensor([[margin]] if loss.multiclass else [margin], dtype=torch.float64)
    assert loss.inverse(log_risk(loss.potential(seen))) == pytest.approx(margin, rel=1e-14)


def test_the_squared_loss_has_no_inverse():
    with pytest.raises(InputError, match="a loss that falls as the margin grows; found the squared loss"):
        named_loss("squared").inverse(-1.0)


@pytest.mark.parametrize("given", ["squared", eq.losses.Squared()])
def test_the_gradient_of_any_named_loss_is_checked(given):
    X, y = eq.data.load("separable", n=6, d=3)
    laws = eq.invariances(mlp([3, 4, 1], linear_tail=1).double(), X)
    assert laws.check(mlp([3, 4, 1], linear_tail=1).double(), (X, y), loss=given).passed


def test_a_loss_of_classes_ignores_a_shift_by_name_or_as_an_object():
    X, model = torch.rand(4, 3), mlp([3, 4, 3], linear_tail=1)
    named, given = (eq.invariances(model, X, loss=loss) for loss in ("cross_entropy", eq.losses.CrossEntropy()))
    assert [law.name for law in named] == [law.name for law in given]
    assert len(named) > len(eq.invariances(model, X))


def test_unknown_loss_is_named():
    with pytest.raises(InputError, match=r"a loss among exponential, logistic.*; found 'hinge'"):
        named_loss("hinge")
