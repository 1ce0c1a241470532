"""Whether a certificate is about these artefacts, and right: made again and compared, nothing in it believed."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from equipoise.theorems.assumptions import Assumption
from equipoise.theorems.claims import Claim
from equipoise.theorems.evidence import Evidence

FIGURES_AGREE = 1e-6
"""Relative difference of two figures that another machine's rounding explains: conditioning times float64's 1e-16."""

_WORDS = ("why", "quantity", "statement")


@dataclass(frozen=True)
class Fingerprint:
    """SHA-256 of the final weights, of the initial ones (None where not known) and of the data, and the loss's name.

    Over names, shapes and little-endian float64 bytes, in the order of the names.
    """

    weights: str
    initial: str | None
    data: str
    loss: str


@runtime_checkable
class Certified(Protocol):
    """What is compared of two certificates."""

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """As they were found."""
        ...

    @property
    def claims(self) -> tuple[Claim, ...]:
        """With bound and measurement."""
        ...

    @property
    def subject(self) -> Fingerprint:
        """What it is about."""
        ...

    @property
    def holds(self) -> bool:
        """Its verdict."""
        ...


@dataclass(frozen=True)
class Recheck:
    """The verdict of the certificate made again, and everything in which the given one differs from it."""

    again: Certified
    differences: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the new certificate holds and the given one says the same."""
        return self.again.holds and not self.differences

    def __str__(self) -> str:
        if not self.differences:
            return f"The certificate is that of these artefacts, and {'holds' if self.holds else 'does not hold'}"
        return "\n".join(["The certificate is not that of these artefacts:", *self.differences])


def fingerprint(evidence: Evidence) -> Fingerprint:
    """What a certificate is about."""
    initial = None if evidence.initial is None else digest(evidence.initial)
    return Fingerprint(
        digest(evidence.final), initial, digest({"X": evidence.X, "y": evidence.y.double()}), evidence.loss.name
    )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float64 values.

    >>> import torch
    >>> one = digest({"w": torch.ones(2)})
    >>> one == digest({"w": torch.ones(2).double()}), one == digest({"v": torch.ones(2)})
    (True, False)
    """
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}{tuple(tensor.shape)}".encode())
        total.update(tensor.detach().double().cpu().contiguous().numpy().astype("<f8").tobytes())
    return total.hexdigest()


def compare(given: Certified, again: Certified) -> Recheck:
    """Everything in which a certificate differs from the one made again."""
    return Recheck(again, tuple(_differences(given, again)))


def _differences(given: Certified, again: Certified) -> Iterator[str]:
    for part in ("weights", "initial", "data", "loss"):
        stated, found = getattr(given.subject, part), getattr(again.subject, part)
        if stated != found:
            yield f"{part}: {_short(stated)} in the certificate, {_short(found)} here"
    for kind, parts in (("assumption", "assumptions"), ("claim", "claims")):
        stated, found = (_by_name(getattr(certificate, parts)) for certificate in (given, again))
        for name in stated.keys() | found.keys():
            yield from _compared(f"{kind} {name}", stated.get(name), found.get(name))


def _by_name(parts: tuple[Any, ...]) -> dict[str, Any]:
    return {part.name: part for part in parts}


def _compared(what: str, stated: Any, found: Any) -> Iterator[str]:
    if stated is None or found is None:
        yield f"{what}: {'not there when made again' if found is None else 'missing'}"
        return
    for name, value in vars(found).items():
        other = getattr(stated, name)
        if name not in _WORDS and not (_agree(value, other) if isinstance(value, float) else value == other):
            yield f"{what}: {name} {other} in the certificate, {value} when made again"


def _agree(value: float, other: Any) -> bool:
    """Whether two figures are one; JSON has null for a figure that is not finite, and for no other."""
    if not math.isfinite(value):
        return other is None or str(other) == str(value)
    return isinstance(other, (int, float)) and math.isclose(value, other, rel_tol=FIGURES_AGREE, abs_tol=1e-12)


def _short(text: str | None) -> str:
    return "none" if text is None else text[:12]
