"""`--config FILE.toml`: options of a command from a file, under those that are typed."""

import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from cyclopts import Parameter
from cyclopts.config import Dict

from equipoise.errors import InputError, one_line

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.argument import ArgumentCollection

Config: TypeAlias = Annotated[
    Path | None,
    Parameter(name="--config", help="A TOML file with any of these options, without dashes; those typed here win."),
]
_OPTION = "--config"


def fill_from_file(app: "App", commands: tuple[str, ...], arguments: "ArgumentCollection") -> None:
    """Give the options that were not typed their values from the file of `--config`, if there is one.

    Raises:
        InputError: for a file that cannot be read, and for an option that the command does not have.
    """
    given = next((each for each in arguments if _OPTION in each.names and each.tokens), None)
    if given is None:
        return
    path = Path(given.tokens[-1].value)
    known = sorted({name for each in arguments for name in each.positives if name.startswith("--")} - {_OPTION})
    command = " ".join(("equipoise", *commands))
    values = {_option(name, known, path, command): value for name, value in read_config(path).items()}
    Dict(values, use_commands_as_keys=False, source=str(path))(app, commands, arguments)


def read_config(path: Path) -> dict[str, str | int | float | bool]:
    """The options in a TOML file; a list becomes its elements, separated by commas.

    Raises:
        InputError: for anything but a TOML file of plain values.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            expected=f"a TOML file at {path}", found=one_line(error), remedy="write lines such as seed = 0"
        ) from None
    return {name: _plain(name, value, path) for name, value in found.items()}


def _option(name: str, known: Iterable[str], path: Path, command: str) -> str:
    option = f"--{name.replace('_', '-')}"
    if option in known:
        return option.removeprefix("--")
    close = get_close_matches(option, known, n=1, cutoff=0.0)
    raise InputError(
        expected=f"options of {command} in {path}", found=name, remedy=f"write {close[0].removeprefix('--')}"
    )


def _plain(name: str, value: object, path: Path) -> str | int | float | bool:
    if isinstance(value, list) and all(isinstance(each, str | int | float) for each in value):
        return ",".join(map(str, value))
    if isinstance(value, str | int | float):
        return value
    raise InputError(
        expected=f"{name} in {path} to be text, a number, true or false, or a list",
        found=f"a {type(value).__name__}",
        remedy=f"write {name} = …, outside of any table",
    )
