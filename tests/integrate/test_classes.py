"""Several classes: the entropic step after the change of variables of T6.3."""

import math
from dataclasses import replace

import pytest
import torch

import equipoise as eq
from equipoise.errors import InputError
from equipoise.integrate.problem import build_problem
from equipoise.integrate.steppers import EntropicGauss, EntropicMidpoint
from equipoise.networks import mlp

CLASSES = 3


def data(n, d=5):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    scores = X @ torch.randn(d, CLASSES, generator=generator, dtype=torch.float64)
    return X, scores.argmax(1)


def problem(loss, widths=(5, 6, 6, CLASSES), linear_tail=3, n=30, **options):
    return build_problem(mlp(widths, linear_tail, seed=0), data(n), loss, **options)


def advance(problem, stepper, until):
    state = stepper.init(problem.objective, problem.weights)
    routes = set()
    while problem.objective.log_risk(state.evaluation) > until:
        state, step = stepper.step(problem.objective, state)
        routes.add(step.route)
    return state, routes


def drift(problem, state):
    start, end = (problem.laws.value(problem.layout.views(w)) for w in (problem.weights, state.weights))
    return max(float((end[name] - start[name]).norm() / state.weights.norm() ** 2) for name in start)


@pytest.mark.parametrize(
    ("loss", "weighted"),
    [("cross_entropy", True), pytest.param("multiclass_exponential", False, marks=pytest.mark.slow)],
)
def test_laws_stay_at_rounding_through_kinks_to_any_depth(loss, weighted):
    """The shift of the logits (T2) is among them."""
    weights = torch.linspace(1, 5, 30) if weighted else None
    flowing = problem(loss, (5, 6, 5, CLASSES), linear_tail=2, example_weights=weights)
    state, routes = advance(flowing, EntropicMidpoint(), -1e2)
    assert routes == {"trapezoid", "entropic"}
    assert {law.kind for law in flowing.laws} == {"vertex", "linear", "shift"}
    assert drift(flowing, state) < 1e-15


@pytest.mark.parametrize("loss", ["cross_entropy", pytest.param("multiclass_exponential", marks=pytest.mark.slow)])
def test_displacement_is_second_order(loss):
    flowing = problem(loss)
    start = advance(flowing, EntropicMidpoint(step_size=0.02), -8.0)[0]
    exact = at_growth(flowing, start, 0.0025)
    ends = [at_growth(flowing, start, size) for size in (0.04, 0.005)]
    errors = [float((end - exact).norm() / exact.norm()) for end in ends]
    slope = math.log(errors[0] / errors[-1]) / math.log(8)
    assert 1.6 < slope < 2.4, errors


def test_gauss_collocation_keeps_the_laws_of_classes():
    """Cross-entropy, whose `D` couples the margins of an example; the shift of the logits is kept as well."""
    flowing = problem("cross_entropy", (5, 4, CLASSES), linear_tail=2, n=12)
    state, routes = advance(flowing, EntropicGauss(), -3)
    assert routes == {"gauss"}
    assert drift(flowing, state) < 1e-15


def at_growth(flowing, start, size, growth=0.2):
    """The weights where `log ‖w‖` has grown by `growth`: Lagrange through the six nearest steps."""
    stepper, points = EntropicMidpoint(step_size=size, rtol=1.0), [(0.0, start.weights)]
    state = replace(start, sizes=dict.fromkeys(start.sizes, size))
    while points[-1][0] < growth + 3 * size:
        state = stepper.step(flowing.objective, state)[0]
        points.append((math.log(float(state.weights.norm() / start.weights.norm())), state.weights))
    near = sorted(points, key=lambda point: abs(point[0] - growth))[:6]
    total = torch.zeros_like(start.weights)
    for s, weights in near:
        total += weights * math.prod((growth - other) / (s - other) for other, _ in near if other != s)
    return total


@pytest.mark.parametrize("two", [("exponential", "multiclass_exponential"), ("logistic", "cross_entropy")])
def test_two_classes_with_two_scores_are_one_score_with_two_signs(two):
    """`f_1 - f_0` as one score: the same margins, hence the same first step of both flows."""
    X, y = eq.data.load("separable", n=20, d=5)
    one = mlp([5, 1], 1, seed=0)
    both = mlp([5, 2], 1, seed=0)
    with torch.no_grad():
        both.layer1.weight.copy_(torch.cat([-one.layer1.weight, one.layer1.weight]) / 2)
    binary, classes = build_problem(one, (X, y), two[0]), build_problem(both, (X, ((y + 1) / 2).long()), two[1])
    states = [EntropicMidpoint().init(p.objective, p.weights) for p in (binary, classes)]
    assert torch.allclose(states[0].evaluation.margins, states[1].evaluation.margins[:, 0], rtol=1e-13)
    forces = [p.objective.cotangents(s.evaluation) for p, s in zip((binary, classes), states, strict=True)]
    assert torch.allclose(forces[0], forces[1][:, 0], rtol=1e-13)


@pytest.mark.parametrize(
    ("model", "labels", "loss", "message"),
    [
        (mlp([5, 3]), [0, 1, 2, 3] * 5, "cross_entropy", r"a score for each of 4 classes.*found output \(2, 3\)"),
        (mlp([5, 1]), [0, 1] * 10, "cross_entropy", r"a score for each of 2 classes.*found output \(2, 1\)"),
        (mlp([5, 3]), [0, 1, 2, -1] * 5, "cross_entropy", r"class indices 0, 1, 2, …; found labels -1"),
        (mlp([5, 3]), [0.5, 1] * 10, "cross_entropy", "class indices 0, 1, 2, …; found labels 0.5"),
        (mlp([5, 3]), [0, 1] * 10, "logistic", r'one score for each example.*pass loss="cross_entropy"'),
        (mlp([5, 1]), [0, 1, 2, 1] * 5, "logistic", r"labels in \{-1, \+1\}.*or a loss for several"),
    ],
)
def test_labels_and_outputs_that_do_not_fit(model, labels, loss, message):
    X = torch.randn(20, 5, dtype=torch.float64)
    with pytest.raises(InputError, match=message):
        build_problem(model, (X, labels), loss)
