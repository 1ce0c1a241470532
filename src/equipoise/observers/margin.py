"""Margins, and how far the weights are from a max-margin point."""

from dataclasses import dataclass
from typing import ClassVar

from equipoise.measure import kkt, margins
from equipoise.observers.protocol import Memory, Reading, Scene, Snapshot


@dataclass(frozen=True)
class Margin:
    """Minimum, normalised and smoothed margin, support examples; KKT residuals at every `kkt_every`-th look (T7).

    The normalised figures and the KKT residuals need a homogeneous network and separated data; they are left out
    elsewhere.
    """

    kkt_every: int = 10
    name: ClassVar[str] = "margin"

    def init(self, scene: Scene) -> Memory:
        """Nothing to remember."""
        return {}

    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """Readings of the whole network."""
        seen, degree = snapshot.margins, scene.homogeneity
        readings = {"minimum": float(seen.min()), "support": float(margins.support(seen).sum())}
        if degree is not None:
            readings["normalised"] = margins.normalised_margin(seen, snapshot.norm, degree)
            readings["smoothed_normalised"] = margins.smoothed_normalised_margin(
                snapshot.log_loss, scene.examples, snapshot.norm, degree, scene.loss
            )
        if degree is not None and seen.min() > 0 and (snapshot.final or snapshot.step % self.kkt_every == 0):
            readings |= _kkt(snapshot, degree)
        return memory, [Reading("", quantity, value) for quantity, value in readings.items()]


def _kkt(snapshot: Snapshot, degree: int) -> dict[str, float]:
    here, seen = snapshot.linearisation, snapshot.margins
    multipliers = kkt.multipliers_from_gram(here.kernel(), degree * seen, snapshot.norm, seen, degree)
    residuals = kkt.kkt_residuals(here.weights(), here.pullback(multipliers), multipliers, seen, degree)
    return {"kkt_epsilon": residuals.epsilon, "kkt_delta": residuals.delta}
