"""Abide by the law and follow the flow (Marcotte, Gribonval & Peyré 2023): how many conservation laws there are."""

from dataclasses import dataclass

import torch

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Curve, Outcome, Paper, PaperCase
from equipoise.laws import invariances
from equipoise.laws.completeness import Completeness
from equipoise.networks import mlp


@dataclass(frozen=True)
class SmallNetworks:
    """Two-layer networks of random sizes, linear and ReLU."""

    networks: int = 3
    largest: int = 3


def measure(case: PaperCase[SmallNetworks]) -> Outcome:
    """The largest difference from the formula, and the most laws that were not found."""
    generator, off, missing, curves = case.generator(), [], [], []
    for linear in (True, False):
        points = []
        for place in range(case.setting.networks):
            n, r, m = (int(torch.randint(1, case.setting.largest + 1, (), generator=generator)) for _ in range(3))
            n = n if linear else max(n, 2)  # with one input, neurons of one sign are on together, and keep more laws
            model = mlp([n, r, m], linear_tail=2 if linear else 1, seed=case.seed + place)
            laws = invariances(model, torch.randn(4, n, generator=generator, dtype=torch.float64))
            counted = laws.completeness(seed=case.seed)
            assert isinstance(counted, Completeness)
            expected = formula(n, r, m) if linear else r
            off.append(abs(counted.possible - expected))
            missing.append(counted.missing)
            points.append((float(expected), float(counted.possible)))
            case.log(linear=linear, inputs=n, hidden=r, outputs=m, expected=expected, possible=counted.possible)
        curves.append(Curve("linear" if linear else "ReLU", sorted(points)))
    return Outcome((float(max(off)), float(max(missing))), curves=curves)


def formula(n: int, r: int, m: int) -> int:
    """Independent laws of `x ↦ V U x`, `U` of shape (r, n), `V` of (m, r), as functions of generic weights (T2.3)."""
    return r * (r + 1) // 2 if n + m >= r else (n + m) * r - (n + m) * (n + m - 1) // 2


PAPER = Paper(
    key="marcotte2023abide",
    claim="Two-layer linear networks have r(r+1)/2 independent conservation laws for r hidden units and n + m ≥ r, "
    "two-layer ReLU networks one for each hidden unit, and the known laws are all there are.",
    basis="Read in the paper; docs/theory.md T2.3. ReLU networks here have two inputs or more: with one, neurons whose "
    "weights have one sign are on for the same inputs, and keep the laws of a linear network among them.",
    quick=SmallNetworks(),
    criteria=(
        Criterion(
            "difference of the dimension of the Lie algebra from the paper's formula, the largest of random networks",
            "≤",
            0.0,
            "Both are integers: a count of dimensions and a formula.",
        ),
        Criterion(
            "conserved functions that no law of eq.invariances accounts for, the most of random networks",
            "≤",
            0.0,
            "Both are integers, and the paper proves that there are none.",
        ),
    ),
    measure=measure,
    picture=Picture("conservation laws by the formula", "by the Lie algebra", logarithmic=False),
)
