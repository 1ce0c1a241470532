"""A certificate as text, and back from JSON."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields as fields_of
from typing import Any, NamedTuple, TypeAlias, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from equipoise.errors import InputError
from equipoise.theorems.claims import Assumption, Claim
from equipoise.theorems.recheck import Fingerprint

T = TypeVar("T", Assumption, Claim, Fingerprint)
Json: TypeAlias = Mapping[str, Any]


class Parsed(NamedTuple):
    """The fields of a certificate that was read; `stated` is its own account of what follows from them."""

    assumptions: tuple[Assumption, ...]
    claims: tuple[Claim, ...]
    notes: tuple[str, ...]
    subject: Fingerprint
    stated: dict[str, object]


def text(verdict: str, assumptions: Sequence[Assumption], claims: Sequence[Claim], notes: Sequence[str]) -> str:
    """The verdict, a table of assumptions, a table of claims, and the notes."""
    return "\n".join([verdict, _printed(_assumption_rows(assumptions)), _printed(_claim_rows(claims)), *notes])


def parse(stored: Json) -> Parsed:
    """The fields of a certificate from its JSON.

    Raises:
        InputError: for anything that is no certificate.
    """
    try:
        return Parsed(
            assumptions=tuple(_record(Assumption, found) for found in stored["assumptions"]),
            claims=tuple(_record(Claim, found) for found in stored["claims"]),
            notes=tuple(stored["notes"]),
            subject=_record(Fingerprint, stored["subject"]),
            stated=verdicts(stored),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            expected="the JSON of a certificate",
            found=f"{type(error).__name__}: {error}",
            remedy="pass what equipoise certify DIR --json printed, of this version",
        ) from None


def verdicts(stored: Json) -> dict[str, object]:
    """The verdicts in the JSON of a certificate: whether it holds, what has failed, and of every claim likewise."""
    found: dict[str, object] = {name: stored.get(name) for name in ("holds", "failed", "references")}
    for claim in stored["claims"]:
        found |= {f"claim {claim['name']}: {name}": claim.get(name) for name in ("informative", "holds")}
    return found


def _record(kind: type[T], stored: Json) -> T:
    """A dataclass from its JSON: lists become tuples again, and null a figure that was not finite where one must be."""
    values = {field.name: stored[field.name] for field in fields_of(kind)}
    for name in ("measured", "bound", "trivial") if kind is Claim else ():
        values[name] = math.nan if values[name] is None else values[name]
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**plain)


def _assumption_rows(assumptions: Sequence[Assumption]) -> Table:
    table = Table("assumption", "standing", "measured", "tolerance", "compared", box=box.SIMPLE)
    for found in assumptions:
        table.add_row(found.name, found.standing, _figure(found.measured), _figure(found.tolerance), found.why)
    return table


def _claim_rows(claims: Sequence[Claim]) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("claim", no_wrap=True)
    for column in ("theorem", "quantity", "measured", "", "bound", "standing", "holds"):
        table.add_column(column)
    for claim in claims:
        figures = (_figure(claim.measured), claim.relation, _figure(claim.bound))
        holds = ("yes" if claim.informative else "trivially") if claim.holds else "NO"
        table.add_row(claim.name, claim.theorem, claim.quantity, *figures, claim.standing, holds)
    return table


def _printed(table: Table) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
