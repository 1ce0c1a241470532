"""When the signs of a network became constant along a run, so that `ρ` was a fixed network from there (T5.2)."""

import math
from itertools import pairwise

import pandas as pd
import torch
from torch import Tensor

from equipoise.arguments import checked
from equipoise.errors import InputError
from equipoise.modes import default_modes
from equipoise.theorems.direction import LimitDirection, extrapolate
from equipoise.theorems.evidence_builder import FinishedRun, run_points
from equipoise.theorems.weights import Point


@checked
@default_modes()
def sign_changes(run: FinishedRun) -> pd.DataFrame:
    """For each parameter: when its signs changed last, and how many may still change; one row each.

    `last_change` is the growth of the first saved point at which every sign is the final one (0: none ever changed),
    `recorded` what the run has on record of the same, step by step (`Signs`; NaN where it has nothing, or no change),
    `changing` the share of weights whose sign changed between the last two saved points, `undecided` the number that
    are zero at the limit of `w/‖w‖` within its uncertainty (dead neurons, biases above the first layer; NaN where the
    run saved too few points to see a limit).

    >>> from equipoise import data, flow, networks
    >>> run = flow(networks.mlp([5, 4, 1]), data.load("separable", n=20, d=5), until="growth=1")
    >>> sign_changes(run).columns.tolist()
    ['parameter', 'weights', 'last_change', 'recorded', 'changing', 'undecided']
    """
    points = run_points(run)
    direction = extrapolate(points)
    rows = []
    for name, tensor in points[-1].weights.items():
        last, changing = _changes(name, points)
        rows.append((name, tensor.numel(), last, _recorded(run, name), changing, _undecided(direction, name)))
    names = ["parameter", "weights", "last_change", "recorded", "changing", "undecided"]
    return pd.DataFrame(rows, columns=names).astype({"recorded": float})


def _recorded(run: FinishedRun, name: str) -> float | None:
    """The clock at the last change of sign of a parameter; None where `Signs` was not observed."""
    try:
        return run.last("signs", "last_sign_change", name)
    except InputError:
        return None


def _changes(name: str, points: tuple[Point, ...]) -> tuple[float, float]:
    """The growth from which the signs are the final ones, and the share that changed in the last stretch."""
    final = _signs(points[-1].weights[name])
    moved = [_signs(point.weights[name]) != final for point in points]
    last = next((after.growth for (_, after), m in _backwards(points, moved) if bool(m.any())), 0.0)
    return last, float(moved[-2].double().mean()) if len(moved) > 1 and moved[-2].numel() else 0.0


def _backwards(points: tuple[Point, ...], moved: list[Tensor]) -> list[tuple[tuple[Point, Point], Tensor]]:
    return list(zip(pairwise(points), moved[:-1], strict=True))[::-1]


def _signs(weights: Tensor) -> Tensor:
    return torch.where(weights < 0, -1, 1)


def _undecided(direction: LimitDirection | None, name: str) -> float:
    if direction is None or direction.rate is None:
        return math.nan
    return float((~direction.decided()[name]).sum())
