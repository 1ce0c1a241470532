"""Deep ReLU networks have surprisingly simple polytopes (Fan et al. 2023)."""

from dataclasses import dataclass
from math import comb

import torch
from torch import nn

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.gallery.literature.training import train
from equipoise.measure import layer_regions, plane_regions
from equipoise.networks import mlp


@dataclass(frozen=True)
class Polytopes:
    """Random layers of `neurons` in `dimensions`, and networks of two inputs, at the start and trained."""

    shapes: tuple[tuple[int, int], ...] = ((10, 2), (6, 3))
    widths: tuple[tuple[int, ...], ...] = ((2, 12, 12, 1), (2, 10, 10, 10, 1))
    side: float = 6.0
    steps: int = 1500


def expected_facets(neurons: int, dimensions: int) -> float:
    """`2n Σ_{i<d} C(n-1, i) / Σ_{i≤d} C(n, i)`, for hyperplanes in general position."""
    cells = sum(comb(neurons, i) for i in range(dimensions + 1))
    return 2 * neurons * sum(comb(neurons - 1, i) for i in range(dimensions)) / cells


def measure(case: PaperCase[Polytopes]) -> Outcome:
    """Mean facets of one layer against the formula; of deep networks at the start and after training."""
    generator, errors, means = case.generator(), [], []
    figures, curves = [], []
    for neurons, dimensions in case.setting.shapes:
        weight = torch.randn(neurons, dimensions, generator=generator, dtype=torch.float64)
        found = layer_regions(weight, torch.randn(neurons, generator=generator, dtype=torch.float64))
        expected = expected_facets(neurons, dimensions)
        errors.append(abs(found.mean_facets - expected))
        name = f"mean facets, one layer of {neurons} neurons in {dimensions} dimensions"
        figures.append(Comparison(name, found.mean_facets, f"{expected:.4f} by the formula"))
    for widths in case.setting.widths:
        model = mlp(widths, bias=True, init="kaiming", seed=case.seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3, generator=generator)
        states = [mean_on_square(model, case.setting.side)]
        fit_rings(case, model)
        states.append(mean_on_square(model, case.setting.side))
        means += states
        name = "-".join(map(str, widths))
        figures += [Comparison(f"mean edges, {name}, {when}", state) for when, state in zip(("start", "end"), states)]  # noqa: B905
        curves.append(Curve(name, [(0.0, states[0]), (float(case.setting.steps), states[1])]))
    return Outcome((max(errors), max(means)), figures, curves)


def mean_on_square(model: nn.Module, side: float) -> float:
    """Mean edges of the regions inside a square around the origin."""
    corner, across = torch.full((2,), -side / 2).double(), torch.tensor([side, 0.0]).double()
    return plane_regions(model, corner, across, across.flip(0)).mean_facets


def fit_rings(case: PaperCase[Polytopes], model: nn.Module) -> None:
    """Train on two classes that alternate with the distance from the origin."""
    X = 3 * (2 * torch.rand(200, 2, generator=case.generator(1), dtype=torch.float64) - 1)
    y = torch.sign(torch.sin(2 * X.norm(dim=1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = lambda scores, labels: nn.functional.softplus(-labels * scores[:, 0]).mean()  # noqa: E731
    train(case, model, optimizer, loss, (X, y), steps=case.setting.steps, every=case.setting.steps, name="rings")


PAPER = Paper(
    key="fan2023deep",
    claim="The regions of a ReLU network have few facets: in the mean less than 2d for one layer, and as few for deep "
    "networks, trained or not.",
    basis="The mean for one layer in general position is derived here from Zaslavsky's count (its limit is 2d); the "
    "paper's own bounds were not compared. Deep networks are measured on two inputs, on regions that do not touch the "
    "border of the square.",
    quick=Polytopes(),
    criteria=(
        Criterion(
            "largest difference of the mean facets of one layer from 2n Σ_{i<d} C(n-1, i) / Σ_{i≤d} C(n, i)",
            "≤",
            1e-12,
            "Both are quotients of the same integers: rounding of one division.",
        ),
        Criterion(
            "largest mean number of edges over deep networks, at the start and trained",
            "≤",
            4.5,
            "2d = 4 is the limit for lines in a plane; regions on the border, which have fewer edges, are left out "
            "here, so that half an edge more is allowed.",
        ),
    ),
    measure=measure,
    picture=Picture("step", "mean edges of a region", logarithmic=False, level=4.0),
)
