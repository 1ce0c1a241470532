"""The asymmetric maximum margin bias of quasi-homogeneous networks (Kunin, Yamamura, Ma & Ganguli 2023)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.integrate.goals import LogLoss
from equipoise.integrate.loop import flow
from equipoise.integrate.run import Run
from equipoise.measure import euler_residual, quasi_homogeneity
from equipoise.networks import mlp


@dataclass(frozen=True)
class TwoInputs:
    """`θ₁ x₁ + u v x₂` and `θ₁ x₁ + θ₂ x₂` on the points ±(1, 1), from random positive weights."""

    log_loss: float = -100.0
    marks: tuple[float, ...] = (-10.0, -30.0)
    width: int = 8


class ProductOfTwo(nn.Module):
    """`θ₁ x₁ + u v x₂`: exponents 1, ½ and ½."""

    def __init__(self, weights: Tensor):
        super().__init__()
        self.direct, self.u, self.v = (nn.Parameter(weight.clone()) for weight in weights)

    def forward(self, x: Float[Tensor, "n 2"]) -> Float[Tensor, "n 1"]:
        """The score."""
        return self.direct * x[:, :1] + self.u * self.v * x[:, 1:]


class SumOfTwo(nn.Module):
    """`θ₁ x₁ + θ₂ x₂`: homogeneous."""

    def __init__(self, weights: Tensor):
        super().__init__()
        self.direct, self.other = nn.Parameter(weights[0].clone()), nn.Parameter(weights[1] * weights[2])

    def forward(self, x: Float[Tensor, "n 2"]) -> Float[Tensor, "n 1"]:
        """The score."""
        return self.direct * x[:, :1] + self.other * x[:, 1:]


def measure(case: PaperCase[TwoInputs]) -> Outcome:
    """Ratio of the direct weight to the product at the end, that of the homogeneous one, and Euler's identity."""
    setting, generator = case.setting, case.generator()
    weights = 0.4 + 0.2 * torch.rand(3, generator=generator, dtype=torch.float64)
    product, plain = flowed(case, ProductOfTwo(weights)), flowed(case, SumOfTwo(weights))
    ratios = [float(w["direct"] / (w["u"] * w["v"])) for w in states(product, setting)]
    others = [float(w["direct"] / w["other"]) for w in states(plain, setting)]
    levels = [0.0, *setting.marks, setting.log_loss]
    network = mlp([3, setting.width, setting.width, 1], bias=True, seed=case.seed)
    inputs = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    found = quasi_homogeneity(network, inputs)
    assert found.exponents is not None
    # weights and the network with drawn biases: at zero biases the identity would not see their exponents
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=generator)
    euler = euler_residual(network, inputs, found.exponents)
    figures = [
        Comparison(f"θ₁/(uv) at log R = {level:g}", ratio) for level, ratio in zip(levels[1:], ratios[1:], strict=True)
    ]
    figures += [Comparison(f"exponent of {name}", float(value)) for name, value in found.exponents.items()]
    curves = [
        Curve("quasi-homogeneous", [(-level, ratio) for level, ratio in zip(levels, ratios, strict=True)]),
        Curve("homogeneous", [(-level, ratio) for level, ratio in zip(levels, others, strict=True)]),
    ]
    moved = abs(others[-1] / others[1] - 1)
    return Outcome((ratios[-1], moved, euler), figures, curves)


def flowed(case: PaperCase[TwoInputs], model: nn.Module) -> Run:
    """Gradient flow of the exponential loss on two points."""
    X, y = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).double(), torch.tensor([1.0, -1.0]).double()
    setting = case.setting
    return flow(model, (X, y), until=LogLoss(setting.log_loss), save_at=[LogLoss(mark) for mark in setting.marks])


def states(run: Run, setting: TwoInputs) -> list[dict[str, Tensor]]:
    """The weights at the start, at the marks and at the end."""
    return [
        dict(run.initial),
        *(dict(weights) for weights in list(run.saved.values())[: len(setting.marks)]),
        dict(run.final),
    ]


PAPER = Paper(
    key="kunin2023asymmetric",
    claim="Gradient flow of a quasi-homogeneous network maximises a margin that sees only the parameters of the "
    "largest exponent: of θ₁x₁ + uvx₂ it gives up θ₁, where the homogeneous θ₁x₁ + θ₂x₂ keeps both.",
    basis="Read in the abstract; the exponents are derived by the linear programme of docs/theory.md, T11.",
    quick=TwoInputs(),
    criteria=(
        Criterion(
            "θ₁/(uv) at log R = -100",
            "≤",
            0.1,
            "It falls to zero like the inverse of the growth, from about 1.5 to 3 at the start: a tenth is far below "
            "the 1 at which both would have the same margin.",
        ),
        Criterion(
            "relative change of θ₁/θ₂ of the homogeneous network from log R = -10 to -100",
            "≤",
            0.25,
            "Both gain the same amount from there, so that the ratio tends to 1 from where it is: the start is a part "
            "of some tenths of what the weights are at -10.",
        ),
        Criterion(
            "|Σ λ ⟨θ, ∂f⟩ - f| over |f| for a network with biases, at derived exponents",
            "≤",
            1e-12,
            "Euler's identity, exact for the right exponents: rounding of a few layers.",
        ),
    ),
    measure=measure,
    picture=Picture("-log R", "ratio of the two weights"),
)
