import math

import pytest
import torch
from torch import nn

from equipoise.errors import InputError
from equipoise.measure import sharpness
from reference import hessian

MEASURES = ("trace", "frobenius", "largest", "log_determinant")


def network(seed=0, width=5):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1)).double()
    X, y = torch.randn(30, 4).double(), torch.randn(30, 1).double()
    return model, lambda model: (model(X) - y).square().mean()


def exact(model, closure, damping, relative):
    """From the Hessian in all parameters, built row by row."""
    names, shapes = zip(*[(name, each.shape) for name, each in model.named_parameters()], strict=True)
    flat = torch.cat([each.detach().flatten() for each in model.parameters()]).requires_grad_()

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        given = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(_Called(model, closure), {f"model.{n}": t for n, t in given.items()}, ())

    H = hessian(loss, flat).detach()
    D = flat.detach().abs()
    H = D[:, None] * H * D if relative else H
    damped = H + damping * torch.eye(len(H)).double()
    return {
        "trace": float(H.trace()),
        "frobenius": float(H.norm()),
        "largest": float(torch.linalg.eigvalsh(H)[-1]),
        "log_determinant": float(torch.linalg.slogdet(damped)[1]),
    }


class _Called(nn.Module):
    def __init__(self, model, closure):
        super().__init__()
        self.model, self.closure = model, closure

    def forward(self):
        return self.closure(self.model)


@pytest.mark.parametrize("relative", [False, True])
def test_small_models_are_measured_exactly(relative):
    model, closure = network()
    found = sharpness(model, closure, relative=relative, damping=0.1)
    for name, value in exact(model, closure, 0.1, relative).items():
        assert getattr(found, name).value == pytest.approx(value, rel=1e-9)
        assert getattr(found, name).error == 0.0
    assert found.products == found.parameters == 31


@pytest.mark.parametrize("relative", [False, True])
def test_estimates_lie_within_four_standard_errors_which_shrink(relative):
    model, closure = network(width=2)
    settings = {"relative": relative, "damping": 0.1, "steps": 13, "dense": 0}  # a step for each parameter
    few, many = (sharpness(model, closure, samples=count, **settings) for count in (10, 120))
    for name, value in exact(model, closure, 0.1, relative).items():
        if name != "largest":
            assert abs(getattr(many, name).value - value) <= 4 * getattr(many, name).error
            assert 0 < getattr(many, name).error < 0.5 * getattr(few, name).error
    assert many.largest.value == pytest.approx(exact(model, closure, 0.1, relative)["largest"], rel=1e-6)


class Factors(nn.Module):
    """`½ Σ (x y - 1)²`: `x ⊙ c, y / c` is the same function."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = nn.Parameter(x), nn.Parameter(y)

    def forward(self):
        return 0.5 * ((self.x * self.y).sum() - 1).square() + (self.x * self.y).square().sum()


def test_what_a_rescaling_that_keeps_the_loss_changes():
    torch.manual_seed(0)
    x, y, c = torch.randn(3).double(), torch.randn(3).double(), torch.tensor([3.0, 0.5, 2.0]).double()
    loss = lambda model: model()  # noqa: E731
    before, after = (sharpness(Factors(*each), loss) for each in ((x, y), (x * c, y / c)))
    assert after.log_determinant.value == pytest.approx(before.log_determinant.value, abs=1e-10)
    for name in MEASURES[:3]:
        assert not 0.5 < getattr(after, name).value / getattr(before, name).value < 2
    before, after = (sharpness(Factors(*each), loss, relative=True) for each in ((x, y), (x * c, y / c)))
    for name in MEASURES:
        assert getattr(after, name).value == pytest.approx(getattr(before, name).value, rel=1e-10)


def test_frozen_parameters_gradients_and_linear_losses():
    model = nn.Linear(3, 1).double()
    model.bias.requires_grad_(False)
    for dense in (0, 256):
        found = sharpness(model, lambda model: model(torch.ones(2, 3).double()).sum(), dense=dense)
        assert [found.trace.value, found.frobenius.value, found.largest.value] == [0, 0, 0]
        assert found.log_determinant.value == -math.inf
        assert found.parameters == 3
    assert model.weight.grad is None


@pytest.mark.parametrize(
    ("closure", "settings", "message"),
    [
        (lambda model: model(torch.ones(2, 3)).sum(), {"samples": 1}, "expected 2 samples and 2 steps"),
        (lambda model: model(torch.ones(2, 3)), {}, r"one finite number; found shape \(2, 1\)"),
        (lambda model: model(torch.ones(2, 3)).sum() * math.inf, {}, "one finite number; found"),
    ],
)
def test_bad_input_is_refused(closure, settings, message):
    with pytest.raises(InputError, match=message):
        sharpness(nn.Linear(3, 1), closure, **settings)


def test_a_frozen_model_is_refused():
    with pytest.raises(InputError, match="expected a model with trained parameters"):
        sharpness(nn.Linear(3, 1).requires_grad_(False), lambda model: model(torch.ones(2, 3)).sum())
