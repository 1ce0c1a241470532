"""States of observers: typed values of tensors, saved with a run and restored from it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import TypeAlias, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from torch import Tensor

from equipoise.measure.activity import Slides, Spans


@dataclass(frozen=True)
class ObserverResult:
    """Results of an observer at the end of a run, beside its readings.

    Attributes:
        slides: by layer, the pairs of an example and a neuron that slid along their kink (T4.5).
        predicted_changes: by law, the sum of the changes that T2.2 predicts for every step.
    """

    slides: Mapping[str, Slides] = field(default_factory=dict)
    predicted_changes: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, states: Iterable["StateLike"]) -> "ObserverResult":
        """The results of several observers together.

        Args:
            states: the state of each observer.

        Returns:
            One result; of two observers that publish the same, that of the last.
        """
        results = [state.result() for state in states if isinstance(state, ObserverState)]
        slides = {name: each for result in results for name, each in result.slides.items()}
        changes = {name: each for result in results for name, each in result.predicted_changes.items()}
        return cls(slides, changes)

    def spans(self, step: int) -> dict[str, Spans]:
        """First and last step of every slide.

        Args:
            step: the last one of the run.

        Returns:
            By layer: example, neuron, first and last step.
        """
        return {layer: slides.spans(step) for layer, slides in self.slides.items()}


@dataclass(frozen=True, eq=False)
class ObserverState:
    """StateLike of an observer between snapshots: a frozen dataclass whose fields are saved with a run.

    Fields are tensors, None, mappings of names to tensors, and dataclasses or mappings of such dataclasses. This class
    itself is the state of an observer that has nothing to remember.
    """

    def result(self) -> ObserverResult:
        """The results at the end of a run.

        Returns:
            Nothing, unless a state has something to publish.
        """
        return ObserverResult()


StateLike: TypeAlias = ObserverState | Mapping[str, Tensor]
"""A mapping of names to tensors is a state, too."""

Kind = TypeVar("Kind")


def to_tensors(value: object, name: str = "") -> dict[str, Tensor]:
    """The tensors of a state under the names with which they are saved.

    Args:
        value: a state, or a part of one.
        name: of that part.

    Returns:
        The tensors by name, fields and keys separated by slashes.

    Raises:
        TypeError: for a field that is none of those that `ObserverState` lists.

    >>> import torch
    >>> to_tensors(ObserverResult(predicted_changes={"a → b": torch.zeros(())}))
    {'predicted_changes/a → b': tensor(0.)}
    """
    if isinstance(value, Tensor):
        return {name: value}
    if value is None:
        return {}
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif is_dataclass(value):
        parts = [(each.name, getattr(value, each.name)) for each in fields(value)]
    else:
        raise TypeError(
            f"{name} of type {type(value).__name__} cannot be saved: use a tensor, a mapping or a dataclass"
        )
    prefix = f"{name}/" if name else ""
    return {key: tensor for part, each in parts for key, tensor in to_tensors(each, f"{prefix}{part}").items()}


def from_tensors(kind: type[Kind], tensors: Mapping[str, Tensor]) -> Kind:
    """The state of a kind that `to_tensors` took apart.

    Args:
        kind: a dataclass, or `dict`.
        tensors: by the names that `to_tensors` gave them.

    Returns:
        An equal state.

    Raises:
        KeyError: where a tensor is missing.
    """
    if not is_dataclass(kind):
        return cast(Callable[[Mapping[str, Tensor]], Kind], kind)(tensors)
    hints = get_type_hints(kind)
    return kind(**{each.name: _field(hints[each.name], each.name, tensors) for each in fields(kind)})


def _field(hint: object, name: str, tensors: Mapping[str, Tensor]) -> object:
    """The value of a field of that type."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (each for each in get_args(hint) if each is not NoneType)
        return _field(hint, name, tensors) if any(_within(key, name) for key in tensors) else None
    inside = {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
    if isinstance(hint, type) and is_dataclass(hint):
        return from_tensors(cast(type[object], hint), inside)
    if get_origin(hint) is None:
        return tensors[name]
    kind: type[object] = get_args(hint)[1]
    if not is_dataclass(kind):
        return inside
    names = [each.name for each in fields(kind)]
    keys = dict.fromkeys(key.rpartition("/")[0] for key in inside)  # the fields of such a dataclass are tensors
    return {key: kind(**{name: inside[f"{key}/{name}"] for name in names}) for key in keys}


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}/")
