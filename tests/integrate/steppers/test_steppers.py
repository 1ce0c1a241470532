import math
from dataclasses import replace

import pytest
import torch

import equipoise as eq
from equipoise.data import load
from equipoise.integrate.problem import build_problem
from equipoise.integrate.steppers import EntropicGauss, EntropicMidpoint
from equipoise.losses import log_risk, named_loss
from equipoise.networks import mlp, residual_mlp


def advance(problem, stepper, until):
    """Step until `log R` is at most `until`; every step's state."""
    state = stepper.init(problem.objective, problem.weights)
    states = [state]
    while log_risk(problem.loss.potential(state.evaluation.margins)) > until:
        state, _ = stepper.step(problem.objective, state)
        states.append(state)
    return states


def drift(problem, state):
    start, end = (problem.laws.value(problem.layout.views(w)) for w in (problem.weights, state.weights))
    return max(float((end[name] - start[name]).norm() / state.weights.norm() ** 2) for name in start)


def linear_problem(loss="exponential"):
    return build_problem(mlp([5, 6, 6, 1], linear_tail=3, seed=0), load("separable", n=30, d=5), loss)


@pytest.mark.parametrize("loss", [pytest.param("exponential", marks=pytest.mark.slow), "logistic"])
def test_drift_stays_at_rounding_for_every_step_size(loss):
    for size in (0.1, 0.04):
        problem = linear_problem(loss)
        assert drift(problem, advance(problem, EntropicMidpoint(step_size=size), -1e4)[-1]) < 1e-15


def test_drift_stays_at_rounding_through_kinks():
    problem = build_problem(mlp([5, 8, 8, 6, 1], linear_tail=2, seed=1), load("separable", n=40, d=5), "exponential")
    states = advance(problem, EntropicMidpoint(), -1e4)
    inside = sum(int(((slope > 0) & (slope < 1)).sum()) for state in states for slope in state.slopes)
    assert inside > 0
    assert max(drift(problem, state) for state in states) < 1e-15


@pytest.mark.parametrize("until", [-4.0, -1e3], ids=["trapezoid", "entropic"])
def test_a_step_made_a_little_longer_ends_where_one_taken_anew_does(until):
    """What is added errs by half the change of the velocity, a tenth here; laws are exact; no longer one is offered."""
    problem = build_problem(mlp([5, 8, 8, 6, 1], linear_tail=2, seed=1), load("separable", n=40, d=5), "exponential")
    stepper, objective = EntropicMidpoint(), problem.objective
    state = advance(problem, stepper, until)[-1]
    _, step = stepper.step(objective, state, 0.01)
    for share in (0.999, 1.001):
        resized, record = step.resized(share * step.planned)
        anew, planned = stepper.step(objective, state, share * step.planned)
        assert record.planned == pytest.approx(planned.planned, rel=1e-12)
        assert float((resized.weights - anew.weights).norm() / state.weights.norm()) < 0.05 * 0.001 * 0.01
        assert drift(problem, resized) < 1e-15
    assert step.resized(1.01 * step.planned) is None


def test_a_network_with_skips_runs_on_the_general_path():
    problem = build_problem(residual_mlp(5, 6, 4, linear_tail=2, seed=1), load("separable", n=30, d=5), "exponential")
    states = advance(problem, EntropicMidpoint(), -30)
    assert problem.chain is None
    assert len(problem.laws) > 0
    assert drift(problem, states[-1]) < 1e-14


@pytest.mark.parametrize("loss", [pytest.param("exponential", marks=pytest.mark.slow), "logistic"])
def test_displacement_is_second_order_on_a_deep_linear_network(loss):
    """T6.1: the error at equal growth falls as the square of the step."""
    problem = linear_problem(loss)
    start = advance(problem, EntropicMidpoint(step_size=0.02), -40.0)[-1]
    ends = {size: at_growth(problem, start, size, 0.2) for size in (0.04, 0.01, 0.0025)}
    exact = ends.pop(0.0025)
    errors = [float((end - exact).norm() / exact.norm()) for end in ends.values()]
    slope = math.log(errors[0] / errors[-1]) / math.log(4)
    assert 1.7 < slope < 2.3, errors


@pytest.mark.parametrize("loss", [pytest.param("exponential", marks=pytest.mark.slow), "logistic"])
def test_gauss_collocation_is_fourth_order_and_keeps_the_laws(loss):
    problem = linear_problem(loss)
    start = advance(problem, EntropicGauss(step_size=0.05), -3.0)[-1]
    ends = {size: at_growth(problem, start, size, 0.4, EntropicGauss) for size in (0.04, 0.02, 0.01)}
    exact = ends.pop(0.01)
    errors = [float((end - exact).norm() / exact.norm()) for end in ends.values()]
    slope = math.log(errors[0] / errors[1]) / math.log(2)
    assert 3.7 < slope < 4.3, errors
    assert errors[-1] < 1e-8
    states = advance(problem, EntropicGauss(step_size=0.1), -30)
    assert max(drift(problem, state) for state in states) < 1e-15


@pytest.mark.parametrize("depth", [-1e3, pytest.param(-1e6, marks=pytest.mark.slow)])
def test_gauss_collocation_follows_to_any_depth(depth):
    model, data, goal = mlp([5, 6, 6, 1], linear_tail=3, seed=0), load("separable", n=30, d=5), eq.LogLoss(depth)
    runs = [
        eq.flow(model, data, until=goal, stepper=stepper, observe=[eq.Drift()])
        for stepper in (EntropicGauss(), EntropicMidpoint(step_size=0.04))
    ]
    ends = [torch.cat([weight.flatten() for weight in run.final.values()]) for run in runs]
    assert {run.status.value for run in runs} == {"reached"}
    assert runs[0].steps < 120
    assert runs[0].table().query("quantity == 'relative_drift'").value.max() < 1e-15
    assert float((ends[0] - ends[1]).norm() / ends[0].norm()) < 1e-3


def at_growth(problem, start, size, growth, method=EntropicMidpoint):
    """The weights where `log ‖w‖` has grown by `growth`, by interpolation between steps."""
    stepper = method(step_size=size, rtol=1.0)
    points, state = [(0.0, start.weights)], replace(start, sizes=dict.fromkeys(start.sizes, size))
    while points[-1][0] < growth + 3 * size:
        state = stepper.step(problem.objective, state)[0]
        points.append((math.log(float(state.weights.norm() / start.weights.norm())), state.weights))
    return interpolated(points, growth)


def interpolated(points, where):
    """Lagrange through the six points nearest to `where`."""
    near = sorted(points, key=lambda point: abs(point[0] - where))[:6]
    total = torch.zeros_like(near[0][1])
    for s, weights in near:
        total += weights * math.prod((where - other) / (s - other) for other, _ in near if other != s)
    return total


def test_trajectory_agrees_with_dopri5_while_it_can_follow():
    """Against torchdiffeq on `-∇ log R`, at equal `log R`."""
    from torchdiffeq import odeint

    problem = linear_problem("logistic")
    loss = named_loss("logistic")
    states = advance(problem, EntropicMidpoint(step_size=0.005), -4.3)
    depths = [log_risk(loss.potential(state.evaluation.margins)) for state in states]
    target = -3.0
    ours = interpolated(list(zip(depths, [state.weights for state in states], strict=True)), target)

    def velocity(_, weights):
        margins = problem.margins
        seen = margins.evaluate(weights)
        here = margins.linearize(weights, ())
        return here.vjp(problem.objective.cotangents(seen))

    def depth(weights):
        return log_risk(loss.potential(problem.margins.evaluate(weights).margins))

    times = torch.linspace(0, 0.3, 61, dtype=torch.float64)  # the rescaled flow blows up soon after
    path = odeint(velocity, problem.weights, times, method="dopri5", rtol=1e-9, atol=1e-11)
    theirs = interpolated([(depth(weights), weights) for weights in path], target)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
