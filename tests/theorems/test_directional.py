import math

import pytest
import torch

from equipoise import data
from equipoise.integrate.goals import LogLoss
from equipoise.integrate.loop import flow
from equipoise.networks import mlp
from equipoise.theorems.checks.stability import _settled
from equipoise.theorems.direction import LimitDirection, _estimate, _spaced, extrapolate
from equipoise.theorems.evidence_builder import run_points
from equipoise.theorems.weights import Point

LIMIT = torch.nn.functional.normalize(torch.tensor([3.0, -2.0, 0.0, 1.0], dtype=torch.float64), dim=0)


GROWTHS = (2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 3.8)
WAY = torch.tensor([0.3, 0.1, -0.2, 0.4], dtype=torch.float64)


def saved(path):
    """Weights on a path of directions, at uneven growths."""
    units = [(s, torch.nn.functional.normalize(path(s), dim=0)) for s in GROWTHS]
    return [Point(s, {"a": math.exp(s) * unit[:3], "b": math.exp(s) * unit[3:]}) for s, unit in units]


def points(rate):
    """`w/‖w‖` near `LIMIT + WAY e^{-rate s}`."""
    return saved(lambda s: LIMIT + WAY * math.exp(-rate * s))


@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0])
def test_rate_and_limit_are_found_within_the_uncertainty(rate):
    found = extrapolate(points(rate))
    assert found.rate == pytest.approx(rate, rel=0.15)
    limit = torch.cat([found.limit["a"], found.limit["b"]])
    last = torch.cat(list(points(rate)[-1].weights.values()))
    error = torch.cat([found.error["a"], found.error["b"]])
    assert bool(((limit - LIMIT).abs() <= error).all())
    assert (limit - LIMIT).norm() < 0.2 * (last / last.norm() - LIMIT).norm()  # better than the last direction
    assert found.decided()["a"].tolist() == [True, True, False]  # the third is zero at the limit


def test_the_uncertainty_holds_what_is_seen_from_further_back():
    """Two rates at once: the limit of the last half of growth is not that of the last unit."""
    both = saved(lambda s: LIMIT + WAY * math.exp(-s) + 4 * WAY.flip(0) * math.exp(-2 * s))
    found, wide = extrapolate(both), _estimate(*_spaced(both, 0.5)).limit[:3]
    last = both[-1].weights["a"] / torch.cat(list(both[-1].weights.values())).norm()
    apart = (wide - found.limit["a"]).abs()
    assert bool((apart > 1e-5).all())
    assert torch.allclose(found.error["a"], (last - found.limit["a"]).abs() + apart, rtol=1e-12)


def test_what_does_not_settle_has_no_rate_and_decides_nothing():
    found = extrapolate(saved(lambda s: torch.tensor([math.cos(s * s / 20), math.sin(s * s / 20), 0.0, 1.0]).double()))
    assert found.rate is None
    assert math.isinf(found.uncertainty)
    assert not any(bool(decided.any()) for decided in found.decided().values())
    assert extrapolate(points(1.0)[:2]) is None


def test_undecided_pairs_are_listed():
    found = extrapolate(points(1.0))
    listed = list(found.undecided(lambda w: {"layer": torch.stack([w["a"], w["a"].flip(0)])}))
    assert [(pair.layer, pair.example, pair.neuron) for pair in listed] == [("layer", 0, 2), ("layer", 1, 0)]
    assert all(abs(pair.value) <= pair.error for pair in listed)


def test_a_linear_classifier_tends_to_the_support_vector_machine():
    """The limit of `w/‖w‖` is the hard-margin direction, known here: two examples on one line, one far beyond."""
    X = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.5, 3.0]], dtype=torch.float64)
    y = torch.tensor([1.0, -1.0, 1.0])
    run = flow(mlp([2, 1]), (X, y), until=LogLoss(-2e3))
    found = extrapolate(run_points(run))
    # margins w_1, w_1 and w_1/2 + 3 w_2 at least 1: the smallest w is (1, 1/6)
    expected = torch.tensor([1.0, 1 / 6], dtype=torch.float64) / math.hypot(1.0, 1 / 6)
    last = run.final["layer1.weight"] / run.final["layer1.weight"].norm()
    limit = found.limit["layer1.weight"][0]
    assert found.rate == pytest.approx(1.0, rel=0.1)  # 1/‖w‖: the classical 1/log t
    assert (limit - expected).norm() < 0.2 * (last[0] - expected).norm()
    assert (limit - expected).norm() <= found.uncertainty


def test_signs_are_settled_from_the_first_point_that_nothing_contradicts():
    """The first number turns at s = 0.75: decided from then on, and no earlier."""
    moving = [Point(s / 4, {"w": torch.tensor([[0.5 - 1.0 * math.exp(-s / 4), 1.0]]).double()}) for s in range(1, 17)]
    moving = [Point(p.growth, {"w": math.exp(p.growth) * p.weights["w"] / p.weights["w"].norm()}) for p in moving]
    found = extrapolate(moving)
    (settled,) = _settled(tuple(moving), found, lambda weights: weights)
    assert settled.undecided == 0
    assert settled.since == pytest.approx(0.25)  # the second is decided all the while
    only = lambda weights: {"w": weights["w"][:, :1]}  # noqa: E731
    (settled,) = _settled(tuple(moving), found, only)
    assert math.log(2) <= settled.since <= math.log(2) + 0.5
    assert (settled.decided, settled.total) == (1, 1)


def settled(numbers, error=0.0):
    """Of two numbers along a run whose direction tends to (1/2, 1/2, …), known within `error`."""
    unit = lambda a, b: {"w": torch.tensor([a, b, math.sqrt(1 - a * a - b * b)], dtype=torch.float64)}  # noqa: E731
    moments = tuple(Point(float(s), unit(0.5, b)) for s, b in enumerate([*numbers, 0.5]))
    direction = LimitDirection(1.0, 0.0, unit(0.5, 0.5), (unit(0.5, 0.5 + error),))
    (found,) = _settled(moments, direction, lambda weights: {"w": weights["w"][:2]})
    return found.since, found.decided


def test_what_was_decided_and_changed_sign_later_was_not_settled():
    assert settled([0.4, 0.4, 0.4]) == (0.0, 2)
    assert settled([0.4, -0.1, 0.4]) == (1.0, 1)  # at the excursion only the other number is decided
    # between the excursion and the first point it is positive again, though not decided
    assert settled([0.4, 0.05, -0.1, 0.4], error=0.1) == (1.0, 1)


def test_the_uncertainty_of_the_limit_counts_against_a_decision():
    assert settled([0.05, 0.4]) == (0.0, 2)
    assert settled([0.05, 0.4], error=0.1) == (0.0, 1)


def test_a_run_keeps_its_weights_at_every_quarter_of_growth():
    run = flow(mlp([5, 4, 1]), data.load("separable", n=20, d=5), until=LogLoss(-100))
    assert list(run.saved) == [f"growth={k / 4:g}" for k in range(1, len(run.saved) + 1)]
    assert len(run.saved) == int(run.growth * 4)
    growths = [point.growth for point in run_points(run)]
    assert growths == sorted(growths)
    assert growths[-1] == pytest.approx(run.growth)
