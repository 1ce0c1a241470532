"""On scale-invariant sharpness measures (Tahmasebi et al. 2023)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Curve, Outcome, Paper, PaperCase
from equipoise.measure import HessianSharpness, sharpness


@dataclass(frozen=True)
class Rescaling:
    """A loss of `x ⊙ y`, at `(x, y)` and at `(x ⊙ c, y / c)`."""

    size: int = 3
    largest: float = 5.0
    points: int = 9


class ElementwiseProduct(nn.Module):
    """`½ (Σ x y - 1)² + Σ (x y)²`."""

    def __init__(self, x: Tensor, y: Tensor):
        super().__init__()
        self.x, self.y = nn.Parameter(x), nn.Parameter(y)

    def forward(self) -> Tensor:
        """The loss."""
        product = self.x * self.y
        return 0.5 * (product.sum() - 1).square() + product.square().sum()


def measure(case: PaperCase[Rescaling]) -> Outcome:
    """Change of the determinant, least change of the others, change of the relative ones."""
    setting, generator = case.setting, case.generator()
    x, y, tilt = (1 + torch.rand(setting.size, generator=generator, dtype=torch.float64) for _ in range(3))
    scales = [setting.largest ** (place / (setting.points - 1)) for place in range(setting.points)]
    plain, relative = (
        [_measured(x * scale * tilt, y / scale / tilt, kind) for scale in scales] for kind in (False, True)
    )
    start = _measured(x, y, False), _measured(x, y, True)
    changes = [_ratios(plain[-1], start[0])[name] for name in ("trace", "frobenius", "largest")]
    values = (
        max(abs(each.log_determinant.value - start[0].log_determinant.value) for each in plain),
        min(max(change, 1 / change) for change in changes),
        max(abs(change - 1) for each in relative for change in _ratios(each, start[1]).values()),
    )
    curves = [
        Curve(f"{name}{kind}", [(scale, getattr(each, name).value) for scale, each in zip(scales, found, strict=True)])
        for kind, found in (("", plain), (", relative", relative))
        for name in ("trace", "frobenius", "largest")
    ]
    case.log(scales=scales, traces=[each.trace.value for each in plain])
    return Outcome(values, curves=curves)


def _measured(x: Tensor, y: Tensor, relative: bool) -> HessianSharpness:
    return sharpness(ElementwiseProduct(x, y), lambda model: model(), relative=relative)


def _ratios(after: HessianSharpness, before: HessianSharpness) -> dict[str, float]:
    names = ("trace", "frobenius", "largest")
    return {name: getattr(after, name).value / getattr(before, name).value for name in names}


PAPER = Paper(
    key="tahmasebi2023scale",
    claim="Trace, Frobenius norm and largest eigenvalue of the Hessian change under rescalings that keep the function; "
    "its determinant does not, nor do the measures of diag|w| H diag|w|.",
    basis="Recalled from the abstract; derived: H becomes T⁻ᵀ H T⁻¹, with det T = 1, and diag|w| cancels T.",
    quick=Rescaling(),
    criteria=(
        Criterion(
            "change of log det H, the largest", "≤", 1e-10, "Rounding, with room for it to add up: exact in arithmetic."
        ),
        Criterion(
            "least change of trace, Frobenius norm and largest eigenvalue, as a factor, at a scale of 5",
            "≥",
            2.0,
            "With entries in [1, 2] and c ≥ 5 the trace grows from 8 a coordinate at most to 25 at least.",
        ),
        Criterion(
            "relative change of the measures of diag|w| H diag|w|", "≤", 1e-10, "Rounding, with room for it to add up."
        ),
    ),
    measure=measure,
    picture=Picture("scale c", "measure", logarithmic_across=True),
    sampled=True,
)
