"""The hand-over between explicit and implicit steps: what each is said to cost, and how large the first of them is."""

from dataclasses import replace

import pytest
import torch

from equipoise.data import load
from equipoise.integrate.margins.protocol import MarginEvaluation
from equipoise.integrate.problem import build_problem
from equipoise.integrate.state import State, Step
from equipoise.integrate.steppers import EntropicMidpoint
from equipoise.integrate.steppers.handover import (
    after_explicit,
    after_implicit,
    after_refusal,
    at_first,
    is_worth_trying,
    next_is_explicit,
    without_explicit,
)
from equipoise.networks import mlp

ZERO = torch.zeros(1)
SIZES = {"trapezoid": 0.05, "entropic": 0.001, "escape": 0.05, "chebyshev": 0.004}
BEFORE = State(
    ZERO, MarginEvaluation(ZERO, ()), (), ZERO, sizes=SIZES, costs={"chebyshev": 100.0}, stiffest=ZERO, taken=3
)


def test_an_implicit_step_after_an_explicit_one_is_no_longer_than_two_of_those():
    assert at_first(BEFORE).sizes == SIZES | {"trapezoid": 0.008}
    implicit = replace(BEFORE, stiffest=None)
    assert at_first(implicit) is implicit


def test_one_dear_explicit_step_counts_half():
    taken = replace(BEFORE, costs=BEFORE.costs | {"chebyshev": 300.0}), Step("chebyshev", 0.004, 0.004)
    assert after_explicit(taken, BEFORE)[0].costs["chebyshev"] == 200.0
    assert after_explicit(taken, without_explicit(BEFORE))[0].costs["chebyshev"] == 300.0  # there was none to count
    assert after_explicit(taken, replace(BEFORE, costs={}))[0].costs["chebyshev"] == 300.0


@pytest.mark.parametrize(("stiffest", "cost"), [(ZERO, 50.0), (None, 500.0)])
def test_an_implicit_step_costs_its_operations_over_its_length(stiffest, cost):
    """Over the planned one where the velocity that it was planned with is that of an explicit step."""
    step = Step("entropic", 0.001, 0.01, operations=0.5)
    after, _ = after_implicit((BEFORE, step), replace(BEFORE, stiffest=stiffest), iteration=2.0)
    assert after.costs["implicit"] == pytest.approx(cost)
    assert after.costs["iterations"] == pytest.approx(25)


def test_implicit_steps_are_asked_for_where_few_examples_weigh():
    questions = []
    ask = lambda: questions.append(1) or 1.0  # noqa: E731
    assert next_is_explicit(BEFORE, 1.0, ask, least=lambda: 5.0)  # 25 iterations of that are dearer
    assert not questions
    assert not next_is_explicit(BEFORE, 1.0, ask, least=lambda: 0.5)
    assert questions
    refused = after_refusal(BEFORE, 1.0)
    assert not is_worth_trying(refused, 1.0)
    assert is_worth_trying(refused, 0.4)


@pytest.mark.parametrize("depth", [1.0, 300.0])
def test_the_record_of_an_implicit_step_has_its_mismatch(depth):
    problem = build_problem(mlp([5, 8, 8, 1], linear_tail=2, seed=1), load("separable", n=20, d=5), "exponential")
    stepper = EntropicMidpoint()
    state = stepper.init(problem.objective, problem.weights * depth ** (1 / 3))
    after, step = stepper.step(problem.objective, state)
    assert 0 < step.mismatch < 1e-13
    assert after.missed == pytest.approx(step.mismatch * float(after.weights.norm()))
    assert step.operations > problem.objective.operations
