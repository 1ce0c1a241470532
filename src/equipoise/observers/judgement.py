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


def judge(
    step: LawReadings,
    backward: LawReadings | None,
    precision: torch.dtype | None,
    judged: frozenset[str],
    confirm: bool = True,
) -> Judgement:
    """Compare the residuals at a step, and where they exceed rounding those that the backward pass left.

    Without the latter nothing is said of a law that is broken, unless `confirm` is off.
    """
    excesses = _excesses(step, precision)
    before = None if backward is None else _excesses(backward, precision)
    excess, changed, unconfirmed = {}, [], []
    for name, value in excesses.items():
        if name not in judged or not math.isfinite(value):
            continue
        if value <= 1 or not confirm:
            excess[name] = value
        elif before is None:
            unconfirmed.append(name)
        elif before[name] <= 1:
            changed.append(name)
        else:
            excess[name] = before[name] if math.isfinite(before[name]) else value
    return Judgement(excess, tuple(changed), tuple(unconfirmed))


def _excesses(readings: LawReadings, precision: torch.dtype | None) -> dict[str, float]:
    """The residual of every exact law in units of what rounding explains."""
    found = zip(readings.laws, readings.dtypes, readings.residuals, strict=True)
    return {law.name: each / tolerance(precision, dtype, law.precision) for law, dtype, each in found if law.exact}
