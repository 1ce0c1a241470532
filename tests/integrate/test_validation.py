"""Models that cannot flow, each refused in one line that names the remedy."""

import pytest
import torch
from torch import nn

from equipoise.errors import InputError
from equipoise.integrate.problem import build_problem
from equipoise.networks import mlp


class With(nn.Module):
    """A layer, a head, and something between or before them."""

    def __init__(self, between=None, before=None):
        super().__init__()
        self.layer, self.head = nn.Linear(5, 4), nn.Linear(4, 1)
        self.between, self.before = between or torch.relu, before or (lambda x: x)

    def forward(self, x):
        return self.head(self.between(self.layer(self.before(x))))


def integers():
    model = With()
    model.table = nn.Parameter(torch.arange(3), requires_grad=False)
    return model


def frozen():
    model = With()
    model.head.bias.requires_grad_(False)
    return model


def spoilt():
    model = With()
    model.layer.weight.data[0, 0] = torch.nan
    return model


def unused():
    model = With()
    model.spare = nn.Linear(5, 1)
    return model


class PartlyDetached(With):
    def forward(self, x):
        return self.head(torch.relu(self.layer(x).detach()))


class FixedBatch(With):
    def forward(self, x):
        h = torch.relu(self.layer(x))
        return self.head(h - h.mean(0) if len(h) > 2 else h)


BATCH_NORM = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
REFUSED = {
    "integers": (integers, "real floating-point numbers; found table of dtype torch.int64; register .* as a buffer"),
    "frozen": (
        frozen,
        r"every parameter is trained; found head.bias with requires_grad=False; call requires_grad_\(\)",
    ),
    "spoilt": (spoilt, "finite weights; found NaN or infinite entries in layer.weight"),
    "unused": (unused, "receives a gradient; found spare.weight, spare.bias without; remove what is not used"),
    "detached": (PartlyDetached, r"found layer.weight, layer.bias without; .*detach\(\)"),
    "no gradient": (
        lambda: With(lambda z: z, lambda x: x.abs_()),
        "leaves its inputs as they are; found inputs changed",
    ),
    "batch": (FixedBatch, "treats every example alike, in a batch of any size"),
    "training": (lambda: BATCH_NORM.train(), r"changes no buffer; found .*BatchNorm in training mode.*model.eval\(\)"),
    "dropout": (lambda: With(nn.Dropout(0.5).train()), r"model.eval\(\)"),
    "two tensors": (lambda: Pair(), "returns one tensor; found tuple"),
    "sign": (lambda: With(torch.sign), "sign at sign, whose derivative is zero almost everywhere"),
    "no parameters": (nn.Flatten, "a model with parameters; found none"),
    "shape": (lambda: nn.Linear(4, 1), "inputs that the model accepts; found examples of shape"),
    "scores": (lambda: nn.Linear(5, 2), r"one score for each example.*found output \(2, 2\)"),
}


class Pair(With):
    def forward(self, x):
        return super().forward(x), x


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 5, generator=generator, dtype=torch.float64) - 0.3, [1, -1] * 4


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name):
    build, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as refusal:
        build_problem(build(), data(), "exponential")
    assert "\n" not in str(refusal.value)


def test_a_batch_that_must_be_two_is_refused_with_two_examples():
    X, y = data()
    with pytest.raises(InputError, match="in a batch of any size"):
        build_problem(With(before=lambda x: x.view(2, 5)), (X[:2], y[:2]), "exponential")


def test_a_precision_that_is_none():
    with pytest.raises(InputError, match=r"float64 or float32; found torch.float16"):
        build_problem(mlp([5, 1]), data(), "exponential", dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_in_the_precision_asked_for(dtype):
    problem = build_problem(mlp([5, 4, 1]), data(), "logistic", [1.0] * 8, dtype)
    at = problem.objective.margins.evaluate(problem.weights)
    assert {problem.weights.dtype, at.margins.dtype, problem.objective.cotangents(at).dtype} == {dtype}
    assert problem.model.layer1.weight.dtype == dtype


def test_batch_norm_in_evaluation_mode_is_admitted():
    problem = build_problem(BATCH_NORM.eval(), data(), "exponential")
    assert len(problem.laws) > 0
