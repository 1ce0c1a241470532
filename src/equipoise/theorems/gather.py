"""From what the caller has, a run or a model with data, to the evidence of a certificate; everything in float64."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from equipoise.data.dataset import validate
from equipoise.errors import InputError
from equipoise.graph.chain import Layer, read_chain, read_tail
from equipoise.integrate.objective import shares
from equipoise.laws import Laws, invariances
from equipoise.losses import Loss, named_loss
from equipoise.theorems import tail
from equipoise.theorems.evidence import Evidence, Named, Point


@runtime_checkable
class FinishedRun(Protocol):
    """What a certificate needs of a run: the network, its weights on the way, and what the run recorded."""

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
        """What each law should have changed by since the start (T2.2), of gradient descent; else empty."""
        ...

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """The training set."""
        ...

    @property
    def loss(self) -> Any:
        """The loss, or its name."""
        ...

    @property
    def log_loss(self) -> float:
        """`log R` at the end, as recorded."""
        ...

    def last(self, observer: str, quantity: str, place: str = "") -> float | None:
        """The latest value of a quantity on record."""
        ...


def gather_run(run: FinishedRun) -> Evidence:
    """The evidence of a run."""
    known: dict[str, Any] = {"initial": run.initial, "saved": run.saved, "predicted": run.defects}
    known["example_weights"] = getattr(run, "example_weights", None)  # of a run that has any
    missed = getattr(run, "missed", 0.0)  # of a flow
    return replace(gather(run.model, run.final, run.data, run.loss, **known), recorded=run.last, missed=missed)


def run_points(run: FinishedRun) -> tuple[Point, ...]:
    """The weights of a run in float64: initial, saved on the way, and final, in order of growth."""
    return points_along(doubles(run.final, "weights"), doubles(run.initial, "initial weights"), run.saved)


def gather(
    model: nn.Module,
    final: Mapping[str, Tensor],
    data: Any,
    loss: Any,
    *,
    initial: Mapping[str, Tensor] | None = None,
    saved: Mapping[str, Mapping[str, Tensor]] | None = None,
    laws: Laws | None = None,
    predicted: Mapping[str, Tensor] | None = None,
    example_weights: Any = None,
) -> Evidence:
    """The evidence of a model with these final weights; see `certify` for what is raised."""
    weights, chosen = doubles(final, "weights"), named_loss(loss)
    start = None if initial is None else doubles(initial, "initial weights")
    if start is not None:
        tail.require_same_shapes(start, weights)
    X, y = _placed(data, chosen, weights)
    own = copy.deepcopy(model).double()
    _check_outputs(own, X, y, chosen)
    counted = None if example_weights is None else shares(example_weights, len(y), y)
    read = invariances(own, X[:2], loss=chosen if chosen.multiclass else None)
    captured = read.captured
    assert captured is not None  # these laws were read, not stated
    return Evidence(
        captured=captured,
        laws=read if laws is None else laws,
        chain=_chain(captured),
        tail=tail.Tail.of(lawful(read_tail(captured), read), weights),
        points=points_along(weights, start, saved or {}),
        initial=start,
        X=X,
        y=y,
        loss=chosen,
        example_weights=counted,
        dtype=_computed_in(final),
        predicted=predicted or {},
        saved={name: doubles(at, f"weights saved as {name}") for name, at in (saved or {}).items()},
    )


def _computed_in(weights: Mapping[str, Tensor]) -> torch.dtype:
    """The least precise floating point among the weights: what training computed in, at best."""
    return max({tensor.dtype for tensor in weights.values()}, key=lambda dtype: torch.finfo(dtype).eps)


def _placed(data: Any, loss: Loss, weights: Named) -> tuple[Tensor, Tensor]:
    """The checked examples, where the weights are."""
    device = next((tensor.device for tensor in weights.values()), torch.device("cpu"))
    X, y = (tensor.to(device) for tensor in validate(data, multiclass=loss.multiclass))
    return X, y


def _check_outputs(model: nn.Module, X: Tensor, y: Tensor, loss: Loss) -> None:
    with torch.no_grad():
        scores = model(X[:2]).reshape(len(X[:2]), -1).shape[1]
    expected = max(2, int(y.max()) + 1) if loss.multiclass else 1
    if scores < expected or (scores > 1 and not loss.multiclass):
        raise InputError(
            expected=f"{expected} or more scores" if loss.multiclass else f"one score, as the {loss.name} loss reads",
            found=f"{scores} scores for each example",
            remedy='certify a network of one score, or one score for each class with loss="cross_entropy"',
        )


def _chain(captured: Any) -> tuple[Layer, ...] | None:
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


def points_along(final: Named, initial: Named | None, saved: Mapping[str, Mapping[str, Tensor]]) -> tuple[Point, ...]:
    """The initial weights, those saved on the way and the final ones, in order of growth."""
    if initial is None:
        return (Point(0.0, final),)
    between = [doubles(weights, f"weights saved as {name}") for name, weights in saved.items()]
    base = _norm(initial)
    growth = lambda weights: math.log(_norm(weights) / base) if base > 0 else math.inf  # noqa: E731
    known = sorted((Point(growth(weights), weights) for weights in between), key=lambda point: point.growth)
    end = growth(final)
    return (Point(0.0, initial), *(point for point in known if 0 < point.growth < end), Point(end, final))


def doubles(weights: Mapping[str, Tensor], what: str) -> Named:
    """The weights in float64, detached. Raises `InputError` for NaN and infinity."""
    found = {name: tensor.detach().double() for name, tensor in weights.items()}
    for name, tensor in found.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                expected=f"finite {what}",
                found=f"NaN or infinite entries in {name}",
                remedy="find the step at which training diverged",
            )
    return found


def _norm(weights: Named) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in weights.values()))
