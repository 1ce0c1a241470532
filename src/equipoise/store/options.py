"""`config.toml` of a run: the options of the command that made it, to be read, edited and passed to `--config`."""

import json
from collections.abc import Mapping

CONFIG = "config.toml"


def options_text(options: Mapping[str, object]) -> str:
    """Options as TOML; those that are None have no line, and keep their defaults.

    Args:
        options: text, finite numbers, true or false, by name.

    Returns:
        A line for each.

    >>> print(options_text({"data": "mnist", "n": None, "scale": 0.5, "bias": False}), end="")
    data = "mnist"
    scale = 0.5
    bias = false
    """
    return "".join(f"{name} = {_literal(value)}\n" for name, value in options.items() if value is not None)


def _literal(value: object) -> str:
    """A value of TOML, whose plain values are written as those of JSON; but DEL is escaped, and Unicode is not."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
