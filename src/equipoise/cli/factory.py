"""`--module pkg.mod:factory`: a model, and what goes into it, made by the caller's own code."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from torch import Tensor, nn

from equipoise.errors import EquipoiseError, InputError, one_line
from equipoise.graph.capture import Inputs
from equipoise.laws.check import LossLike

SHAPES = "(model, example_inputs), (model, example_inputs, loss or target) or (model, example_inputs, target, loss)"
EXAMPLE = "type --module package.module:factory"


@dataclass(frozen=True)
class Subject:
    """The result of a factory; `loss` takes the output, and the target if there is one."""

    model: nn.Module
    inputs: Inputs
    target: Any = None
    loss: LossLike = None

    @property
    def data(self) -> object:
        """Inputs alone where there is no loss, else inputs and target."""
        return self.inputs if self.loss is None else (self.inputs, self.target)


def made_by(path: str) -> Subject:
    """Import the module, from the current folder too, call the factory, and read its result.

    A model alone will do if it carries an `example_input_array`, as Lightning's do. Raises `InputError` for a bad
    path, for anything that the import or the factory raises, and for results of another shape.
    """
    factory = _factory(path)
    with own_output(), as_input(f"{path} to return {SHAPES}", "run the factory by itself"):
        result = factory()
    if isinstance(result, nn.Module):
        result = (result, getattr(result, "example_input_array", None))
    return _subject(path, result)


def _subject(path: str, result: object) -> Subject:
    if not isinstance(result, tuple | list) or not 2 <= len(result) <= 4 or not isinstance(result[0], nn.Module):
        kinds = [type(part).__name__ for part in result] if isinstance(result, tuple | list) else type(result).__name__
        _refuse(path, str(kinds))
    model, inputs, *rest = result
    if len(rest) == 1 and isinstance(rest[0], Tensor):
        rest = [rest[0], None]
    if inputs is None:
        _refuse(path, "a model alone")
    target, loss = rest if len(rest) == 2 else (None, *rest) if rest else (None, None)
    if not (loss is None or isinstance(loss, str) or callable(loss)):
        _refuse(path, f"{type(loss).__name__} in place of the loss")
    return Subject(model, inputs, target, cast(LossLike, loss))


def _refuse(path: str, found: str) -> NoReturn:
    raise InputError(
        expected=f"{path} to return {SHAPES}", found=found, remedy="return example inputs beside the model"
    )


def _factory(path: str) -> Callable[[], object]:
    module, colon, name = path.partition(":")
    if not (module and colon and name) or module.endswith(".py"):
        raise InputError(expected="--module as package.module:factory", found=repr(path), remedy=EXAMPLE)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    with own_output(), as_input(f"a module {module} that can be imported", "run where it can be, or set PYTHONPATH"):
        found = importlib.import_module(module)
    factory = getattr(found, name, None)
    if not callable(factory):
        there = "nothing of that name" if factory is None else type(factory).__name__
        raise InputError(expected=f"a function {name} in {module}", found=there, remedy=EXAMPLE)
    return factory


@contextmanager
def own_output() -> Iterator[None]:
    """Redirect the caller's prints to standard error: standard output is ours."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def as_input(expected: str, remedy: str) -> Iterator[None]:
    """Whatever the caller's code raises, in one line."""
    try:
        yield
    except EquipoiseError:
        raise
    except SystemExit as error:
        raise InputError(expected=expected, found=f"it exits with {error.code}", remedy=remedy) from error
    except Exception as error:
        raise InputError(expected=expected, found=one_line(error), remedy=remedy) from error
