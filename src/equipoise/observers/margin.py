"""Margins, and how far the weights are from a max-margin point."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from equipoise.losses import tailed_losses
from equipoise.measure import kkt, margins
from equipoise.observers.protocol import Memory, Reading, Scene, Snapshot

_POSITIVE = 1e-9  # share of the largest multiplier above which one is positive


@dataclass(frozen=True, eq=False)
class Margin:
    """Minimum, normalised and smoothed margin, support examples; KKT residuals at every `kkt_every`-th look (T7).

    Of the training set of a flow, or of examples of one's own: `Margin((X, y))` with labels in {-1, +1} for one score,
    class indices for several. The normalised figures and the KKT residuals need a homogeneous network, an exponential
    tail and separated data of a flow; they are left out elsewhere. The residuals are those of the `kkt_examples` least
    margins. `support` counts positive KKT multipliers where there are some (T7: whatever the depth of the loss), else
    the examples that carry the gradient, by their softmax weights. `accuracy` is the share of examples with all margins
    positive.
    """

    data: tuple[Tensor, Tensor] | None = None
    kkt_every: int = 10
    kkt_examples: int = 1000
    name: ClassVar[str] = "margin"

    def init(self, scene: Scene) -> Memory:
        """Nothing to remember; raises `Unavailable` where there are neither margins nor a way to probe the network."""
        scene.require("examples" if self.data is None else "probe")
        return {}

    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """Readings of the whole network."""
        figures = _of_flow(self, scene, snapshot) if self.data is None else self._of_probe(scene, snapshot)
        return memory, [Reading("", quantity, value) for quantity, value in figures.items()]

    def _of_probe(self, scene: Scene, snapshot: Snapshot) -> dict[str, float]:
        assert self.data is not None
        inputs, labels = self.data
        scores = scene.require("probe")(snapshot.parameters, inputs).output
        one = scores.ndim == 1 or scores.shape[1] == 1
        seen = margins.binary_margins(scores, labels) if one else margins.class_margins(scores, labels)
        right = (seen > 0).flatten(1).all(1) if seen.ndim > 1 else seen > 0
        return _plain(seen) | {"accuracy": float(right.float().mean())}


def _plain(seen: Tensor) -> dict[str, float]:
    return {"minimum": float(seen.min()), "support": float(margins.support(seen).sum())}


def _of_flow(asked: Margin, scene: Scene, snapshot: Snapshot) -> dict[str, float]:
    seen, degree = snapshot.margins, scene.homogeneity
    assert seen is not None
    assert snapshot.log_loss is not None
    readings = _plain(seen)
    if degree is None or scene.loss not in tailed_losses():
        return readings
    if seen.min() > 0:
        del readings["support"]  # softmax weights say nothing of the limit: at margins of 1e12 they see one example
    readings["normalised"] = margins.normalised_margin(seen, snapshot.norm, degree)
    readings["smoothed_normalised"] = margins.smoothed_normalised_margin(
        snapshot.log_loss, scene.require("examples"), snapshot.norm, degree, scene.require("loss")
    )
    if seen.min() > 0 and (snapshot.final or snapshot.step % asked.kkt_every == 0):
        readings |= _kkt(snapshot, seen.flatten(), degree, asked.kkt_examples)
    return readings


def _kkt(snapshot: Snapshot, seen: Tensor, degree: int, examples: int) -> dict[str, float]:
    assert snapshot.linearisation is not None
    rows = seen.argsort(stable=True)[:examples].sort().values
    here, seen = snapshot.linearisation.restricted(rows), seen[rows]
    multipliers = kkt.multipliers_from_gram(here.kernel(), degree * seen, snapshot.norm, seen, degree)
    residuals = kkt.kkt_residuals(here.weights(), here.vjp(multipliers), multipliers, seen, degree)
    carried = float((multipliers > _POSITIVE * multipliers.max()).sum())
    return {"kkt_epsilon": residuals.epsilon, "kkt_delta": residuals.delta, "support": carried}
