"""What an observer is: a value that reads one instant of training and says numbers.

The same observers serve `eq.flow` and `eq.watch`. What a training offers differs: a flow knows its margins, a training
loop its gradients. So every part of a scene or a snapshot that not all of them have may be None, and an observer asks
for what it cannot do without by `scene.require(...)`: the answer, or `Unavailable` with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from equipoise.errors import InputError
from equipoise.laws import Laws
from equipoise.laws.gauge import Dials, Gauge
from equipoise.laws.law import Law
from equipoise.linalg import LeadingTriplets
from equipoise.measure.spectrum import SingularSpectrum
from equipoise.measure.unfolding import Unfolding
from equipoise.observers.judgement import Judgement

Memory = dict[str, Tensor]  # what an observer carries from one instant to the next; saved with a run


class Unavailable(InputError):
    """A part of the training that an observer needs and that is not there."""


class Reading(NamedTuple):
    """One number: where (a layer, a law, or empty), what, and its value."""

    place: str
    quantity: str
    value: float


class Probe(NamedTuple):
    """The network on examples of one's own: its output, and the pre-activation of each of its kinks by place.

    Neurons, or channels, along the last axis.
    """

    output: Tensor
    preactivations: Mapping[str, Tensor]


@dataclass(frozen=True)
class Scene:
    """What stays the same during training."""

    initial: Mapping[str, Tensor]  # the weights as they are when `init` is called
    matrices: tuple[Unfolding, ...]  # every weight matrix and kernel
    consecutive: tuple[tuple[Unfolding, Unfolding], ...]  # (writes, reads): a layer and the next one
    laws: Laws | None = None
    gauge: Gauge | None = None  # the same laws, for reading over and over
    probe: Callable[[Mapping[str, Tensor], Tensor], Probe] | None = None  # (parameters, inputs)
    kinks: tuple[str, ...] | None = None  # the place of each kink, in the order of `Snapshot.preactivations`
    examples: int | None = None
    homogeneity: int | None = None
    loss: str | None = None
    window: float = 1.0  # of the clock: for how long a neuron must keep its state to be called stable
    frugal: bool = False  # the training waits: sketches and iterations, exact only where a snapshot is thorough
    absent: Mapping[str, str] = field(default_factory=dict)  # part -> why it is None

    def require(self, part: str) -> Any:
        """A part of the scene; raises `Unavailable` with the reason where it is None."""
        value = getattr(self, part)
        if value is None:
            raise Unavailable(
                expected=f"a training that offers its {part}",
                found=self.absent.get(part, "none here"),
                remedy="leave this observer out of observe=",
            )
        return value


@runtime_checkable
class Spectra(Protocol):
    """The singular values of the weights at one instant, worked out once for all observers.

    In a training loop their vectors are inference tensors: an observer that differentiates through them clones them.
    """

    def leading(self, unfoldings: Sequence[Unfolding], r: int = 1) -> list[LeadingTriplets]:
        """The `r` leading triplets of each."""
        ...

    def full(self, unfoldings: Sequence[Unfolding]) -> list[SingularSpectrum]:
        """All singular values of each."""
        ...


@runtime_checkable
class JacobianProducts(Protocol):
    """The Jacobian `J` of the margins at one instant, flat for classes, by its products."""

    def restricted(self, rows: Tensor) -> "JacobianProducts":
        """The same of some of the margins."""
        ...

    def kernel(self) -> Tensor:
        """`J Jᵀ`."""
        ...

    def vjp(self, cotangents: Tensor) -> Tensor:
        """`Jᵀ p`."""
        ...

    def weights(self) -> Tensor:
        """`w`, in the order of `vjp`."""
        ...

    def gradients(self) -> Mapping[str, Tensor]:
        """`∇ log R`, by parameter."""
        ...


@dataclass(frozen=True)
class Snapshot:
    """One instant of training. `clock` is growth in a flow, steps in a training loop."""

    step: int
    clock: float
    parameters: Mapping[str, Tensor]
    norm: float  # ‖w‖ over all trained weights
    spectra: Spectra
    thorough: bool = True  # time for what is too dear at every look
    final: bool = False
    gradients: Mapping[str, Tensor] | None = None  # of the loss, at these weights
    dials: Dials | None = None  # what the laws say, and, after a step, what they said before it
    precision: torch.dtype | None = None  # in which the gradients were computed; None: that of the weights
    judgement: Judgement | None = None  # of the gradient of the step, law by law; None: by its residuals alone
    rates: Mapping[str, tuple[float, float]] = field(
        default_factory=dict
    )  # (η, λ) of the step, for weights that plain SGD moves
    log_loss: float | None = None
    margins: Tensor | None = None
    preactivations: tuple[Tensor, ...] | None = None  # neurons, or channels, along the last axis
    slopes: tuple[Tensor, ...] | None = None
    bent: Mapping[str, Tensor] | None = (
        None  # (examples, neurons) by place: which pairs are inside a kink, or a maximum
    )
    linearisation: JacobianProducts | None = None

    def rate(self, law: Law) -> tuple[float, float] | None:
        """Learning rate and decay of the step, where it is the same plain one for all weights of a law."""
        rates = {self.rates.get(parameter) for parameter in law.parameters}
        return rates.pop() if len(rates) == 1 else None


@runtime_checkable
class Observer(Protocol):
    """Reads snapshots; what it must remember is in its memory, never in itself.

    One with `reads_laws = True` finds in `snapshot.dials.before` what the laws said before a step. A whole observer,
    for either kind of training:

    >>> @dataclass(frozen=True)
    ... class LargestWeight:
    ...     name: ClassVar[str] = "largest"
    ...     def init(self, scene: Scene) -> Memory:
    ...         return {}
    ...     def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
    ...         sizes = {place: float(weight.abs().max()) for place, weight in snapshot.parameters.items()}
    ...         return memory, [Reading(place, "max_abs", size) for place, size in sizes.items()]
    >>> isinstance(LargestWeight(), Observer)
    True
    """

    name: ClassVar[str]  # in the table

    def init(self, scene: Scene) -> Memory:
        """The memory before the first snapshot; raises `Unavailable` where it cannot work."""
        ...

    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """The next memory, and what was read: at every point of a flow, after a step of a training loop."""
        ...


@runtime_checkable
class Foresight(Protocol):
    """An observer that also looks before the optimizer's step, while weights and gradients belong together."""

    def before(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """The next memory, and what was read; the snapshot has gradients."""
        ...
