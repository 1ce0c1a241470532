"""From the scores of a network to margins: an affine map for each example, and its adjoint (docs/theory.md §0)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = Int[Tensor, " rows"]


@runtime_checkable
class Readout(Protocol):
    """Margins of labelled examples from their scores."""

    @property
    def count(self) -> int:
        """The number of examples."""
        ...

    @property
    def scores(self) -> int:
        """Scores of an example."""
        ...

    @property
    def others(self) -> tuple[int, ...]:
        """The shape of one example's margins: `()` for two classes, `(C - 1,)` for `C`."""
        ...

    def margins(self, scores: Float[Tensor, "n scores"]) -> Float[Tensor, " n *others"]:
        """The margins."""
        ...

    def jvp(self, change: Float[Tensor, "n scores"]) -> Float[Tensor, " n *others"]:
        """The change of the margins."""
        ...

    def adjoint(self, cotangents: Float[Tensor, " n *others"]) -> Float[Tensor, "n scores"]:
        """The cotangents of the scores."""
        ...

    def take(self, examples: Rows) -> "Readout":
        """The readout of some of the examples, which may repeat."""
        ...

    def in_single(self) -> "Readout":
        """The readout of scores in float32."""
        ...


@dataclass(frozen=True)
class BinaryReadout:
    """`m_i = y_i f(x_i)`, labels in {-1, +1}.

    >>> BinaryReadout(torch.tensor([1.0, -1.0])).margins(torch.tensor([[2.0], [3.0]]))
    tensor([ 2., -3.])
    """

    labels: Float[Tensor, " n"]
    scores: int = 1
    others: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """The number of examples."""
        return len(self.labels)

    def margins(self, scores: Float[Tensor, "n scores"]) -> Float[Tensor, " n"]:
        """`y f`."""
        return self.labels * scores.reshape(len(self.labels))

    def jvp(self, change: Float[Tensor, "n scores"]) -> Float[Tensor, " n"]:
        """`y δf`."""
        return self.margins(change)

    def adjoint(self, cotangents: Float[Tensor, " n"]) -> Float[Tensor, "n scores"]:
        """`y p`."""
        return (self.labels * cotangents)[:, None]

    def take(self, examples: Rows) -> "BinaryReadout":
        """The readout of some of the examples."""
        return BinaryReadout(self.labels[examples])

    def in_single(self) -> "BinaryReadout":
        """The readout of scores in float32."""
        return BinaryReadout(self.labels.float())


@dataclass(frozen=True)
class MulticlassReadout:
    """`m_ic = f_{y_i}(x_i) - f_c(x_i)` for every other class `c ≠ y_i` in ascending order; labels `0 … C - 1`.

    >>> MulticlassReadout(torch.tensor([1]), 3).margins(torch.tensor([[1.0, 5.0, 2.0]]))
    tensor([[4., 3.]])
    """

    labels: Int[Tensor, " n"]
    scores: int

    @property
    def count(self) -> int:
        """The number of examples."""
        return len(self.labels)

    @property
    def others(self) -> tuple[int, ...]:
        """`(C - 1,)`."""
        return (self.scores - 1,)

    @cached_property
    def _columns(self) -> Int[Tensor, "n others"]:
        """The other classes of every example."""
        ranks = torch.arange(self.scores - 1, device=self.labels.device)
        return ranks + (ranks >= self.labels[:, None])

    def margins(self, scores: Float[Tensor, "n scores"]) -> Float[Tensor, "n others"]:
        """The score of the true class less each of the others."""
        return scores.gather(1, self.labels[:, None]) - scores.gather(1, self._columns)

    def jvp(self, change: Float[Tensor, "n scores"]) -> Float[Tensor, "n others"]:
        """The same of a change of the scores."""
        return self.margins(change)

    def adjoint(self, cotangents: Float[Tensor, "n others"]) -> Float[Tensor, "n scores"]:
        """`Σ_c p_c` on the true class, `-p_c` on the others."""
        onto = cotangents.new_zeros(len(cotangents), self.scores)
        return onto.scatter(1, self._columns, -cotangents).scatter(
            1, self.labels[:, None], cotangents.sum(1, keepdim=True)
        )

    def take(self, examples: Rows) -> "MulticlassReadout":
        """The readout of some of the examples."""
        return MulticlassReadout(self.labels[examples], self.scores)

    def in_single(self) -> "MulticlassReadout":
        """The same: labels have no precision."""
        return self


@dataclass(frozen=True)
class AdjustedReadout:
    """Margins of `s_{y_i c} z_ic + t_c`, for losses that scale and shift scores by label and class.

    >>> plain = MulticlassReadout(torch.tensor([1]), 2)
    >>> AdjustedReadout(plain, torch.tensor([[2.0, 2.0]]), torch.tensor([0.5, 0.0])).margins(torch.tensor([[1.0, 4.0]]))
    tensor([[5.5000]])
    """

    plain: MulticlassReadout
    scale: Float[Tensor, "n scores"]
    shift: Float[Tensor, " scores"]

    @property
    def count(self) -> int:
        """The number of examples."""
        return self.plain.count

    @property
    def scores(self) -> int:
        """Scores of an example."""
        return self.plain.scores

    @property
    def others(self) -> tuple[int, ...]:
        """`(C - 1,)`."""
        return self.plain.others

    def margins(self, scores: Float[Tensor, "n scores"]) -> Float[Tensor, "n others"]:
        """The adjusted score of the true class less each of the others."""
        return self.plain.margins(self.scale * scores + self.shift)

    def jvp(self, change: Float[Tensor, "n scores"]) -> Float[Tensor, "n others"]:
        """The change of the margins: without the shifts."""
        return self.plain.margins(self.scale * change)

    def adjoint(self, cotangents: Float[Tensor, "n others"]) -> Float[Tensor, "n scores"]:
        """The cotangents of the scores."""
        return self.scale * self.plain.adjoint(cotangents)

    def take(self, examples: Rows) -> "AdjustedReadout":
        """The readout of some of the examples."""
        return AdjustedReadout(self.plain.take(examples), self.scale[examples], self.shift)

    def in_single(self) -> "AdjustedReadout":
        """The readout of scores in float32."""
        return AdjustedReadout(self.plain, self.scale.float(), self.shift.float())
