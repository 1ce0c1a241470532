"""Names of layers and laws for narrow places: without what all share, and shortened from the left."""

from collections.abc import Iterable, Sequence
from itertools import takewhile

_SEPARATOR = " → "  # between the two sides of a law


def short_labels(names: Iterable[str], width: int | None = None) -> dict[str, str]:
    """Each name without the modules that all names begin with, and from the left no longer than `width`.

    Args:
        names: of parameters, layers or laws; a law names its two sides with an arrow between them.
        width: the most characters of a label.

    Returns:
        By name, its label; no two names have the same one, unless their last `width` characters agree.

    >>> short_labels(["encoder.layers.0.weight", "encoder.layers.1.weight"])
    {'encoder.layers.0.weight': '0.weight', 'encoder.layers.1.weight': '1.weight'}
    >>> short_labels(["encoder.layers.0.attention.weight", "decoder.weight"], width=18)
    {'encoder.layers.0.attention.weight': '…0.attention.weight', 'decoder.weight': 'decoder.weight'}
    """
    names = list(dict.fromkeys(names))
    sides = [side for name in names if name for side in name.split(_SEPARATOR)]
    prefix = common_prefix(sides)
    labels = {name: _SEPARATOR.join(side.removeprefix(prefix) for side in name.split(_SEPARATOR)) for name in names}
    return {name: _cut(label, width) for name, label in labels.items()}


def common_prefix(names: Sequence[str]) -> str:
    """The modules that all names begin with, with the dot after them; empty for a single name.

    Args:
        names: with dots between their parts.

    Returns:
        The prefix.
    """
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = takewhile(lambda parts: len(set(parts)) == 1, columns)
    return "".join(f"{parts[0]}." for parts in shared) if len(set(names)) > 1 else ""


def _cut(label: str, width: int | None) -> str:
    return label if width is None or len(label) <= width else f"…{label[-width:]}"
