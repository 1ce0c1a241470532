"""A step converges where plain iteration would not, and on a kernel of low rank as on all of it."""

import itertools
from dataclasses import replace

import pytest
import torch

from equipoise.data import load
from equipoise.integrate.implicit import active_set, fixed_point
from equipoise.integrate.implicit.dual_weights import TrapezoidalWeights
from equipoise.integrate.implicit.fixed_point import ImplicitStep, converge_midpoint
from equipoise.integrate.implicit.step_problem import StepPredictor, StepProblem
from equipoise.integrate.margins.protocol import local_slopes
from equipoise.integrate.problem import build_problem
from equipoise.integrate.steppers import EntropicMidpoint
from equipoise.integrate.steppers.entropic_midpoint import solve_entropic, solve_trapezoidal
from equipoise.networks import mlp

SPANS = (0.3, 0.7)  # plain iteration converges within sixty passes in the first, and not in the second


@pytest.fixture(scope="module")
def start():
    problem = build_problem(mlp([5, 8, 8, 8, 1], linear_tail=2, seed=1), load("separable", n=20, d=5), "exponential")
    return problem.objective, EntropicMidpoint().init(problem.objective, problem.weights)


def frozen(start, span):
    """A step with the cotangents and slopes of the start, from its predicted end."""
    objective, state = start
    cotangents, slopes = objective.cotangents(state.evaluation), local_slopes(objective.margins, state.evaluation)
    weights = state.weights + span * objective.linearize(state.weights, slopes).vjp(cotangents)
    return ImplicitStep(objective, None, slopes, cotangents, weights, state.dual, 0.0, True, 1, 20)


def missed_by(start, attempt, span, weights):
    """By how much `w₁ = w₀ + h J(w_mid)ᵀ f` fails, relative to `‖w₁‖`; and the right-hand side."""
    state, margins = start[1], attempt.objective.margins
    there = state.weights + span * margins.linearize((state.weights + weights) / 2, attempt.slopes).vjp(
        attempt.cotangents
    )
    return float((there - weights).norm() / weights.norm()), there


@pytest.mark.parametrize("span", SPANS)
def test_the_midpoint_converges_to_rounding_also_where_its_map_hardly_contracts(start, span):
    attempt = frozen(start, span)
    end, mismatch, iterations = converge_midpoint(start[1], attempt, span)
    assert mismatch < 50 * 2.3e-16
    assert missed_by(start, attempt, span, end)[0] < 1e-14
    assert iterations < 40


def test_a_step_that_does_not_converge_says_so(start):
    objective, state = start
    predictor = StepPredictor.at(objective, state)
    short, long = (
        solve_trapezoidal(StepProblem(objective, state, predictor, size / predictor.speed)) for size in (0.01, 30.0)
    )
    assert short.converged
    assert not long.converged


@pytest.mark.parametrize("solve", [solve_trapezoidal, solve_entropic])
def test_a_solution_is_given_up_once_it_has_cost_what_it_is_worth(start, solve):
    objective, state = start
    predictor = StepPredictor.at(objective, state)
    step = StepProblem(objective, state, predictor, 0.1 / predictor.speed)
    whole = solve(step)
    assert whole.converged
    assert whole.operations >= whole.iterations * whole.objective.operations
    half = solve(replace(step, worth=whole.operations / 2))
    assert not half.converged
    assert 1 < half.iterations < whole.iterations
    assert half.operations < whole.operations
    bare = solve(replace(step, worth=0.0))
    assert not bare.converged
    assert bare.iterations == 1


def test_the_trapezoidal_rule_is_in_doubt_by_half_the_difference_of_its_ends(start):
    objective, state = start
    predictor = StepPredictor.at(objective, state)
    after = objective.margins.evaluate(state.weights + 0.1 * predictor.velocity)
    linearization = objective.linearize(state.weights, state.slopes)
    ends = [objective.cotangents(each) for each in (state.evaluation, after)]
    for order, mean in ((1, ends[1]), (2, (ends[0] + ends[1]) / 2)):
        rule = TrapezoidalWeights(objective, order)
        found, doubt, *_ = rule.average(linearization, state.evaluation, after, None, 0.0)
        torch.testing.assert_close(found, mean)
        torch.testing.assert_close(doubt, (ends[1] - ends[0]) / 2)


def test_a_midpoint_that_cannot_be_had_is_given_up_soon(start):
    """Far too long a step: its map expands without end, and the step is rejected for its mismatch."""
    _, mismatch, iterations = converge_midpoint(start[1], frozen(start, 1e6), 1e6)
    assert not mismatch < 1e-3
    assert iterations < 40


@pytest.mark.parametrize("span", SPANS)
def test_plain_iteration_converges_in_the_short_step_only(start, span):
    attempt, changes = frozen(start, span), []
    weights = attempt.weights
    for _ in range(60):
        change, weights = missed_by(start, attempt, span, weights)
        changes.append(change)
    assert changes[-1] < 1e-14 if span == SPANS[0] else changes[-1] > 1e-10


def test_a_kernel_of_low_rank_takes_the_same_step_to_second_order(monkeypatch):
    """What it lacks moves potentials at its mean rate: the step's third-order error differs, nothing before it does."""
    classes = build_problem(mlp([64, 16, 16, 10], seed=0), load("digits", tuple(range(10)), n=60), "cross_entropy")
    objective, stepper = classes.objective, EntropicMidpoint()
    state = stepper.init(objective, classes.weights)
    while objective.log_risk(state.evaluation) > -2:
        state, _ = stepper.step(objective, state)
    predictor, gaps = StepPredictor.at(objective, state), []
    monkeypatch.setattr(fixed_point, "_enough", lambda off, size: 1e-11)  # whether it has converged
    for size in (4e-4, 2e-4, 1e-4):
        step = StepProblem(objective, state, predictor, size / predictor.speed)
        whole = solve_entropic(step)
        with monkeypatch.context() as patch:
            patch.setattr(active_set, "_LARGEST", 40)
            patch.setattr(active_set, "_FEWEST", 40)
            places = active_set.landmarks(objective, predictor, state.dual, step.span, whole.rows)
            part = solve_entropic(step)
        assert places is not None
        assert len(places) < len(whole.rows) / 2
        assert whole.converged
        assert part.converged
        gaps.append(float((part.weights - whole.weights).norm() / whole.weights.norm()))
    assert gaps[0] < 1e-6
    assert all(earlier > 5 * later for earlier, later in itertools.pairwise(gaps)), gaps
