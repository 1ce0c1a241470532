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
    "conv1d",
    "conv2d",
    "conv3d",
    "parameter",
    "other",
)
Names = str | re.Pattern[str] | Sequence[str | re.Pattern[str]]


def name_filter(names: Names | None) -> Callable[[Collection[str]], bool]:
    """Whether any of the names of a row is asked for: a glob matches all of a name, a regular expression a part of it.

    A regular expression is a compiled pattern, or text after `re:`. Raises `InputError` for one that does not compile.

    >>> wanted = name_filter(["*.mlp.*", "re:attn[.]c_(attn|proj)"])
    >>> wanted(["h.0.mlp.c_fc.weight"]), wanted(["h.0.attn.c_proj.weight"]), wanted(["wte.weight"])
    (True, True, False)
    """
    if names is None:
        return lambda _: True
    patterns = [_pattern(name) for name in ([names] if isinstance(names, str | re.Pattern) else names)]
    return lambda found: any(pattern.search(name) for pattern in patterns for name in found)


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
