"""Which rows are asked for: by name, as globs or regular expressions, and by type."""

import re
from collections.abc import Callable, Collection, Sequence
from fnmatch import translate

from equipoise.errors import InputError

TYPES = (
    "linear",
    "embedding",
    "attention",
    "recurrent",
    "expert",
    "bilinear",
    "conv1d",
    "conv2d",
    "conv3d",
    "parameter",
    "other",
)
Names = str | re.Pattern[str] | Sequence[str | re.Pattern[str]]


def name_filter(names: Names | None) -> Callable[[Sequence[Collection[str]]], list[bool]]:
    """Which of the rows, each with all of its names, are asked for by name.

    A glob matches all of a name, a regular expression (a compiled pattern, or text after `re:`) a part of it. Brackets
    in a glob are what the table prints, `in_proj_weight[q]`, where some row is called so, and choices otherwise.

    Args:
        names: Globs or regular expressions; None asks for every row.

    Returns:
        A function of the names of all rows.

    Raises:
        InputError: For a regular expression that does not compile.

    >>> wanted = name_filter(["*.mlp.*", "re:attn[.]c_(attn|proj)", "in_proj[q]"])
    >>> wanted([["h.0.mlp.c_fc.weight"], ["h.0.attn.c_proj.weight"], ["wte.weight"], ["in_proj[q]"], ["in_projq"]])
    [True, True, False, True, False]
    """
    if names is None:
        return lambda rows: [True] * len(rows)
    several = [names] if isinstance(names, str | re.Pattern) else names
    readings = [[_pattern(reading) for reading in _readings(name)] for name in several]

    def wanted(rows: Sequence[Collection[str]]) -> list[bool]:
        found = [_first_that_matches(patterns, rows) for patterns in readings]
        return [any(hits) for hits in zip(*found, strict=True)] if found else [False] * len(rows)

    return wanted


def _readings(name: str | re.Pattern[str]) -> list[str | re.Pattern[str]]:
    """A glob with its brackets as letters, and then as choices of letters; anything else as it is."""
    if isinstance(name, re.Pattern) or name.startswith("re:") or "[" not in name:
        return [name]
    return [name.replace("[", "[[]"), name]


def _first_that_matches(patterns: Sequence[re.Pattern[str]], rows: Sequence[Collection[str]]) -> list[bool]:
    found: list[bool] = []
    for pattern in patterns:
        found = [any(pattern.search(name) for name in names) for names in rows]
        if any(found):
            break
    return found


def _pattern(name: str | re.Pattern[str]) -> re.Pattern[str]:
    if isinstance(name, re.Pattern):
        return name
    try:
        # translate anchors the end alone
        return re.compile(name[3:]) if name.startswith("re:") else re.compile(rf"\A{translate(name)}")
    except re.error as error:
        raise InputError(
            expected="a regular expression after re:", found=f"{name[3:]!r} ({error})", remedy="type a glob, as *.mlp.*"
        ) from None


def type_filter(types: str | Sequence[str] | None) -> Callable[[str], bool]:
    """Whether a type is asked for. Raises `InputError` for one that does not exist."""
    if types is None:
        return lambda _: True
    wanted = {types} if isinstance(types, str) else set(types)
    if unknown := sorted(wanted.difference(TYPES)):
        raise InputError(
            expected=f"types among {', '.join(TYPES)}", found=", ".join(unknown), remedy="pass one of them"
        )
    return wanted.__contains__
