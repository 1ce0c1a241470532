"""The application, and what its verbs share: one JSON line, one line of complaint, lists written `0,1`."""

import json
import os
import shlex
import sys
import warnings
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.markup import escape

import equipoise as eq
from equipoise.errors import EquipoiseError, InputError, visible
from equipoise.store import finite

app = App(
    name="equipoise",
    help="What training does to your weights: derived, measured, certified, and put to use.",
    version=eq.__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # main says how to go on
)
stderr = Console(stderr=True)

Fields: TypeAlias = dict[str, Any]  # of the one line of JSON
Json = Annotated[bool, Parameter(name="--json", negative="")]
Quiet = Annotated[bool, Parameter(negative="")]
Open = Annotated[bool, Parameter(name="--open", negative="")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb. Anything wrong with the input is one line on standard error, and exit code 2.

    An interruption exits with 130, as the shell expects, and says how to go on; a closed pipe with 141, in silence.
    """
    try:
        with _visible_warnings():
            code = app(arguments, exit_on_error=False, print_error=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except EquipoiseError as error:
        sys.exit(_complain(str(error)))
    except CycloptsError as error:
        first = " ".join(str(error).split())
        sys.exit(_complain(f"expected a command as in equipoise --help; found {first}; type equipoise --help"))
    except KeyboardInterrupt as interruption:
        _complain(str(interruption) or "interrupted")
        sys.exit(130)
    except BrokenPipeError:
        _drop_output()
        sys.exit(141)
    except OSError as error:
        _drop_output()
        what = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
        sys.exit(_complain(f"expected to read and write files; found {what}; free some space, or choose another place"))
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str) -> int:
    print(visible(" ".join(f"equipoise: {message}".split())), file=sys.stderr)
    return 2


def say(text: object) -> None:
    """Print to standard output, with what does not show escaped: names come from files, and a terminal obeys them."""
    print(shown(str(text)))


def shown(text: str) -> str:
    """Lines with what does not show escaped."""
    return "\n".join(map(visible, text.split("\n")))


def cell(text: object) -> str:
    """A cell of a table of rich: visible, and no markup."""
    return escape(visible(str(text)))


@contextmanager
def _visible_warnings() -> Iterator[None]:
    """Warnings name layers and files as well."""
    formatted = warnings.formatwarning
    warnings.formatwarning = lambda *args, **kwargs: shown(formatted(*args, **kwargs))
    try:
        yield
    finally:
        warnings.formatwarning = formatted


def _drop_output() -> None:
    """Drop in silence any output that a closed standard output takes no more."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def typed() -> str:
    """The command as it was typed."""
    return shlex.join(["equipoise", *sys.argv[1:]])


def integers(option: str, text: str) -> list[int]:
    """A list written as `64,64`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            expected=f"{option} as integers separated by commas", found=repr(text), remedy=f"type {option} 64,64"
        ) from None


def show_page(page: Path, *, as_json: bool, in_browser: bool) -> int:
    """Say where a page is, and open it where that is asked for."""
    say(line({"page": str(page)}) if as_json else f"The page: {page.resolve().as_uri()}")
    if in_browser:
        webbrowser.open(page.resolve().as_uri())
    return 0


def line(fields: Fields) -> str:
    """One JSON object on one line of ASCII; JSON has no NaN: `null` in its place."""
    return json.dumps(finite(fields), allow_nan=False, default=str).replace("\x7f", "\\u007f")
