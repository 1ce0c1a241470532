"""Checks of arguments: types read off the annotations of public functions, and ranges of numbers, in one line each."""

import functools
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

from equipoise.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")
Class = TypeVar("Class", bound=type)
_SHORT = 60  # characters of a value in a message
_ANYTHING = (Any, object, inspect.Parameter.empty)
_EXAMPLES = {  # by the name of a class
    "Observer": "eq.Spectrum()",
    "Optimizer": "torch.optim.SGD(model.parameters(), lr=0.1)",
    "OptimizerLike": "torch.optim.SGD(model.parameters(), lr=0.1)",
    "Module": "a torch.nn.Module",
    "Stepper": "eq.steppers.EntropicMidpoint()",
    "Goal": "eq.LogLoss(-1e6), or its text: 'log_loss=-1e6'",
    "Sink": "eq.sinks.TensorBoard('runs/first')",
    "Loss": "eq.losses.Logistic(), or its name: 'logistic'",
    "Run": "run = eq.flow(model, data)",
    "FinishedRun": "run = eq.flow(model, data)",
    "PathLike": "'runs/first'",
    "Path": "'runs/first'",
    "Tensor": "torch.as_tensor(values)",
    "dtype": "torch.float64",
}


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose arguments are compared with their annotations before it runs.

    Args:
        function: with annotations that can be resolved at run time.

    Returns:
        The same function, which raises `InputError` for the first argument of another type, with what was found, what
        is expected, and what to pass.

    >>> @checked
    ... def stretch(values: list[float], factor: float = 2.0) -> list[float]:
    ...     return [factor * value for value in values]
    >>> stretch([1, 2.5], 2)
    [2, 5.0]
    >>> stretch(2.5)
    Traceback (most recent call last):
        ...
    equipoise.errors.InputError: expected values= to be a list of float; found 2.5; pass values=[2.5]
    """
    return checked_except()(function)


def checked_except(*own: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """The same for all arguments but those that the function itself refuses, in words that say more.

    Args:
        own: their names.

    Returns:
        A decorator.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            _check(function, signature, args, kwargs, own=own)
            return function(*args, **kwargs)

        return _marked(call)

    return decorate


def checked_fields(kind: Class) -> Class:
    """A class whose constructor checks its arguments as `checked` does; ranges are for its `__post_init__`."""
    constructor: Any = kind.__init__
    signature = inspect.signature(constructor)

    @functools.wraps(constructor)
    def initialise(self: object, *args: object, **kwargs: object) -> None:
        _check(constructor, signature, (self, *args), kwargs, kind)
        constructor(self, *args, **kwargs)

    kind.__init__ = _marked(initialise)
    return kind


def _marked(function: Callable[P, T]) -> Callable[P, T]:
    vars(function)["__checked__"] = True  # for those who want to know which functions do
    return function


def require_real(
    name: str, value: object, remedy: str, *, above: float = -math.inf, below: float = math.inf, most: float = math.inf
) -> None:
    """Refuse what is not a finite real number with `above < value < below` and `value ≤ most`.

    >>> require_real("rtol", float("nan"), "pass rtol=0.01", above=0)
    Traceback (most recent call last):
        ...
    equipoise.errors.InputError: expected rtol to be a finite number above 0; found nan; pass rtol=0.01

    Raises:
        InputError: for anything else.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and above < number < below and number <= most:
            return
    raise InputError(
        expected=f"{name} to be a finite number{_bounds(above, below, most)}", found=repr(value), remedy=remedy
    )


def require_integer(name: str, value: object, remedy: str, *, least: int = 0, most: int | None = None) -> None:
    """Refuse what is not a whole number of at least `least`, and at most `most`.

    >>> require_integer("max_steps", 2.5, "pass max_steps=10_000", least=1)
    Traceback (most recent call last):
        ...
    equipoise.errors.InputError: expected max_steps to be a whole number, at least 1; found 2.5; pass max_steps=10_000

    Raises:
        InputError: for anything else.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):  # pyright: ignore[reportOperatorIssue]
        upper = "" if most is None else f" and at most {most}"
        raise InputError(
            expected=f"{name} to be a whole number, at least {least}{upper}", found=shown(value), remedy=remedy
        )


def require_labelled(data: tuple[Collection[object], Collection[object]]) -> None:
    """Refuse examples and labels that are not as many.

    >>> require_labelled(([[1.0], [2.0]], [0]))
    Traceback (most recent call last):
        ...
    equipoise.errors.InputError: expected a label for each of 2 examples; found 1; pass (X, y) of one length

    Raises:
        InputError: with the two numbers.
    """
    count, labels = map(len, data)
    if count != labels:
        raise InputError(
            expected=f"a label for each of {count} examples", found=str(labels), remedy="pass (X, y) of one length"
        )


def require_runs(seeds: Iterable[int], jobs: int) -> None:
    """Refuse seeds that no generator takes, and a number of processes that joblib does not.

    >>> require_runs([0, 1], jobs=0)
    Traceback (most recent call last):
        ...
    equipoise.errors.InputError: expected jobs to be a number of processes, or -1 for one a core; found 0; pass jobs=2

    Raises:
        InputError: for either.
    """
    for seed in seeds:
        require_integer("each of the seeds", seed, "pass seeds=[0, 1]", most=2**63 - 1)
    if jobs == 0:
        raise InputError(
            expected="jobs to be a number of processes, or -1 for one a core", found="0", remedy="pass jobs=2"
        )


def _bounds(above: float, below: float, most: float) -> str:
    bounds = [("above", above, -math.inf), ("below", below, math.inf), ("at most", most, math.inf)]
    given = [f"{word} {bound:g}" for word, bound, none in bounds if bound != none]
    return " " + " and ".join(given) if given else ""


def shown(value: object) -> str:
    """A value in a message: short ones as they are written, others by their type.

    >>> import torch
    >>> shown(0.1), shown("spectrum"), shown(torch.nn.Linear), shown([1, 2]), shown(torch.nn.ReLU())
    ('0.1', "'spectrum'", 'the class Linear', '[1, 2]', 'a ReLU')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
        return f"the function {value.__name__}"
    return _written(value) or f"{_article(type(value).__name__)} {type(value).__name__}"


def _written(value: object) -> str:
    """A short value as it is written; of others, nothing."""
    plain = isinstance(value, (bool, int, float, complex, str, bytes, type(None), list, tuple))
    written = repr(value) if plain else ""
    return written if len(written) <= _SHORT and "\n" not in written else ""


# ---- types ----


def _check(
    function: Callable[..., object],
    signature: inspect.Signature,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    kind: type | None = None,
    own: Collection[str] = (),
) -> None:
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return  # the call itself says which argument is missing or unknown
    hints = hints_of(function)
    for name, value in given.items():
        hint = _bound(hints.get(name, Any), signature.parameters[name])
        if name not in own and not _is(value, hint):
            inside = _strange(value, hint)
            raise InputError(
                expected=f"{name}= to be {described(hint)}",
                found=shown(value) if inside is value else f"{shown(inside)} in it",
                remedy=_remedy(name, value, inside, hint, hints, kind or function),
            )


def _bound(hint: Any, parameter: inspect.Parameter) -> Any:
    """The type of what is bound to a parameter: of `*names: str`, a tuple of strings."""
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return tuple[hint, ...]
    return Any if parameter.kind is inspect.Parameter.VAR_KEYWORD else hint


@functools.cache
def hints_of(function: Callable[..., object]) -> dict[str, Any]:
    """The types of the parameters of a function; `Any` for one that is known to type checkers only."""
    try:
        return typing.get_type_hints(function)
    except NameError:
        return {name: _resolved(function, hint) for name, hint in inspect.get_annotations(function).items()}


def _resolved(function: Callable[..., object], hint: object) -> Any:
    holder = types.SimpleNamespace(__annotations__={"it": hint})
    try:
        return typing.get_type_hints(holder, vars(sys.modules[function.__module__]))["it"]
    except NameError:
        return Any


def _is(value: object, hint: Any) -> bool:
    """Whether a value is of that type, each element of a collection included."""
    if hint in _ANYTHING:
        return True
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, each) for each in inside)
    if isinstance(value, type) and not _takes_classes(hint):
        return False  # a class has the methods of its instances
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if _is_collection(origin) and (len(inside) == 1 or inside[1:] == (...,)):
        return _bearable(value, origin) and not isinstance(value, (str, bytes)) and _elements_are(value, inside[0])
    return _bearable(value, hint)


def _elements_are(value: Any, hint: Any) -> bool:
    return not isinstance(value, Collection) or all(_is(each, hint) for each in value)


def _is_collection(origin: object) -> bool:
    return isinstance(origin, type) and issubclass(origin, Iterable) and not issubclass(origin, Mapping)


def _takes_classes(hint: Any) -> bool:
    return hint is type or typing.get_origin(hint) in (type, Callable)


def _bearable(value: object, hint: Any) -> bool:
    from beartype.door import is_bearable
    from beartype.roar import BeartypeException

    try:
        return is_bearable(value, hint)
    except BeartypeException:  # an annotation that cannot be checked at run time
        return True


# ---- words ----


def described(hint: Any) -> str:
    """A type in words.

    >>> from pathlib import Path
    >>> described(int | None), described(list[int]), described(str | Path)
    ('an int or None', 'a list of int', 'a path')
    """
    parts = dict.fromkeys(map(_described, _simplified(hint)))
    return " or ".join([*(part for part in parts if part != "None"), *(part for part in parts if part == "None")])


def _simplified(hint: Any) -> list[Any]:
    """The alternatives of a type; a path may be a string, too, which goes without saying."""
    parts = _alternatives(hint)
    paths = any(hasattr(_origin(each), "__fspath__") for each in parts)
    return [each for each in parts if not (paths and each is str)]


def _described(hint: Any) -> str:
    if hint is type(None):
        return "None"
    name = _name(hint)
    return name if name.startswith("'") else f"{_article(name)} {name}"


def _name(hint: Any) -> str:
    origin, inside = _origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_name, inside))
    if origin is Callable:
        return "callable"
    if origin is type:
        return f"class of {', '.join(map(_name, inside))}"
    if origin is typing.Literal:
        return " or ".join(map(repr, inside))
    if hasattr(origin, "__fspath__"):
        return "path"
    if _is_collection(origin) and inside and inside[0] not in _ANYTHING:
        return f"{origin.__name__.lower()} of {_name(inside[0])}"
    return getattr(origin, "__name__", str(hint))


def _origin(hint: Any) -> Any:
    return typing.get_origin(hint) or hint


def _article(name: str) -> str:
    return "an" if name[:1].lower() in "aeio" or name[:3] == "SGD" else "a"


def _strange(value: object, hint: Any) -> object:
    """The first element that is not as expected, of a value that is the right collection of others; else the value."""
    for each in _alternatives(hint):
        inside = typing.get_args(each)
        if _is_collection(typing.get_origin(each)) and inside and isinstance(value, (list, tuple, set, frozenset)):
            return next((element for element in value if not _is(element, inside[0])), value)
    return value


def _remedy(
    name: str, value: object, inside: object, hint: Any, hints: Mapping[str, Any], callee: Callable[..., object]
) -> str:
    if isinstance(inside, type):
        return f"pass an instance, {inside.__name__}(…), in place of the class"
    for each in _alternatives(hint):
        if (
            value is not None
            and _is_collection(typing.get_origin(each))
            and not isinstance(value, (list, tuple, dict))
            and _is([value], each)
        ):
            return (
                f"pass {name}=[{getattr(value, '__name__', None) or _written(value) or f'{type(value).__name__}(…)'}]"
            )
    others = [other for other, kind in hints.items() if other not in (name, "return") and _is_instance(value, kind)]
    if others:
        return f"pass it as {others[0]}="
    allowed = [str(each) for part in _alternatives(hint) for each in _allowed(part)]
    if allowed:
        close = get_close_matches(str(value), allowed, n=1)
        return f"pass {name}={(close or allowed)[0]!r}"
    if any(typing.get_origin(each) is tuple and len(typing.get_args(each)) == 2 for each in _alternatives(hint)):
        return f"pass {name}=(X, y)"
    example = next((_EXAMPLES[word] for word in _words(hint) if word in _EXAMPLES), None)
    return f"pass e.g. {example}" if example else f"see help({_public(callee)})"


def _allowed(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def _is_instance(value: object, hint: Any) -> bool:
    """Whether a value is of a class of its own that the type names, which no number or text is."""
    plain = (bool, int, float, str, bytes, type(None), list, tuple, dict, types.FunctionType, types.BuiltinFunctionType)
    classes = [each for each in _alternatives(hint) if isinstance(each, type) and each is not object]
    return not isinstance(value, plain) and any(_is(value, each) for each in classes)


def _words(hint: Any) -> Iterator[str]:
    """The names of the classes in a type, from the outside in."""
    for each in _alternatives(hint):
        yield getattr(each, "__name__", "")
        yield from (word for inside in typing.get_args(each) if inside is not each for word in _words(inside))


def _public(callee: Callable[..., object]) -> str:
    name = getattr(callee, "__name__", "it")
    return f"eq.{name}" if hasattr(sys.modules.get("equipoise"), name) else name


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
