"""Whether a gradient that breaks a law came so from `backward()`, or was changed between it and the step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from equipoise.laws.check import tolerance
from equipoise.laws.evaluate import LawReadings


@dataclass(frozen=True)
class Judgement:
    """By law, how many times its residual exceeds rounding, of those that can be judged.

    `changed` were kept by `backward()` and are broken at the step; of `unconfirmed` ones it is not known who broke
    them.
    """

    excess: Mapping[str, float]
    changed: tuple[str, ...] = ()
    unconfirmed: tuple[str, ...] = ()


def judge(step: Mapping[str, float], backward: Mapping[str, float] | None, judged: frozenset[str]) -> Judgement:
    """Compare the excesses at a step, and where they exceed rounding those that the backward pass left.

    Without the latter nothing is said of a law that is broken.
    """
    excess, changed, unconfirmed = {}, [], []
    for name, value in step.items():
        if name not in judged or not math.isfinite(value):
            continue
        if value <= 1:
            excess[name] = value
        elif backward is None:
            unconfirmed.append(name)
        elif backward[name] <= 1:
            changed.append(name)
        else:
            excess[name] = backward[name] if math.isfinite(backward[name]) else value
    return Judgement(excess, tuple(changed), tuple(unconfirmed))


def excesses(readings: LawReadings, precision: torch.dtype | None) -> dict[str, float]:
    """The residual of every exact law in units of what rounding explains."""
    found = zip(readings.laws, readings.dtypes, readings.residuals, strict=True)
    return {law.name: each / tolerance(precision, dtype, law.precision) for law, dtype, each in found if law.exact}
