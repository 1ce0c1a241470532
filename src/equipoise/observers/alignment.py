"""Alignment of consecutive layers, and of neurons with the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from equipoise.arguments import checked_fields, require_labelled
from equipoise.measure.alignment import cosines_and_sines, neuron_alignment
from equipoise.observers.protocol import Reading, Requirements, Snapshot, Stateless, TrainingContext
from equipoise.observers.state import ObserverState


@dataclass(frozen=True)
class Alignment(Stateless):
    """`|⟨v_{k+1}, u_k⟩|` and its sine, for every layer and the next one that reads it (T3.2).

    With a bias `u_k` is that of `[W_k b_k]`; kernels are `out × (in·taps)` below and `(out·taps) × in` above.
    """

    name: ClassVar[str] = "alignment"
    requires: ClassVar[Requirements] = Requirements(consecutive=True)

    def observe(
        self, context: TrainingContext, state: ObserverState, snapshot: Snapshot
    ) -> tuple[ObserverState, Sequence[Reading]]:
        """Cosine and sine at each interface, under the name of the lower layer."""
        consecutive = context.require("consecutive")
        lower = snapshot.spectra.leading([below for below, _ in consecutive])
        upper = snapshot.spectra.leading([above for _, above in consecutive])
        directed = [below.values[0] > 0 and above.values[0] > 0 for below, above in zip(lower, upper, strict=True)]
        pairs = [
            (below.left(0), above.right(0)) for below, above, known in zip(lower, upper, directed, strict=True) if known
        ]
        found = iter(cosines_and_sines(pairs))
        readings = []
        for (place, _), known in zip(consecutive, directed, strict=True):
            cosine, sine = next(found) if known else (0.0, 1.0)  # a zero matrix has no directions
            readings.append(Reading(place.weight, "alignment_next", cosine))
            readings.append(Reading(place.weight, "misalignment_next", sine))
        return state, readings


@checked_fields
@dataclass(frozen=True, eq=False)
class DataAlignment(Stateless):
    """Which neurons of each ReLU layer are aligned with one class of examples (`measure.neuron_alignment`).

    On examples of one's own, `DataAlignment((X, y))` with labels in {-1, +1}: the shares of neurons that are on for
    exactly the positive examples, for exactly the negative ones, and for none, `aligned_share` in all; and
    `mean_cosine` with the signed sum of the examples that a neuron is on for, over those that are on for some. Of
    layers that read a vector for each example.
    """

    data: tuple[Tensor, Tensor]
    name: ClassVar[str] = "data_alignment"
    requires: ClassVar[Requirements] = Requirements(probe=True)

    def __post_init__(self) -> None:
        require_labelled(self.data)

    def observe(
        self, context: TrainingContext, state: ObserverState, snapshot: Snapshot
    ) -> tuple[ObserverState, Sequence[Reading]]:
        """Five readings for each layer."""
        inputs, labels = self.data
        seen = context.require("probe")(snapshot.parameters, inputs)
        readings = []
        for place, z in seen.preactivations.items():
            rows = seen.features.get(place)
            if rows is None or z.ndim != 2 or rows.ndim != 2:
                continue
            weight = snapshot.parameters[place]
            found = neuron_alignment(weight, rows, labels.to(rows), z[0] - rows[0] @ weight.T)
            figures = {
                "aligned_share": found.aligned_share,
                "positive_share": float(found.positive.double().mean()),
                "negative_share": float(found.negative.double().mean()),
                "off_share": float(found.off.double().mean()),
                "mean_cosine": float(found.cosines[~found.off].mean()) if not found.off.all() else 0.0,
            }
            readings += [Reading(place, quantity, value) for quantity, value in figures.items()]
        return state, readings
