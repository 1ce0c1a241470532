"""Which neurons are on for which examples: one bit a pair, stable neurons, pattern classes, sliding pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from equipoise.errors import InputError


@dataclass(frozen=True)
class Patterns:
    """The on/off state of every neuron on every example, one bit each.

    Bit `k` of `words[j, u]` is set where neuron `u` is on for example `8 j + k`; bits beyond the last example are 0.
    Packing so reads whole rows of the pre-activations, and equal columns are equal patterns.
    """

    words: UInt8[Tensor, "bytes neurons"]
    examples: int

    def unpack(self) -> Bool[Tensor, "n neurons"]:
        """The patterns `z > 0` as booleans."""
        bits = torch.stack([(self.words >> k) & 1 for k in range(8)], dim=1)
        return bits.flatten(0, 1)[: self.examples].bool()

    def on_counts(self) -> Int[Tensor, " neurons"]:
        """For how many examples each neuron is on."""
        return _popcount(self.words)

    def flips(self, later: "Patterns") -> Int[Tensor, " neurons"]:
        """For how many examples each neuron has changed its state since."""
        if self.words.shape != later.words.shape or self.examples != later.examples:
            raise InputError(
                expected=f"patterns of {self.words.shape[1]} neurons on the same {self.examples} examples",
                found=f"{later.words.shape[1]} neurons on {later.examples} examples",
                remedy="take both from the same layer and data",
            )
        return _popcount(self.words ^ later.words)


@dataclass(frozen=True)
class PatternClasses:
    """Neurons grouped by equal pattern over the whole data set, largest class first; the all-off class apart.

    `labels[u]` is the index of neuron `u`'s class in `classes`, or -1 where the neuron is off for every example.
    """

    classes: tuple[Int[Tensor, " _"], ...]
    all_off: Int[Tensor, " off"]
    labels: Int[Tensor, " neurons"]


def patterns(z: Float[Tensor, "n neurons"]) -> Patterns:
    """The packed patterns `z > 0` of pre-activations; examples are rows (positions and tokens flattened into them).

    A pair on its kink (`z = 0`) counts as off.

    Raises:
        InputError: for NaN, and for no example or no neuron.

    >>> packed = patterns(torch.tensor([[1.0, -1.0], [0.0, -2.0], [3.0, 0.5]]))
    >>> packed.words.tolist(), packed.on_counts().tolist()
    ([[5, 4]], [2, 1])
    """
    if z.numel() == 0 or torch.isnan(z).any():
        raise InputError(
            expected="pre-activations without NaN, of at least one example and one neuron",
            found=f"shape {tuple(z.shape)} with {int(torch.isnan(z).sum())} NaN",
            remedy="check the layer's inputs and weights",
        )
    words = torch.zeros(-(-z.shape[0] // 8), z.shape[1], dtype=torch.uint8, device=z.device)
    for k in range(8):
        on = z[k::8] > 0
        words[: on.shape[0]] |= on.to(torch.uint8) << k
    return Patterns(words, z.shape[0])


def stably_active(window: Sequence[Patterns]) -> Bool[Tensor, " neurons"]:
    """Neurons that are on for every example in every snapshot of the window (T4.1).

    >>> now = patterns(torch.tensor([[1.0, -1.0], [2.0, 1.0]]))
    >>> stably_active([now, now])
    tensor([ True, False])
    """
    return torch.stack([snapshot.on_counts() == snapshot.examples for snapshot in _nonempty(window)]).all(dim=0)


def stably_inactive(window: Sequence[Patterns]) -> Bool[Tensor, " neurons"]:
    """Neurons that are off for every example in every snapshot of the window (T4.1); dead, as far as this data shows.

    >>> now = patterns(torch.tensor([[1.0, -1.0], [2.0, -3.0]]))
    >>> stably_inactive([now])
    tensor([False,  True])
    """
    return torch.stack([snapshot.on_counts() == 0 for snapshot in _nonempty(window)]).all(dim=0)


def pattern_classes(packed: Patterns) -> PatternClasses:
    """The classes of co-active neurons (T2, T4.3): equal on/off pattern on every example, compared bit by bit.

    Exact: sorting whole columns, no hashing. T4.3 counts `len(classes)`, the all-off class left out.

    >>> z = torch.tensor([[1.0, 2.0, -1.0, -1.0], [-1.0, -4.0, -2.0, 5.0]])
    >>> found = pattern_classes(patterns(z))
    >>> [members.tolist() for members in found.classes], found.all_off.tolist(), found.labels.tolist()
    ([[0, 1], [3]], [2], [0, 0, -1, 1])
    """
    on = packed.on_counts() > 0
    alive = on.nonzero().flatten()
    _, group, size = torch.unique(packed.words[:, alive], dim=1, return_inverse=True, return_counts=True)
    order = size.argsort(descending=True, stable=True)
    labels = torch.full_like(on, -1, dtype=torch.long)
    labels[alive] = order.argsort()[group]
    members = alive[labels[alive].argsort(stable=True)]
    return PatternClasses(members.split(size[order].tolist()), (~on).nonzero().flatten(), labels)


def _popcount(words: UInt8[Tensor, "bytes neurons"]) -> Int[Tensor, " neurons"]:
    """Set bits in each column, by sums over bits, pairs and nibbles in place of a table."""
    pairs = words - ((words >> 1) & 0x55)
    nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return ((nibbles + (nibbles >> 4)) & 0x0F).sum(dim=0)


def _nonempty(window: Sequence[Patterns]) -> Sequence[Patterns]:
    if not window:
        raise InputError(expected="one or more snapshots", found="none", remedy="pass [patterns(z)]")
    return window


# Slides ---------------------------------------------------------------------------------------------------------------

SHORTEST = 3
"""Consecutive steps inside its kink after which a pair is said to slide: one that only crosses is inside for one."""

Spans = Int[Tensor, "slides 4"]  # example, neuron, first and last step inside


@dataclass(frozen=True)
class Slides:
    """The slides of one layer: for how many steps each pair has been inside its kink, and the slides that are over."""

    inside: Int[Tensor, "examples neurons"]
    over: Spans

    @classmethod
    def none(cls, inside: Bool[Tensor, "examples neurons"]) -> "Slides":
        """Before the first step."""
        return cls(torch.zeros_like(inside, dtype=torch.int32), torch.zeros(0, 4, dtype=torch.long).to(inside.device))

    @property
    def current(self) -> Bool[Tensor, "examples neurons"]:
        """The pairs that slide now."""
        return self.inside >= SHORTEST

    def after(self, inside: Bool[Tensor, "examples neurons"], step: int) -> "Slides":
        """With the pairs that were inside their kink in one more step.

        >>> slides, inside = Slides.none(torch.zeros(1, 2).bool()), torch.tensor([[True, False]])
        >>> for step in range(1, 5):
        ...     slides = slides.after(inside, step)
        >>> slides.current.tolist(), slides.after(~inside, 5).over.tolist()
        ([[True, False]], [[0, 0, 1, 4]])
        """
        ended = self._spans(self.current & ~inside, step - 1)
        return Slides(torch.where(inside, self.inside + 1, 0).int(), torch.cat([self.over, ended]))

    def spans(self, step: int) -> Spans:
        """All slides: those that are over, then those that go on at `step`."""
        return torch.cat([self.over, self._spans(self.current, step)])

    def _spans(self, pairs: Tensor, last: int) -> Spans:
        where = pairs.nonzero()
        first = last + 1 - self.inside[pairs].long()
        return torch.cat([where, first[:, None], torch.full_like(first, last)[:, None]], 1)
