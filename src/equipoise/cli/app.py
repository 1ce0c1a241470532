"""The application, and what its verbs share: one JSON line, one line of complaint, lists written `0,1`.

Verbs are imported when they are typed, so that `equipoise --version` reads neither torch nor pandas.
"""

import json
import math
import os
import re
import shlex
import sys
import warnings
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from cyclopts import App, CycloptsError, Parameter, Token
from rich.markup import escape

from equipoise.arguments import require_integer
from equipoise.cli.config import fill_from_file
from equipoise.errors import EquipoiseError, InputError, visible
from equipoise.starting import raise_when_interrupted

VERBS = (
    "demo",
    "flow",
    "certify",
    "report",
    "compare",
    "invariances",
    "decompose",
    "analyze",
    "balance",
    "align",
    "compress",
    "gallery",
    "doctor",
)
_FILES = {
    "demo": "flow",
    "certify": "runs",
    "report": "runs",
    "compare": "runs",
    "balance": "transform",
    "align": "transform",
}  # of verbs that share one with another

app = App(
    name="equipoise",
    help="What training does to your weights: derived, measured, certified, and put to use.",
    version=lambda: version("equipoise"),
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # main says how to go on
    config=(fill_from_file,),
)
for _verb in VERBS:
    app.command(f"equipoise.cli.{_FILES.get(_verb, _verb)}:{_verb}", name=_verb)
app.register_install_completion_command(help="Install completion for the shell that runs this.")

Fields: TypeAlias = dict[str, Any]  # of the one line of JSON
Json = Annotated[
    bool, Parameter(name="--json", negative="", help="One JSON object as the last line of standard output.")
]
Quiet = Annotated[bool, Parameter(negative="", help="No progress on standard error.")]


def _whole(_: object, tokens: Sequence[Token]) -> int:
    """An integer as typed: cyclopts itself would round 1.5 to 2."""
    token, name = tokens[0], (tokens[0].keyword or "the argument").strip("[]")
    typed_here = token.source == "cli"
    option, remedy = (
        (name, f"type {name} 2, say") if typed_here else (f"{name} in {token.source}", f"write {name} = 2, say")
    )
    try:
        return int(token.value)
    except ValueError:
        expected = f"{option} to be a whole number"
        raise InputError(expected=expected, found=token.value, remedy=remedy) from None


Whole: TypeAlias = Annotated[int, Parameter(converter=_whole)]
WholeOrNone: TypeAlias = Annotated[int | None, Parameter(converter=_whole)]
Open = Annotated[bool, Parameter(name="--open", negative="", help="Show the page in the browser.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb. Anything wrong with the input is one line on standard error, and exit code 2.

    An interruption exits with 130, as the shell expects, and says how to go on; a closed pipe with 141, in silence.
    """
    typed_words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        raise_when_interrupted()
        with _visible_warnings():
            code = app(typed_words, exit_on_error=False, print_error=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except EquipoiseError as error:
        sys.exit(_refuse(error.expected, error.found, as_options(error.remedy, typed_words), typed_words))
    except CycloptsError as error:
        if isinstance(error.__cause__, EquipoiseError):  # of a converter of ours
            cause = error.__cause__
            sys.exit(_refuse(cause.expected, cause.found, cause.remedy, typed_words))
        found = _plainly(" ".join(str(error).split()))
        verb = next((word for word in typed_words if word in VERBS), "")
        help_command = f"type equipoise {verb}{' ' if verb else ''}--help"
        sys.exit(_refuse("a command as in equipoise --help", found, help_command, typed_words))
    except KeyboardInterrupt as interruption:
        said = str(interruption) or "interrupted"
        _say_error({"expected": "to finish", "found": "an interruption", "remedy": said}, typed_words)
        _complain(said)
        sys.exit(130)
    except BrokenPipeError:
        _drop_output()
        sys.exit(141)
    except OSError as error:
        what = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
        parts = "to read and write files", what, "free some space, or choose another place"
        with suppress(OSError):  # of standard output itself
            _say_error(dict(zip(("expected", "found", "remedy"), parts, strict=True)), typed_words)
            print(end="", flush=True)
        _drop_output()
        sys.exit(_complain("expected {}; found {}; {}".format(*parts)))
    sys.exit(code if isinstance(code, int) else 0)


def _plainly(message: str) -> str:
    """A message of the parser as a part of a line.

    >>> _plainly("Unused Tokens: ['run', 'twice']."), _plainly('Command "flow" parameter --n requires an argument.')
    ('run twice, which no option takes', 'Command "flow" parameter --n requires an argument')
    """
    extra = re.fullmatch(r"Unused Tokens: \[(.*)\]\.?", message)
    if extra:
        words = " ".join(re.findall("'([^']*)'", extra[1])) or extra[1]
        return f"{words}, which no option takes"
    return message.removesuffix(".")


def _complain(message: str) -> int:
    print(visible(" ".join(f"equipoise: {message}".split())), file=sys.stderr)
    return 2


def _refuse(expected: str, found: str, remedy: str, words: Sequence[str]) -> int:
    """One line of complaint; with --json the same as an object on standard output, too."""
    _say_error({"expected": expected, "found": found, "remedy": remedy}, words)
    return _complain(f"expected {expected}; found {found}; {remedy}")


def _say_error(error: Fields, words: Sequence[str]) -> None:
    """With --json an error is an object on standard output, too."""
    if "--json" in words and sys.stdout is not None:
        say(line({"error": error}))


def as_options(remedy: str, words: Sequence[str]) -> str:
    """A remedy of the library in the options of the command that was typed.

    >>> as_options("pass step_size=0.05", ["flow", "--step-size", "5"]), as_options("pass rtol=0.01", ["flow"])
    ('pass --step-size 0.05', 'pass rtol=0.01')
    >>> as_options('pass backend="loky"', ["gallery", "run", "--all"])
    'pass --backend loky'
    >>> as_options("pass classes=(0, 1)", ["flow"]), as_options("pass data=['digits']", ["gallery", "run"])
    ('pass --classes 0,1', 'pass --data digits')
    """
    verb = next((word for word in words if word in VERBS), None)
    if verb is None or "=" not in remedy:
        return remedy
    command, rest = app[verb], words[words.index(verb) + 1 :]
    if rest and rest[0] in set(command):  # gallery run
        command = command[rest[0]]
    try:
        known = {option.name for option in command.assemble_argument_collection()}
    except (CycloptsError, ImportError, ValueError):
        return remedy

    def option(match: re.Match[str]) -> str:
        name = f"--{match[1].replace('_', '-')}"
        value = re.sub(r"[\s'\"()\[\]]", "", match[2]) if match[2][0] in "'\"([" else match[2]
        return f"{name} {value}" if name in known else match[0]

    return re.sub(r"\b([a-z_]+)=(\([^)]*\)|\[[^\]]*\]|[^\s,;]+)", option, remedy)


def require_writable(path: Path | None, option: str, *, folder: bool = False) -> None:
    """Refuse a page, a file or a folder that cannot be written, before anything is computed.

    Args:
        path: of it; None where none is asked for.
        option: that names it on the command line.
        folder: whether it is to be a folder, which may be there already.

    Raises:
        InputError: where it cannot be written.
    """
    if path is None:
        return
    above = next((each for each in path.absolute().parents if each.exists()), Path("/"))
    if path.is_dir() and not folder:
        raise InputError(
            expected=f"{option} to name a file", found=f"the folder {path}", remedy=f"add a file name to {path}"
        )
    if path.is_file() and folder:
        raise InputError(expected=f"{option} to name a folder", found=f"the file {path}", remedy="choose another name")
    if not folder and not path.parent.is_dir():
        raise InputError(
            expected=f"a folder {path.parent} that exists", found="none", remedy=f"type mkdir -p {path.parent}"
        )
    if not above.is_dir() or not os.access(path if path.exists() else above, os.W_OK):
        raise InputError(expected=f"to write {path}", found="no permission to", remedy=f"choose another {option}")


def require_seed(seed: int) -> None:
    """Refuse a seed that no generator takes."""
    require_integer("--seed", seed, "type --seed 0", most=2**63 - 1)


def network_widths(inputs: int, text: str) -> list[int]:
    """Widths from the input to the score, as `--widths` gives the hidden ones, of a network that memory can hold.

    Args:
        inputs: width of the input.
        text: hidden widths, separated by commas.

    Returns:
        All widths.

    Raises:
        InputError: for anything but integers, and for weights that with one copy exceed the machine's memory.
    """
    widths = [inputs, *integers("--widths", text), 1]
    needed = 2 * 8 * sum(max(one, 0) * max(other, 0) for one, other in pairwise(widths))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if needed > there:
        raise InputError(
            expected=f"--widths of a network that fits into {there / 2**30:.0f} GB of memory",
            found=f"weights of {needed / 2**30:.0f} GB in float64, with one copy",
            remedy="type smaller --widths",
        )
    return widths


def require_page(path: Path | None) -> None:
    """Refuse a page that cannot be drawn or written, before anything is computed.

    Raises:
        InputError: naming what is missing.
    """
    if path is not None:
        from equipoise.page.render import require_libraries  # only here, because it reads pandas

        require_libraries()
        require_writable(path, "--page")


def say_page(path: Path | None) -> None:
    """Say where a page is, if one was written."""
    if path is not None:
        say(f"The page: {path.resolve().as_uri()}")


def refuse_ignored(reason: str, given: Mapping[str, bool]) -> None:
    """Refuse options that would have no effect.

    Args:
        reason: the option that makes them so.
        given: by the name of an option, whether it was given.

    Raises:
        InputError: naming those that were.
    """
    ignored = [name for name, is_given in given.items() if is_given]
    if ignored:
        raise InputError(
            expected=f"{reason} without options that it does not use",
            found=", ".join(ignored),
            remedy="leave them out",
        )


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


def integers(option: str, text: str, example: str = "64,64") -> list[int]:
    """A list written as `64,64`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            expected=f"{option} as integers separated by commas", found=repr(text), remedy=f"type {option} {example}"
        ) from None


def show_page(page: Path, *, as_json: bool, in_browser: bool) -> int:
    """Say where a page is, and open it where that is asked for."""
    if as_json:
        say(line({"page": str(page)}))
    else:
        say_page(page)
    if in_browser:
        webbrowser.open(page.resolve().as_uri())
    return 0


def line(fields: Fields) -> str:
    """One JSON object on one line of ASCII; JSON has no NaN: `null` in its place."""
    from equipoise.store import finite  # only here, because it reads torch

    return json.dumps(finite(fields), allow_nan=False, default=str).replace("\x7f", "\\u007f")
