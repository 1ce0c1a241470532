"""The latest record of a quantity, or what was recorded instead."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from equipoise.errors import InputError
from equipoise.store.database import Record

_LISTED = 12  # names in a message


def latest(records: Sequence[Record], observer: str, quantity: str, place: str) -> float | None:
    """The value of the last record of that observer, quantity and place; None where there is none.

    Args:
        records: in the order in which they were made.
        observer: its name.
        quantity: that it records.
        place: a parameter, a layer or a law; empty for the whole network.

    Returns:
        The value.
    """
    wanted = (observer, quantity, place)
    matching = (each.value for each in reversed(records) if (each.observer, each.quantity, each.place) == wanted)
    return next(matching, None)


def require_latest(records: Sequence[Record], observer: str, quantity: str, place: str) -> float | None:
    """The same, for those who ask by a name: None only before the first record.

    Args:
        records: as in `latest`.
        observer: its name.
        quantity: that it records.
        place: of it.

    Returns:
        The value.

    Raises:
        InputError: for an observer, a quantity or a place that was not recorded, naming those that were.

    >>> record = Record(1, 0.0, 0.0, 0.0, "spectrum", "layer1", "stable_rank", 1.5)
    >>> require_latest([record], "spectrum", "stable_rnk", "layer1")
    Traceback (most recent call last):
        ...
    equipoise.errors.InputError: expected a quantity that spectrum recorded; found 'stable_rnk'; pass 'stable_rank'
    """
    value = latest(records, observer, quantity, place)
    if value is not None or not records:
        return value
    mine = [record for record in records if record.observer == observer]
    _require("an observer of this training", observer, (record.observer for record in records))
    _require(f"a quantity that {observer} recorded", quantity, (record.quantity for record in mine))
    places = (record.place for record in mine if record.quantity == quantity)
    _require(f"a place where {observer} recorded {quantity}", place, places)
    return None


def _require(expected: str, name: str, known: Iterable[str]) -> None:
    names = list(dict.fromkeys(known))
    if name in names:
        return
    close = get_close_matches(name, names, n=1)
    listed = ", ".join(map(repr, names[:_LISTED])) + (
        f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    )
    remedy = f"pass {close[0]!r}" if close else f"pass one of {listed}"
    raise InputError(expected=expected, found=repr(name), remedy=remedy)
