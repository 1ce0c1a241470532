"""The weights that a model uses, where it stores something else: factors, masks, codes and their scales."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from equipoise.checkpoint.effective.packed import packed
from equipoise.checkpoint.effective.reparametrised import masked, parametrized, spectral_norms, weight_norms
from equipoise.checkpoint.effective.scaled import leftover, scaled
from equipoise.checkpoint.effective.tensor_index import AssembledTensor, TensorIndex
from equipoise.checkpoint.tensor_entry import Checkpoint, TensorEntry

_RULES: Sequence[Callable[[TensorIndex], Iterable[AssembledTensor]]] = (
    masked,
    weight_norms,
    spectral_norms,
    parametrized,
    packed,
    scaled,
    leftover,
)


def effective(checkpoint: Checkpoint) -> Checkpoint:
    """One tensor for every weight that is used, in the place of what it is computed from.

    A weight whose parts are recognised by their names, but cannot be put together, is there with the reason.
    """
    tensors = checkpoint.tensors
    for rule in _RULES:
        tensors = _put_together(tensors, list(rule(TensorIndex(tensors, checkpoint.config))))
    return replace(checkpoint, tensors=tensors)


def _put_together(tensors: Sequence[TensorEntry], found: Sequence[AssembledTensor]) -> tuple[TensorEntry, ...]:
    """The tensors, each that was made standing where the first of its parts stood."""
    places = {name: place for place, entry in enumerate(tensors) for name in entry.names}
    gone = {places[name] for its in found for name in its.parts}
    made: dict[int, TensorEntry] = {}
    for its in found:
        made.setdefault(places[its.parts[0]], its.entry)
    return tuple(made.get(place, entry) for place, entry in enumerate(tensors) if place not in gone or place in made)
