"""`log R`, its gradient and its tangent kernel, against autograd on the formulas of docs/theory.md §0."""

import pytest
import torch
from torch.nn import functional as F

from equipoise.data import load
from equipoise.errors import InputError
from equipoise.integrate.margins.protocol import local_slopes
from equipoise.integrate.problem import build_problem
from equipoise.losses import LOSSES
from equipoise.networks import mlp
from helpers.sampling import sampled

FORMULAS = {
    "exponential": lambda f, y: torch.exp(-y * f.squeeze(1)),
    "logistic": lambda f, y: F.softplus(-y * f.squeeze(1)),
    "squared": lambda f, y: (y - f.squeeze(1)) ** 2 / 2,
    "cross_entropy": lambda f, y: F.cross_entropy(f, y, reduction="none"),
    "multiclass_exponential": lambda f, y: torch.exp(f - f.gather(1, y[:, None])).sum(1) - 1,
}


def setting(loss, weights=None):
    multiclass = LOSSES[loss].multiclass
    X, y = load("separable", n=20, d=5)
    y = torch.arange(20) % 4 if multiclass else y
    model = mlp([5, 6, 5, 4 if multiclass else 1], bias=True, seed=1)
    return model, X, y, build_problem(model, (X, y), loss, weights)


WEIGHTS = {
    "none": None,
    "positive": torch.linspace(1, 3, 20, dtype=torch.float64),
    "some zero": torch.linspace(-1, 3, 20, dtype=torch.float64).clamp(min=0),
}


CASES = [(loss, weighted) for loss in LOSSES for weighted in WEIGHTS]
SAMPLE = [*((loss, "some zero") for loss in LOSSES), ("exponential", "none"), ("cross_entropy", "none")]


@pytest.mark.parametrize(("loss", "weighted"), sampled(CASES, [case for case in CASES if case not in SAMPLE]))
def test_log_risk_and_its_gradient_are_those_of_the_formula(loss, weighted):
    shares = WEIGHTS[weighted]
    model, X, y, problem = setting(loss, None if shares is None else shares.tolist())
    losses = FORMULAS[loss](model(X), y)
    risk = losses.mean() if shares is None else (losses * shares / shares.sum()).sum()
    risk.log().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    objective = problem.objective
    at = objective.margins.evaluate(problem.weights)
    here = objective.linearize(problem.weights, local_slopes(objective.margins, at))
    assert objective.log_risk(at) == pytest.approx(risk.log().item(), rel=1e-13)
    assert torch.allclose(here.vjp(objective.cotangents(at)), -gradient, rtol=1e-11, atol=1e-14)
    weights = torch.softmax(-objective.potential(at), 0)
    assert torch.allclose(here.vjp(here.cotangents(weights)), -gradient, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_restricted_objective_has_the_same_potentials_and_the_rows_of_the_kernel(loss):
    _, _, _, problem = setting(loss, torch.linspace(1, 3, 20))
    objective, weights = problem.objective, problem.weights
    at = objective.margins.evaluate(weights)
    slopes = local_slopes(objective.margins, at)
    rows = torch.tensor([0, 3, 7, 8, 19]) * (objective.per_example - (objective.per_example > 1))
    some, examples = objective.restricted(rows), objective.examples(rows)
    whole = objective.linearize(weights, slopes)
    part = some.linearize(weights, tuple(slope[examples] for slope in slopes))
    change = torch.randn(len(weights), dtype=torch.float64)
    assert some.count < objective.count
    assert torch.allclose(some.potential(some.margins.evaluate(weights)), objective.potential(at)[rows], rtol=1e-14)
    assert torch.allclose(part.kernel(), whole.kernel()[rows][:, rows], rtol=1e-11, atol=1e-13)
    columns = torch.tensor([4, 1])
    assert torch.allclose(part.kernel(columns), part.kernel()[:, columns], rtol=1e-11, atol=1e-13)
    assert torch.allclose(part.jvp(change)[0], whole.jvp(change)[0][rows], rtol=1e-11, atol=1e-13)
    forces = torch.zeros_like(objective.potential(at)).index_fill(0, rows, 0.7)
    expected = whole.vjp(whole.cotangents(forces))
    assert torch.allclose(part.vjp(part.cotangents(forces[rows])), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_kernel_is_that_of_the_potentials(loss):
    """`K_u` against finite differences of `u` along the weights."""
    _, _, _, problem = setting(loss)
    objective, weights = problem.objective, problem.weights
    slopes = local_slopes(objective.margins, objective.margins.evaluate(weights))
    step, columns = 1e-6, []
    for unit in torch.eye(len(weights), dtype=torch.float64):
        ends = [objective.margins.linearize(weights + sign * step * unit, slopes).margins for sign in (1, -1)]
        columns.append((problem.loss.potential(ends[0]) - problem.loss.potential(ends[1])).flatten() / (2 * step))
    jacobian = torch.stack(columns, 1)
    assert torch.allclose(objective.linearize(weights, slopes).kernel(), jacobian @ jacobian.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [[1.0, 2.0], [0.0] * 20, [-1.0] * 20, [float("inf")] * 20])
def test_example_weights_that_are_none(weights):
    with pytest.raises(InputError, match="20 weights, one for each example"):
        setting("exponential", weights)
