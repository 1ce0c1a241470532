"""Evidence from a run, or from a model with its data, in float64."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.data.dataset import validate
from equipoise.errors import InputError
from equipoise.graph.capture import Captured
from equipoise.graph.chain import Layer, read_chain, read_tail
from equipoise.integrate.objective import shares, weighted_examples
from equipoise.integrate.validation import outputs_of_two
from equipoise.laws import Laws, invariances
from equipoise.losses import Loss, named_loss
from equipoise.theorems.evidence import Evidence
from equipoise.theorems.linear_tail import LinearTail
from equipoise.theorems.weights import Point, Weights, finite_doubles, points_along, require_same_shapes

ExampleWeights: TypeAlias = Tensor | np.ndarray | list[float] | tuple[float, ...]


@runtime_checkable
class FinishedRun(Protocol):
    """A trained network with its weights on the way and its records, as `eq.flow` returns."""

    @property
    def model(self) -> nn.Module:
        """The trained network."""
        ...

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """Parameters at initialisation, by name."""
        ...

    @property
    def final(self) -> Mapping[str, Tensor]:
        """Parameters at the end, by name."""
        ...

    @property
    def saved(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Parameters at instants on the way, each under a name."""
        ...

    @property
    def defects(self) -> Mapping[str, Tensor]:
        """The predicted change of each law since the start (T2.2), of gradient descent; else empty."""
        ...

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """The training set."""
        ...

    @property
    def loss(self) -> Loss:
        """The loss."""
        ...

    @property
    def example_weights(self) -> Tensor | None:
        """`w_i` of `R = Σ w_i ℓ_i`, zero for examples that take no part; None where all are `1/n`."""
        ...

    @property
    def missed(self) -> float:
        """The sum of `‖r‖` by which steps missed their midpoints."""
        ...

    @property
    def log_loss(self) -> float:
        """`log R` at the end, as recorded."""
        ...

    def last(self, observer: str, quantity: str, place: str = "") -> float | None:
        """The latest value of a quantity on record."""
        ...


def evidence_of_run(run: FinishedRun) -> Evidence:
    """The evidence of a run, with its records."""
    found = evidence_of_model(
        run.model,
        run.final,
        run.data,
        run.loss,
        initial=run.initial,
        saved=run.saved,
        predicted=run.defects,
        example_weights=run.example_weights,
    )
    return replace(found, recorded=partial(_recorded, run), missed=run.missed, recorded_log_risk=run.log_loss)


def _recorded(run: FinishedRun, observer: str, quantity: str, place: str) -> float | None:
    """The latest value on record; None of what was not observed."""
    try:
        return run.last(observer, quantity, place)
    except InputError:
        return None


def run_points(run: FinishedRun) -> tuple[Point, ...]:
    """The weights of a run in float64: initial, saved on the way, and final, in order of growth."""
    final, initial = finite_doubles(run.final, "weights"), finite_doubles(run.initial, "initial weights")
    return points_along(final, initial, run.saved)


def evidence_of_model(
    model: nn.Module,
    final: Mapping[str, Tensor],
    data: object,
    loss: str | Loss,
    *,
    initial: Mapping[str, Tensor] | None = None,
    saved: Mapping[str, Mapping[str, Tensor]] | None = None,
    laws: Laws | None = None,
    predicted: Mapping[str, Tensor] | None = None,
    example_weights: ExampleWeights | None = None,
) -> Evidence:
    """The evidence of a model at the weights `final`; arguments and errors as of `certify`."""
    weights, chosen = finite_doubles(final, "weights"), named_loss(loss)
    start = None if initial is None else finite_doubles(initial, "initial weights")
    if start is not None:
        require_same_shapes(start, weights)
    X, y = _placed(data, chosen, weights)
    counted = None
    if example_weights is not None:
        X, y, counted = weighted_examples(X, y, shares(example_weights, len(y), y))
    own = copy.deepcopy(model).double()
    _check_outputs(own, X, y, chosen)
    read = invariances(own, X[:2], loss=chosen if chosen.multiclass else None)
    captured = read.captured
    assert captured is not None  # these laws were read, not stated
    return Evidence(
        captured=captured,
        laws=read if laws is None else laws,
        chain=_chain(captured),
        tail=LinearTail.of(lawful(read_tail(captured), read), weights),
        points=points_along(weights, start, saved or {}),
        initial=start,
        X=X,
        y=y,
        loss=chosen,
        example_weights=counted,
        dtype=_computed_in(final),
        predicted=predicted or {},
        saved={name: finite_doubles(at, f"weights saved as {name}") for name, at in (saved or {}).items()},
    )


def _computed_in(weights: Mapping[str, Tensor]) -> torch.dtype:
    """The least precise floating point among the weights: the arithmetic of training, at best."""
    return max({tensor.dtype for tensor in weights.values()}, key=lambda dtype: torch.finfo(dtype).eps)


def _placed(data: object, loss: Loss, weights: Weights) -> tuple[Tensor, Tensor]:
    """The checked examples, where the weights are."""
    device = next((tensor.device for tensor in weights.values()), torch.device("cpu"))
    X, y = (tensor.to(device) for tensor in validate(data, multiclass=loss.multiclass))
    return X, y


def _check_outputs(model: nn.Module, X: Tensor, y: Tensor, loss: Loss) -> None:
    scores = outputs_of_two(model, X).reshape(len(X[:2]), -1).shape[1]
    expected = max(2, int(y.max()) + 1) if loss.multiclass else 1
    if scores < expected or (scores > 1 and not loss.multiclass):
        raise InputError(
            expected=f"{expected} or more scores" if loss.multiclass else f"one score, as the {loss.name} loss reads",
            found=f"{scores} scores for each example",
            remedy='certify a network of one score, or one score for each class with loss="cross_entropy"',
        )


def _chain(captured: Captured) -> tuple[Layer, ...] | None:
    try:
        return read_chain(captured)
    except InputError:  # an operation that is not piecewise linear: T3 needs no more than the tail
        return None


def lawful(layers: tuple[Layer, ...], laws: Laws) -> tuple[Layer, ...]:
    """The last layers between every two of which a law was derived: one frozen layer, or a tied one, ends the tail."""
    known = {(frozenset(law.producers), frozenset(law.consumers)) for law in laws}
    kept = layers[-1:]
    for lower, upper in reversed(list(pairwise(layers))):
        if (frozenset(name for name in (lower.weight, lower.bias) if name), frozenset({upper.weight})) not in known:
            break
        kept = (lower, *kept)
    return kept
