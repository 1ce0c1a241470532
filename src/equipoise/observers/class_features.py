"""Features by class, layer for layer: neural collapse, variation within clusters, nearest centres, effective depth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from equipoise.arguments import checked_fields, require_labelled
from equipoise.measure.collapse import centre_mismatch, cluster_variation, effective_depth, neural_collapse
from equipoise.observers.protocol import Reading, Requirements, Snapshot, Stateless, TrainingContext
from equipoise.observers.state import ObserverState


@checked_fields
@dataclass(frozen=True, eq=False)
class ClassFeatures(Stateless):
    """NC1–NC3, variation within classes and nearest-class-centre mismatch of every layer's features; effective depth.

    On examples of one's own, `ClassFeatures((X, y))`, with labels of two classes or more. The features of a place are
    what the weight of that name reads (of the first one, the inputs); `output` is what the network returns.
    `within` is NC1, `equinorm`, `equiangle` and `simplex` are NC2 and `self_duality` is NC3, of the last weight, where
    it has a row for each class (`measure.neural_collapse`); `variation_share` is the share of variation within classes
    (`measure.cluster_variation`), `mismatch` that of examples nearest to another class (`measure.centre_mismatch`), and
    `effective_depth` the first layer in which it is at most `epsilon`.
    """

    data: tuple[Tensor, Tensor]
    epsilon: float = 0.01
    name: ClassVar[str] = "class_features"
    requires: ClassVar[Requirements] = Requirements(probe=True)

    def __post_init__(self) -> None:
        require_labelled(self.data)

    def observe(
        self, context: TrainingContext, state: ObserverState, snapshot: Snapshot
    ) -> tuple[ObserverState, Sequence[Reading]]:
        """Readings of every place, and the effective depth of the network."""
        inputs, given = self.data
        labels = given.long()
        seen = context.require("probe")(snapshot.parameters, inputs)
        features = {place: rows for place, rows in seen.features.items() if len(rows) == len(labels)}
        readings = []
        for place, rows in features.items():
            last = place == next(reversed(features))
            readings += _collapse(place, rows, labels.to(rows.device), snapshot.parameters[place] if last else None)
        output = seen.output.reshape(len(labels), -1)
        readings += _collapse("output", output, labels.to(output.device), None)
        layers = [reading.value for reading in readings if reading.quantity == "mismatch"][1:]  # the inputs are none
        readings.append(Reading("", "effective_depth", float(effective_depth(layers, self.epsilon))))
        return state, readings


def _collapse(place: str, features: Tensor, labels: Tensor, weight: Tensor | None) -> Iterator[Reading]:
    classes, width = len(labels.unique()), features[0].numel()
    found = neural_collapse(
        features, labels, weight if weight is not None and weight.shape == (classes, width) else None
    )
    for quantity, value in vars(found).items():
        if value is not None:
            yield Reading(place, quantity, value)
    yield Reading(place, "variation_share", cluster_variation(features, labels).share)
    yield Reading(place, "mismatch", centre_mismatch(features, labels))
