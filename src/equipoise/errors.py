"""What goes wrong because of what was passed in: one line that says expected, found, and what to type."""


class EquipoiseError(Exception):
    """Base of every error that Equipoise raises on purpose.

    The message is one line: what was expected, what was found, and the remedy.

    >>> print(InputError(expected="labels in {-1, +1}", found="label 7", remedy="pass classes=(0, 7)"))
    expected labels in {-1, +1}; found label 7; pass classes=(0, 7)
    """

    def __init__(self, *, expected: str, found: str, remedy: str):
        self.expected, self.found, self.remedy = expected, found, remedy
        super().__init__(f"expected {expected}; found {found}; {remedy}")


class InputError(EquipoiseError, ValueError):
    """An argument, a data set or a file that cannot be used as it is."""


class CaptureError(EquipoiseError):
    """A model whose computation cannot be read, with the reason."""


class StoreError(EquipoiseError, OSError):
    """A run folder that cannot be written or read."""


class Interrupted(KeyboardInterrupt):
    """A flow that was interrupted, with what to type to go on."""


def one_line(error: Exception) -> str:
    """What another library's exception says, in one line.

    >>> one_line(ValueError("two\\nlines"))
    'ValueError: two'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:300]
