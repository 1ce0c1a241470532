"""Kinks by their place in the network: names, neurons along the last axis, and which pairs lie inside."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from equipoise.graph.capture import Captured
from equipoise.graph.chain import Layer, channel_axis
from equipoise.graph.evaluate import Kink, kinks
from equipoise.graph.piecewise import Piecewise
from equipoise.integrate.margins.protocol import Slopes


@dataclass(frozen=True)
class KinkPlaces:
    """The kinks of a network, `maps` in execution order."""

    captured: Captured
    chain: tuple[Layer, ...] | None
    maps: tuple[Piecewise, ...]

    @cached_property
    def rectifiers(self) -> tuple[int, ...]:
        """Positions of the kinks that act on one neuron at a time."""
        return tuple(k for k, kink in enumerate(self.maps) if kink.negative_slope is not None)

    @cached_property
    def nodes(self) -> tuple[Kink, ...]:
        """The kinks with their nodes in the graph."""
        return kinks(self.captured)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of each rectifier the weight of its layer; outside chains, the node that computes its input."""
        if self.chain is not None:
            return tuple(layer.weight for layer in self.chain if layer.negative_slope is not None)
        return tuple(self.nodes[k].source.name for k in self.rectifiers)

    @cached_property
    def places(self) -> tuple[str, ...]:
        """The name of each rectifier, the node of each maximum."""
        names = dict(zip(self.rectifiers, self.names, strict=True))
        if len(names) < len(self.maps):
            names = {k: names.get(k, kink.node.name) for k, kink in enumerate(self.nodes)}
        return tuple(names.values())

    def inside(self, slopes: Slopes) -> dict[str, Tensor]:
        """By place, the pairs of an example and a neuron whose slopes lie strictly between those of both sides."""
        each = zip(self.places, self.maps, slopes, strict=True)
        return {place: kink.inside(slope).flatten(1) for place, kink, slope in each}

    def by_neuron(self, preactivations: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Those of the rectifiers, with the neurons or channels along the last axis."""
        pairs = zip(self.rectifiers, self._channel_axes, strict=True)
        return tuple(preactivations[k].movedim(axis, -1) for k, axis in pairs)

    @cached_property
    def _channel_axes(self) -> tuple[int, ...]:
        if self.chain is not None:
            return (-1,) * len(self.rectifiers)
        return tuple(channel_axis(self.nodes[k].source) for k in self.rectifiers)
