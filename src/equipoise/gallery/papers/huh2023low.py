"""The low-rank simplicity bias (Huh et al. 2021): products of random matrices lose effective rank with depth."""

from dataclasses import dataclass

import torch

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Curve, Outcome, Paper, PaperCase
from equipoise.measure.spectrum import spectrum


@dataclass(frozen=True)
class RandomProduct:
    """A product of square Gaussian matrices."""

    width: int = 32
    depth: int = 16


def measure(case: PaperCase[RandomProduct]) -> Outcome:
    """The effective rank of the product at each depth."""
    generator, product, ranks = case.generator(), torch.eye(case.setting.width, dtype=torch.float64), []
    for depth in range(1, case.setting.depth + 1):
        product = torch.randn(product.shape, generator=generator, dtype=product.dtype) @ product
        ranks.append((float(depth), spectrum(product).effective_rank))
        case.log(depth=depth, effective_rank=ranks[-1][1])  # into the raw log
    return Outcome((ranks[-1][1] / ranks[0][1],), curves=[Curve("effective rank", ranks)])


PAPER = Paper(
    key="huh2023low",
    claim="The effective rank of a product of random matrices falls with the number of factors.",
    basis="The paper's abstract and its theorem 1, in the form that needs no training.",
    quick=RandomProduct(),
    criteria=(
        Criterion(
            "effective rank at the largest depth, of that of one matrix",
            "≤",
            0.5,
            "Lyapunov exponents give σ_i ∝ (1 - i/w)^(L/2), so e^(8/9)/9 = 0.27 of the width at L = 16; one matrix has "
            "0.87 of it. Half leaves room for fluctuations at a width of 32; no change would be 1.",
        ),
    ),
    measure=measure,
    picture=Picture("depth", "effective rank"),
    sampled=True,  # takes under a second: the test suite runs its first seed
)
