"""Margins, and how far the weights are from a max-margin point."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from equipoise.arguments import checked_fields, require_integer, require_labelled
from equipoise.losses import tailed_losses
from equipoise.measure import kkt, margins
from equipoise.observers.protocol import Reading, Requirements, Snapshot, Stateless, TrainingContext
from equipoise.observers.state import ObserverState

_POSITIVE = 1e-9  # share of the largest multiplier above which one is positive


@checked_fields
@dataclass(frozen=True, eq=False)
class Margin(Stateless):
    """Minimum, normalised and smoothed margin, support examples; KKT residuals at every `kkt_every`-th snapshot (T7).

    Of the training set of a flow, or of examples of one's own: `Margin((X, y))` with labels in {-1, +1} for one score,
    class indices for several. The normalised figures and the KKT residuals need a homogeneous network, an exponential
    tail and separated data of a flow; they are left out elsewhere. The residuals are those of the `kkt_examples` least
    margins. `support` counts positive KKT multipliers where there are some (T7: at any depth of the loss), else
    the examples that carry the gradient, by their softmax weights. `accuracy` is the share of examples with all margins
    positive.
    """

    data: tuple[Tensor, Tensor] | None = None
    kkt_every: int = 10
    kkt_examples: int = 1000
    name: ClassVar[str] = "margin"

    def __post_init__(self) -> None:
        if self.data is not None:
            require_labelled(self.data)
        require_integer("kkt_every", self.kkt_every, "pass kkt_every=10, in snapshots", least=1)
        require_integer("kkt_examples", self.kkt_examples, "pass kkt_examples=1000", least=1)

    @property
    def requires(self) -> Requirements:
        """Margins of the training set, or a way to compute them on examples of one's own."""
        return Requirements(margins=True) if self.data is None else Requirements(probe=True)

    def observe(
        self, context: TrainingContext, state: ObserverState, snapshot: Snapshot
    ) -> tuple[ObserverState, Sequence[Reading]]:
        """Readings of the whole network."""
        figures = _of_flow(self, context, snapshot) if self.data is None else self._of_probe(context, snapshot)
        return state, [Reading("", quantity, value) for quantity, value in figures.items()]

    def _of_probe(self, context: TrainingContext, snapshot: Snapshot) -> dict[str, float]:
        assert self.data is not None
        inputs, labels = self.data
        scores = context.require("probe")(snapshot.parameters, inputs).output
        one = scores.ndim == 1 or scores.shape[1] == 1
        seen = margins.binary_margins(scores, labels) if one else margins.class_margins(scores, labels)
        right = (seen > 0).flatten(1).all(1) if seen.ndim > 1 else seen > 0
        return _plain(seen) | {"accuracy": float(right.float().mean())}


def _plain(seen: Tensor) -> dict[str, float]:
    return {"minimum": float(seen.min()), "support": float(margins.support(seen).sum())}


def _of_flow(asked: Margin, context: TrainingContext, snapshot: Snapshot) -> dict[str, float]:
    seen, degree = snapshot.margins, context.homogeneity
    assert seen is not None
    assert snapshot.log_loss is not None
    readings = _plain(seen)
    if degree is None or context.loss not in tailed_losses():
        return readings
    if seen.min() > 0:
        del readings["support"]  # softmax weights say nothing of the limit: at margins of 1e12 they see one example
    readings["normalised"] = margins.normalised_margin(seen, snapshot.norm, degree)
    readings["smoothed_normalised"] = margins.smoothed_normalised_margin(
        snapshot.log_loss, context.require("examples"), snapshot.norm, degree, context.require("loss")
    )
    if seen.min() > 0 and (snapshot.final or snapshot.step % asked.kkt_every == 0):
        readings |= _kkt(snapshot, seen.flatten(), degree, asked.kkt_examples)
    return readings


def _kkt(snapshot: Snapshot, seen: Tensor, degree: int, examples: int) -> dict[str, float]:
    assert snapshot.linearization is not None
    rows = seen.argsort(stable=True)[:examples].sort().values
    here, seen = snapshot.linearization.restricted(rows), seen[rows]
    multipliers = kkt.multipliers_from_gram(here.kernel(), degree * seen, snapshot.norm, seen, degree)
    residuals = kkt.kkt_residuals(here.weights(), here.vjp(multipliers), multipliers, seen, degree)
    carried = float((multipliers > _POSITIVE * multipliers.max()).sum())
    return {"kkt_epsilon": residuals.epsilon, "kkt_delta": residuals.delta, "support": carried}
