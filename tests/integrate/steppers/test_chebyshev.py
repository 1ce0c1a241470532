"""Stabilised explicit steps: laws at their first values, the path of the flow, the hand-over, and resuming."""

import math
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from tests import reference

import equipoise as eq
from equipoise.data import load
from equipoise.errors import InputError, Interrupted
from equipoise.integrate.margins.protocol import local_slopes
from equipoise.integrate.problem import build_problem
from equipoise.integrate.steppers import EntropicMidpoint, RungeKuttaChebyshev
from equipoise.integrate.steppers.chebyshev import _coefficients, _reach, stabilised_step
from equipoise.integrate.steppers.handover import next_is_explicit
from equipoise.networks import mlp, residual_mlp


def classes():
    """Forty examples of three classes, by the largest of three linear scores."""
    X = load("separable", n=40, d=5).X
    scores = X @ torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return X, scores.argmax(1)


@cache
def flowing(kind):
    if kind == "classes":
        return build_problem(mlp([5, 6, 4, 3], linear_tail=2, seed=1), classes(), "cross_entropy")
    if kind == "skips":
        return build_problem(residual_mlp(5, 4, 4, linear_tail=2, seed=1), load("separable", n=30, d=5), "exponential")
    if kind == "linear":
        return build_problem(mlp([5, 4, 1], linear_tail=2, seed=1), load("separable", n=20, d=5), "exponential")
    return build_problem(mlp([5, 6, 4, 1], linear_tail=2, seed=1), load("separable", n=40, d=5), "exponential")


def drift(problem, weights):
    start, end = (problem.laws.value(problem.layout.views(each)) for each in (problem.weights, weights))
    return max(float((end[name] - start[name]).norm() / weights.norm() ** 2) for name in start)


@pytest.mark.parametrize("kind", ["relu", "classes", "skips"])
def test_every_law_has_its_first_value_after_every_step(kind):
    problem, stepper = flowing(kind), RungeKuttaChebyshev(rtol=0.02)
    state, moved = stepper.init(problem.objective, problem.weights), False
    for _ in range(3):
        state, step = stepper.step(problem.objective, state)
        assert drift(problem, state.weights) < 1e-15
        assert step.mismatch < 1e-15
        moved = moved or step.size > 0.003
    assert moved
    assert problem.log_loss(state.evaluation) < problem.log_loss(
        stepper.init(problem.objective, problem.weights).evaluation
    )


def test_a_model_with_a_law_that_no_move_restores_is_left_to_implicit_steps():
    problem = flowing("relu")
    held = replace(problem.objective, conserved=None)
    with pytest.raises(InputError, match=r"laws all belong to symmetries.*EntropicMidpoint"):
        RungeKuttaChebyshev().init(held, problem.weights)
    state = EntropicMidpoint(explicit=True).init(held, problem.weights)
    assert EntropicMidpoint(explicit=True).step(held, state)[1].route in ("trapezoid", "entropic")


def test_the_flow_over_blocks_is_that_of_all_examples_at_once():
    problem = flowing("classes")
    exact, log_risk = reference.gradient_flow(problem, problem.weights)
    for single, tolerance in ((False, 1e-13), (True, 1e-5)):
        flow, log = problem.objective.flow(problem.weights, single=single)
        assert float((flow - exact).norm() / exact.norm()) < tolerance
        assert abs(log - log_risk) < tolerance


def test_blocks_add_up_with_weights_of_the_examples(monkeypatch):
    monkeypatch.setattr("equipoise.integrate.objective._BLOCK", 7)
    problem, (X, y) = flowing("relu"), load("separable", n=40, d=5)
    shares = torch.linspace(1, 3, 40, dtype=torch.float64)
    weighted = build_problem(problem.model, (X, y), "exponential", shares)
    whole = weighted.objective.linearize(weighted.weights, local_slopes(weighted.margins, evaluated(weighted)))
    exact = whole.vjp(weighted.objective.cotangents(evaluated(weighted)))
    for single, tolerance in ((False, 1e-13), (True, 1e-5)):
        flow, log = weighted.objective.flow(weighted.weights, single=single)
        assert float((flow - exact).norm() / exact.norm()) < tolerance
        assert abs(log - weighted.log_loss(evaluated(weighted))) < tolerance


def evaluated(problem):
    return problem.margins.evaluate(problem.weights)


@pytest.mark.parametrize("stages", [2, 5, 20])
def test_a_step_is_stable_over_its_interval_and_of_second_order(stages):
    """On `y' = λ y` the step is a polynomial in `z = hλ`: at most 1 for `-reach ≤ z ≤ 0`, `1 + z + z²/2 + O(z³)`."""

    def amplified(z):
        coefficients = _coefficients(stages)
        before, now = 1.0, 1 + coefficients.first * z
        for one, two, steep, drifts in coefficients.later:
            before, now = now, (1 - one - two) + one * now + two * before + z * (steep * now + drifts)
        return now

    assert max(abs(amplified(z)) for z in np.linspace(-_reach(stages), -1e-3, 2000)) < 1
    errors = [abs(amplified(-z) - math.exp(-z)) for z in (2e-2, 1e-2)]
    assert 7 < errors[0] / errors[1] < 9


def test_the_path_is_that_of_the_flow():
    """Against an explicit method with a tight tolerance, on a network without kinks; the laws pull it back to it."""
    problem = flowing("linear")

    def field(_, weights):
        return reference.gradient_flow(problem, torch.as_tensor(weights))[0].numpy()

    errors = []
    for rtol in (1e-2, 1e-3, 1e-5):
        stepper, time = RungeKuttaChebyshev(rtol=rtol), 0.0
        state = stepper.init(problem.objective, problem.weights)
        while problem.log_loss(state.evaluation) > -2:
            speed = state.gradient_norm / float(state.weights.norm())
            state, step = stepper.step(problem.objective, state)
            time += step.planned / speed
        exact = solve_ivp(field, (0, time), problem.weights.numpy(), method="DOP853", rtol=1e-9, atol=1e-10).y[:, -1]
        errors.append(float((state.weights - torch.as_tensor(exact)).norm()) / float(np.linalg.norm(exact)))
    assert errors[0] < 0.05
    assert errors[2] < errors[0] / 4
    assert errors[2] < 2e-3


def test_through_kinks_it_reaches_what_implicit_steps_reach():
    """At equal growth, on a network with two ReLU layers."""
    problem, ends = flowing("relu"), {}
    for stepper in (RungeKuttaChebyshev(rtol=1e-3), EntropicMidpoint(step_size=0.02, explicit=False)):
        run = eq.flow(problem.model, problem.data, until=eq.Growth(0.08), stepper=stepper, observe=[], save_at=())
        ends[type(stepper)] = run
    one, other = ends.values()
    assert abs(one.log_loss - other.log_loss) < 0.02 * abs(other.log_loss)
    margins = [problem.margins.evaluate(problem.layout.flatten(run.final)).margins for run in ends.values()]
    assert torch.nn.functional.cosine_similarity(*margins, dim=0) > 0.9999


def test_a_goal_is_hit_by_interpolation():
    """At no more than two passes a try; the laws as exact, the end within the tolerance of a step."""
    problem, stepper = flowing("relu"), RungeKuttaChebyshev(rtol=1e-3)
    run = eq.flow(problem.model, problem.data, until=eq.LogLoss(-2.0), stepper=stepper, observe=[])
    assert run.status.value == "reached"
    assert -2 - 3e-8 <= run.log_loss <= -2
    assert drift(problem, problem.layout.flatten(run.final)) < 1e-15
    state = stepper.init(problem.objective, problem.weights)
    for _ in range(run.steps - 1):
        state, _ = stepper.step(problem.objective, state)
    taken = stepper.step(problem.objective, state)
    for share in (0.2, 0.5, 0.9):
        size = share * taken[1].planned
        found, step = taken[1].resized(size)
        anew, _ = stepper.step(problem.objective, state, size)
        assert float((found.weights - anew.weights).norm()) < stepper.rtol * float(anew.weights.norm())
        assert step.planned == size
        assert (found.examples_visited - taken[0].examples_visited) / problem.objective.count < 2


@pytest.mark.parametrize(("operations", "asked"), [(1.0, False), (0.001, True)])
def test_where_explicit_steps_cost_many_passes_there_is_a_question_before_each(operations, asked):
    """As where laws of wide layers are restored beside few examples."""
    problem, questions = flowing("relu"), []
    state = replace(
        RungeKuttaChebyshev().init(problem.objective, problem.weights),
        taken=3,  # no multiple of those between two questions
        costs={"chebyshev": 10.0},
        sizes={"chebyshev": 0.05},
        stiffest=problem.weights,
    )
    explicit = next_is_explicit(state, operations, lambda: questions.append(1) or 0.1)
    assert bool(questions) == asked
    assert explicit != asked


def test_steps_are_handed_over_where_implicit_ones_cost_less():
    """Deep in the limit an explicit step is tried, found dear, and given up; where it was cheap, it is gone back to."""
    problem, implicit, stepper = flowing("relu"), EntropicMidpoint(explicit=False), EntropicMidpoint(explicit=True)
    state, routes = implicit.init(problem.objective, problem.weights), []
    while problem.log_loss(state.evaluation) > -3e3:
        state, _ = implicit.step(problem.objective, state)
    while "entropic" not in routes and len(routes) < 20:
        state, step = stepper.step(problem.objective, state)
        routes.append(step.route)
    assert routes[0] == "chebyshev"
    assert routes[-1] == "entropic"
    assert state.costs["implicit"] < state.costs["chebyshev"]
    assert drift(problem, state.weights) < 1e-15
    cheap = replace(state, costs=state.costs | {"chebyshev": state.costs["implicit"] / 2})
    assert stepper.step(problem.objective, cheap)[1].route == "chebyshev"


def test_implicit_steps_are_given_up_once_their_tries_cost_more_than_an_explicit_one():
    problem, stepper = flowing("relu"), EntropicMidpoint(explicit=True, rtol=1e-6)
    held = problem.objective
    state = stepper.init(held, problem.weights)
    cheap = replace(state, costs={"chebyshev": 1.0, "implicit": 0.5})
    after, step = stepper.step(held, cheap)
    assert step.route == "chebyshev"
    assert after.costs["implicit"] > 1e100  # no implicit one follows before it is asked for again
    dear = replace(state, costs={"chebyshev": 1e30, "implicit": 0.5})
    after, step = stepper.step(held, dear)
    assert step.route in ("trapezoid", "entropic")
    assert step.rejected  # some of the tries were, as those above


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path):
    problem, data = flowing("relu"), load("separable", n=40, d=5)

    def stop(step, *_):
        if step == 3:
            raise KeyboardInterrupt

    options = {"until": eq.Steps(6), "stepper": EntropicMidpoint(explicit=True), "observe": []}
    whole = eq.flow(problem.model, data, **options)
    with pytest.raises(Interrupted):
        eq.flow(problem.model, data, out=tmp_path / "run", callback=stop, **options)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    run = eq.resume(tmp_path / "copy", problem.model, data)
    assert run.steps == whole.steps
    assert all(torch.equal(run.final[name], each) for name, each in whole.final.items())


def test_a_velocity_that_vanishes_ends_the_run():
    problem = flowing("relu")
    zero = torch.zeros_like(problem.weights)
    state = RungeKuttaChebyshev().init(problem.objective, zero)
    assert stabilised_step(problem.objective, state, 0.01, 0.05, 1e-10) is None


def test_a_saddle_is_left_by_steps_of_prescribed_length():
    problem = build_problem(mlp([5, 4, 4, 1], linear_tail=3, scale=1e-6), load("separable", n=20, d=5), "exponential")
    stepper, routes = EntropicMidpoint(explicit=True), set()
    state = stepper.init(problem.objective, problem.weights)
    for _ in range(30):
        state, step = stepper.step(problem.objective, state)
        routes.add(step.route)
    assert "escape" in routes
    assert "chebyshev" not in routes
