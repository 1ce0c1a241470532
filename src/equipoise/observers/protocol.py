"""What an observer is: a value that reads one instant of training and says numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from equipoise.laws import Laws

Memory = dict[str, Tensor]  # what an observer carries from one instant to the next; saved with a run


class Reading(NamedTuple):
    """One number: where (a layer, a law, or empty), what, and its value."""

    place: str
    quantity: str
    value: float


@dataclass(frozen=True)
class Scene:
    """What stays the same during training."""

    initial: Mapping[str, Tensor]
    consecutive: tuple[tuple[str, str | None], ...]  # (weight, bias) of the layers of a chain, in order
    laws: Laws
    kinks: tuple[str, ...]  # the layer whose activation each kink is
    negative_slopes: tuple[float, ...]  # of each kink
    examples: int
    homogeneity: int | None
    loss: str


@dataclass(frozen=True)
class Snapshot:
    """One instant of training."""

    step: int
    growth: float
    log_loss: float
    parameters: Mapping[str, Tensor]
    norm: float
    margins: Tensor
    preactivations: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]
    linearisation: "JacobianProducts"
    final: bool


@runtime_checkable
class JacobianProducts(Protocol):
    """The Jacobian `J` of the margins at one instant, by its products."""

    def kernel(self) -> Tensor:
        """`J Jᵀ`."""
        ...

    def pullback(self, forces: Tensor) -> Tensor:
        """`Jᵀ p`."""
        ...

    def weights(self) -> Tensor:
        """`w`, in the order of `pullback`."""
        ...


@runtime_checkable
class Observer(Protocol):
    """Reads snapshots; what it must remember is in its memory, never in itself."""

    name: ClassVar[str]  # in the table

    def init(self, scene: Scene) -> Memory:
        """The memory before the first snapshot."""
        ...

    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """The next memory, and what was read."""
        ...
