"""Errors in what was passed in: one line that says expected, found, and what to type."""

_LONGEST = 2000  # characters of what was expected, found, or is to be typed


def visible(text: str) -> str:
    r"""The text with everything that does not show escaped: control characters, marks of direction, lone surrogates.

    The result is one line that a terminal prints unchanged and any encoding of Unicode can write.

    >>> print(visible("layer.0 \x1b[2J\u202e ok"))
    layer.0 \x1b[2J\u202e ok
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _part(text: str) -> str:
    """A part of a message: on one line, visible, and not without end."""
    said = visible(" ".join(text.splitlines()))
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST // 2]} … {said[-_LONGEST // 4 :]}"


class EquipoiseError(Exception):
    """Base of every error that Equipoise raises on purpose.

    The message is one line: what was expected, what was found, and the remedy.

    >>> print(InputError(expected="labels in {-1, +1}", found="label 7", remedy="pass classes=(0, 7)"))
    expected labels in {-1, +1}; found label 7; pass classes=(0, 7)
    """

    def __init__(self, *, expected: str, found: str, remedy: str):
        self.expected, self.found, self.remedy = map(_part, (expected, found, remedy))
        super().__init__(f"expected {self.expected}; found {self.found}; {self.remedy}")


class InputError(EquipoiseError, ValueError):
    """An argument, a data set or a file that cannot be used as it is."""


class CaptureError(EquipoiseError):
    """A model whose computation cannot be read, with the reason."""


class StoreError(EquipoiseError, OSError):
    """A run folder that cannot be written or read."""


class WorkerDied(EquipoiseError):
    """A job of a sweep or of a gallery whose worker processes die again and again."""


class Interrupted(KeyboardInterrupt):
    """A flow that was interrupted, with what to type to go on."""


def one_line(error: Exception) -> str:
    """The message of another library's exception, in one line.

    >>> one_line(ValueError("two\\nlines"))
    'ValueError: two'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return visible(f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:300])
