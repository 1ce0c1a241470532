"""Whether a certificate is about these artefacts, and right: made again and compared, nothing in it believed."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import zip_longest
from typing import Protocol, runtime_checkable

from torch import Tensor

from equipoise.theorems.claims import Assumption, Claim
from equipoise.theorems.evidence import Evidence

FIGURES_AGREE = 1e-6
"""Relative difference of two figures that another machine's rounding explains: conditioning times float64's 1e-16."""

_TEXTS = ("quantity", "statement")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.])")  # and not "T3.2", "0.1.weight"
_NEGLIGIBLE = 1e-9  # figures of rounding, as printed in a text, that another machine may print quite differently


@dataclass(frozen=True)
class Fingerprint:
    """SHA-256 of the final weights, the initial ones, those saved on the way and the data, and the loss's name.

    Over names, shapes and little-endian float64 bytes, in the order of the names; examples in their own order, with
    their weights where they have any. None where there is nothing.
    """

    weights: str
    initial: str | None
    points: str | None
    data: str
    example_weights: str | None
    loss: str


@runtime_checkable
class Certified(Protocol):
    """The parts of a certificate that are compared."""

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """As they were found."""
        ...

    @property
    def claims(self) -> tuple[Claim, ...]:
        """With bounds and measurements."""
        ...

    @property
    def subject(self) -> Fingerprint:
        """The fingerprint of its artefacts."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks in words."""
        ...

    @property
    def holds(self) -> bool:
        """Its verdict."""
        ...

    def verdicts(self) -> Mapping[str, object]:
        """Its verdicts on the whole and on every claim."""
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
    """Hashes of the artefacts that a certificate is about."""
    saved = {f"{point} {name}": tensor for point, at in evidence.saved.items() for name, tensor in at.items()}
    shares = evidence.example_weights
    return Fingerprint(
        weights=digest(evidence.final),
        initial=None if evidence.initial is None else digest(evidence.initial),
        points=digest(saved) if saved else None,
        data=digest({"X": evidence.X, "y": evidence.y}),
        example_weights=None
        if shares is None
        else digest({"w": shares.float()}),  # in another scale they round otherwise
        loss=evidence.loss.name,
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
    for part, found in vars(again.subject).items():
        stated = getattr(given.subject, part)
        if stated != found:
            yield f"{part}: {_short(stated)} in the certificate, {_short(found)} here"
    for kind, parts in (("assumption", "assumptions"), ("claim", "claims")):
        stated, found = (_by_name(getattr(certificate, parts)) for certificate in (given, again))
        for name in dict.fromkeys([*stated, *found]):
            yield from _compared(f"{kind} {name}", stated.get(name), found.get(name))
    yield from _verdicts(given, again)
    for stated, found in zip_longest(given.notes, again.notes):
        if stated is None or found is None or not _same_words(stated, found):
            yield f"note: {stated!r} in the certificate, {found!r} when made again"


def _verdicts(given: Certified, again: Certified) -> Iterator[str]:
    """The verdicts in the certificate that differ from those of the one made again; of the same claims."""
    stated, found = given.verdicts(), again.verdicts()
    for name, value in found.items():
        if name in stated and stated[name] != value:
            yield f"{name} {stated[name]} in the certificate, {value} when made again"


def _by_name(parts: tuple[Assumption, ...] | tuple[Claim, ...]) -> dict[str, Assumption | Claim]:
    """By name; of several of one name all, each but the first with its number."""
    found: dict[str, Assumption | Claim] = {}
    for part in parts:
        times = sum(name == part.name or name.startswith(f"{part.name} [") for name in found)
        found[f"{part.name} [{times + 1}]" if times else part.name] = part
    return found


def _compared(what: str, stated: Assumption | Claim | None, found: Assumption | Claim | None) -> Iterator[str]:
    if stated is None or found is None:
        yield f"{what}: {'not there when made again' if found is None else 'missing'}"
        return
    for name, value in vars(found).items():
        other = getattr(stated, name)
        if name == "why":  # the worst of several laws, and figures of rounding: machines differ in these
            continue
        if not (_same_words(str(other), value) if name in _TEXTS else _agree(value, other)):
            yield f"{what}: {name} {other} in the certificate, {value} when made again"


def _agree(value: object, other: object) -> bool:
    """Whether two entries are one; JSON has null for a figure that is not finite, and for no other."""
    if not isinstance(value, float):
        return value == other
    if not math.isfinite(value):
        return other is None or str(other) == str(value)
    return isinstance(other, (int, float)) and math.isclose(value, other, rel_tol=FIGURES_AGREE, abs_tol=1e-12)


def _same_words(one: str, other: str) -> bool:
    """Whether two texts say the same: word for word, and figures up to one in the last digit that is printed.

    >>> _same_words("log R = -12.34, right to 2.1e-13", "log R = -12.35, right to 5.0e-13")
    True
    >>> _same_words("T4.2, the worst of 3 laws", "T4.3, the worst of 3 laws"), _same_words("of 3 laws", "of 4 laws")
    (False, False)
    """
    figures = [_NUMBER.findall(text) for text in (one, other)]
    return _NUMBER.sub("#", one) == _NUMBER.sub("#", other) and all(map(_same_figure, *figures))


def _same_figure(one: str, other: str) -> bool:
    if one == other:
        return True
    values = [Decimal(text.replace(",", "")) for text in (one, other)]
    written = any(not text.lstrip("+-").replace(",", "").isdigit() for text in (one, other))  # whole numbers are counts
    last = max(Decimal(1).scaleb(int(value.as_tuple().exponent)) for value in values)
    return written and (abs(values[0] - values[1]) <= last or max(map(abs, values)) <= _NEGLIGIBLE)


def _short(text: str | None) -> str:
    return "none" if text is None else text[:12]
