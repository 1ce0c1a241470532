"""Starts near a saddle: weights so small that the loss stands still for many e-foldings of growth."""

import math

import pytest
import torch
from scipy.integrate import DOP853

import equipoise as eq
from equipoise.integrate.problem import build_problem
from equipoise.integrate.state import velocity
from equipoise.integrate.steppers import EntropicMidpoint
from equipoise.integrate.termination import driven, unstable
from helpers.sampling import sampled


def separable():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    return X, torch.sign(X @ torch.randn(5, generator=generator, dtype=torch.float64))


def small(depth, scale):
    return eq.networks.mlp([5, *[4] * (depth - 1), 1], linear_tail=depth, scale=scale)


@pytest.mark.parametrize("depth", sampled([2, 3, 4], [2, 4]))
def test_a_start_of_any_scale_escapes_in_passes_that_grow_by_its_logarithm(depth):
    runs = [eq.flow(small(depth, scale), separable(), until="log_loss=-2", observe=[]) for scale in (1e-4, 1e-8)]
    assert [run.status.value for run in runs] == ["reached", "reached"]
    assert runs[1].growth > 1.9 * runs[0].growth - 3
    assert runs[1].gradient_evaluations < 2 * runs[0].gradient_evaluations


def test_the_escape_follows_the_flow_and_keeps_its_laws():
    """Beside Dormand-Prince in arc length over ‖w‖, to the growth at which margins come to life."""
    model, growth = small(3, 1e-4), 6.0
    run = eq.flow(model, separable(), until=eq.Growth(growth), observe=[eq.Drift()])
    table = run.table()
    assert (table[table.quantity == "step_size"].value > 0.3).any()
    assert table[table.quantity == "relative_drift"].value.max() < 1e-15
    problem = build_problem(model, separable(), "exponential")
    objective, start = problem.objective, problem.weights

    def flow(_, weights):
        at = torch.from_numpy(weights)
        flow = objective.linearize(at, ()).vjp(objective.cotangents(objective.margins.evaluate(at)))
        return (flow * (at.norm() / flow.norm())).numpy()

    solver = DOP853(flow, 0, start.numpy(), 30, rtol=1e-10, atol=1e-16)
    while math.log(float(torch.from_numpy(solver.y).norm() / start.norm())) < growth:
        solver.step()
    path, low, high = solver.dense_output(), solver.t_old, solver.t
    for _ in range(60):
        middle = (low + high) / 2
        grown = math.log(float(torch.from_numpy(path(middle)).norm() / start.norm())) < growth
        low, high = (middle, high) if grown else (low, middle)
    exact, ours = torch.from_numpy(path(high)), torch.cat([weight.flatten() for weight in run.final.values()])
    assert float((ours - exact).norm() / exact.norm()) < 2e-3


def test_descent_by_small_steps_is_not_called_stalled():
    run = eq.flow(small(3, 1e-2), separable(), stepper=eq.steppers.GradientDescent(0.1), observe=[], max_steps=70)
    assert run.status == "step_limit"


def test_a_saddle_is_told_from_a_minimum_by_the_linearised_flow():
    """Two neurons for three contradictory examples each: one has learnt its own; the other is of 1e-6, or has too."""
    X = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1]]).double()
    problem = build_problem(eq.networks.mlp([2, 2, 1]), (X, [1, 1, -1, 1, 1, -1]), "exponential")
    learnt = math.log(2) / 2  # the margin at which e^m and 2 e^-m balance
    stepper, root = EntropicMidpoint(), math.sqrt(learnt)
    for second, rises in ((1e-6, True), (root + 1e-6, False)):
        weights = torch.tensor([root, -0.5, -0.5 * second, second, root, second]).double()
        state = stepper.init(problem.objective, weights)
        assert float(velocity(problem.objective, state).norm()) < 1e-4
        assert unstable(problem.objective, state) is rises
        assert not driven(problem, state)


def test_contradictory_data_stall():
    X = torch.tensor([[1.0, 0.5], [1.0, 0.5], [-0.3, 1.0]]).double()
    run = eq.flow(small_network(), (X, [1, -1, 1]), until=eq.Growth(20.0), observe=[], max_steps=1500)
    assert run.status == "stalled"


def small_network():
    return eq.networks.mlp([2, 3, 1], linear_tail=2, seed=1)


def test_a_stalled_run_names_the_dead_examples():
    model = eq.networks.mlp([2, 2, 1], seed=0)
    with torch.no_grad():
        model.layer1.weight.copy_(torch.tensor([[1.0, 0.2], [0.8, -0.2]]))
        model.layer2.weight.copy_(torch.tensor([[1.0, 0.5]]))
    X = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.1]]).double()
    run = eq.flow(model, (X, [1, -1, 1]), until=eq.LogLoss(-50.0), observe=[])
    assert run.status == "stalled"
    assert run.reason.startswith("every neuron of layer1.weight is off for 1 of 3 examples (1)")


def test_examples_with_a_gradient_through_a_bias_above_are_not_called_dead():
    from equipoise.integrate.termination import dead_examples

    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.2], [0.8, -0.2]]))
    problem = build_problem(model, (torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), [1, -1]), "exponential")
    assert dead_examples(problem, EntropicMidpoint().init(problem.objective, problem.weights)) == []
