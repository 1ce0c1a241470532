"""The protocol of observers: values that read snapshots of a training and return numbers.

The same observers serve `eq.flow` and `eq.watch`. What a training offers differs: a flow knows its margins, a training
loop its gradients. An observer declares by `requires` what it needs; where that is not there it is `Unavailable`, with
the reason, before the first snapshot.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeVar, cast, overload, runtime_checkable

import torch
from torch import Tensor

from equipoise.errors import InputError
from equipoise.laws import Laws
from equipoise.laws.evaluate import LawPlan, LawReadings
from equipoise.laws.law import Law
from equipoise.linalg import LeadingTriplets
from equipoise.measure.spectrum import SingularSpectrum
from equipoise.measure.unfolding import Unfolding
from equipoise.observers.judgement import Judgement
from equipoise.observers.state import ObserverState, StateLike


class Unavailable(InputError):
    """A part of the training that an observer needs and that is not there."""


@dataclass(frozen=True)
class Requirements:
    """Requirements of an observer; each is computed only where an observer asks for it.

    Attributes:
        laws: `snapshot.laws`, the readings of all conserved quantities; wide ones may be sketched in a training loop.
        whole_laws: the same, and none of them sketched.
        gradients: readings with gradients, for the identity of T1: `snapshot.laws.at_gradient`.
        step_changes: readings just before a discrete step too, with its gradients: `snapshot.laws.before`.
        before_step: that its method `before` is called before every discrete step.
        triplets: how many leading singular triplets of every matrix, from `snapshot.spectra.leading`.
        consecutive: layers that follow each other, `context.consecutive`, and their leading triplet.
        activations: pre-activations on the training set, `snapshot.preactivations`.
        margins: margins on the training set, `snapshot.margins`.
        probe: the network on examples of its own, `context.probe`.
    """

    laws: bool = False
    whole_laws: bool = False
    gradients: bool = False
    step_changes: bool = False
    before_step: bool = False
    triplets: int = 0
    consecutive: bool = False
    activations: bool = False
    margins: bool = False
    probe: bool = False

    def __or__(self, other: "Requirements") -> "Requirements":
        """The union of two requirements."""
        return Requirements(**{name: max(value, vars(other)[name]) for name, value in vars(self).items()})

    @classmethod
    def of(cls, observers: "Sequence[Observer]") -> "Requirements":
        """The union of the requirements of several observers.

        Args:
            observers: any.

        Returns:
            Each requirement that one of them has.

        >>> from equipoise.observers import Drift, Spectrum
        >>> Requirements.of([Spectrum(r=2), Drift()]).triplets
        2
        """
        total = cls()
        for observer in observers:
            total |= requirements(observer)
        return total


class Reading(NamedTuple):
    """One number: where (a layer, a law, or empty), what, and its value."""

    place: str
    quantity: str
    value: float


S = TypeVar("S", bound=StateLike)


class Probe(NamedTuple):
    """The network on examples of one's own.

    It can be differentiated in inputs that require a gradient.

    Attributes:
        output: of the network.
        preactivations: of each of its kinks by place; neurons, or channels, along the last axis.
        features: what each linear map reads, by the name of its weight, in the order of execution.
    """

    output: Tensor
    preactivations: Mapping[str, Tensor]
    features: Mapping[str, Tensor]


Prober = Callable[[Mapping[str, Tensor], Tensor], Probe]  # of parameters and inputs


@dataclass(frozen=True)
class TrainingContext:
    """The constant part of a training; parts that it does not offer are None.

    Attributes:
        initial: the weights as they are when `init` is called.
        matrices: every weight matrix and kernel.
        consecutive: pairs of a layer and the next one, which reads what it writes.
        laws: the laws of the model.
        plan: the same laws, to be evaluated over and over.
        probe: evaluates the network on examples of one's own.
        kinks: the place of each kink, in the order of `Snapshot.preactivations`.
        examples: number of training examples.
        homogeneity: the degree of the network in its weights.
        loss: its name.
        window: of the clock, for how long a neuron must keep its state to be called stable.
        online: whether the training waits: sketches and iterations, exact only at full snapshots.
        absent: by the name of a part, why it is None.
    """

    initial: Mapping[str, Tensor]
    matrices: tuple[Unfolding, ...]
    consecutive: tuple[tuple[Unfolding, Unfolding], ...] | None = None
    laws: Laws | None = None
    plan: LawPlan | None = None
    probe: Prober | None = None
    kinks: tuple[str, ...] | None = None
    examples: int | None = None
    homogeneity: int | None = None
    loss: str | None = None
    window: float = 1.0
    online: bool = False
    absent: Mapping[str, str] = field(default_factory=dict)

    @overload
    def require(self, part: Literal["laws"]) -> Laws: ...
    @overload
    def require(self, part: Literal["plan"]) -> LawPlan: ...
    @overload
    def require(self, part: Literal["probe"]) -> Prober: ...
    @overload
    def require(self, part: Literal["kinks"]) -> tuple[str, ...]: ...
    @overload
    def require(self, part: Literal["examples"]) -> int: ...
    @overload
    def require(self, part: Literal["consecutive"]) -> tuple[tuple[Unfolding, Unfolding], ...]: ...
    @overload
    def require(self, part: Literal["loss"]) -> str: ...
    def require(self, part: str) -> object:
        """A part of the context.

        Args:
            part: its name.

        Returns:
            The part.

        Raises:
            Unavailable: with the reason, where it is None.
        """
        value = vars(self)[part]
        if value is None:
            raise Unavailable(
                expected=f"a training that offers its {part}",
                found=self.absent.get(part, "none here"),
                remedy="leave this observer out of observe=",
            )
        return value

    def check(self, requires: Requirements) -> None:
        """Compare what an observer needs with what there is.

        Args:
            requires: by the observer.

        Raises:
            Unavailable: with the reason, for a part that is None.
        """
        if requires.laws or requires.whole_laws:
            self.require("laws")
        if requires.consecutive:
            self.require("consecutive")
        if requires.activations:
            self.require("kinks")
        if requires.margins:
            self.require("examples")
        if requires.probe:
            self.require("probe")


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
    """One instant of training; parts that a training does not offer, or that no observer requires, are None.

    Attributes:
        step: of the training.
        clock: growth in a flow, steps in a training loop.
        parameters: the weights by name.
        norm: `‖w‖` over all trained weights.
        spectra: singular values and vectors.
        full: whether there is time for what is too expensive at every snapshot.
        final: whether it is the last one.
        gradients: of the loss at these weights.
        laws: readings of the laws, and, after a step, those before it.
        precision: the dtype in which the gradients were computed; None for that of the weights.
        judgement: of the gradient of the step, law by law; None for its residuals alone.
        rates: learning rate and weight decay of the step, of the weights that plain SGD moves.
        log_loss: `log R`.
        margins: of the training set.
        preactivations: neurons, or channels, along the last axis.
        slopes: of each kink.
        bent: by place, (examples, neurons): which pairs are inside a kink, or a maximum.
        linearization: the Jacobian of the margins.
    """

    step: int
    clock: float
    parameters: Mapping[str, Tensor]
    norm: float
    spectra: Spectra
    full: bool = True
    final: bool = False
    gradients: Mapping[str, Tensor] | None = None
    laws: LawReadings | None = None
    precision: torch.dtype | None = None
    judgement: Judgement | None = None
    rates: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    log_loss: float | None = None
    margins: Tensor | None = None
    preactivations: tuple[Tensor, ...] | None = None
    slopes: tuple[Tensor, ...] | None = None
    bent: Mapping[str, Tensor] | None = None
    linearization: JacobianProducts | None = None

    def rate(self, law: Law) -> tuple[float, float] | None:
        """Learning rate and decay of the step.

        Args:
            law: whose weights moved.

        Returns:
            The rates, where they are the same for all its weights; None where they differ or the step is another.
        """
        rates = {self.rates.get(parameter) for parameter in law.parameters}
        return rates.pop() if len(rates) == 1 else None


@runtime_checkable
class Observer(Protocol[S]):
    """Reads snapshots; what it must remember is in its state, never in itself.

    It may declare `requires`, as a class attribute or a property. A whole observer, for either kind of training:

    >>> @dataclass(frozen=True)
    ... class LargestWeight:
    ...     name: ClassVar[str] = "largest"
    ...     requires: ClassVar[Requirements] = Requirements()
    ...     def init(self, context: TrainingContext) -> StateLike:
    ...         return {}
    ...     def observe(
    ...         self, context: TrainingContext, state: StateLike, snapshot: Snapshot
    ...     ) -> tuple[StateLike, Sequence[Reading]]:
    ...         sizes = {place: float(weight.abs().max()) for place, weight in snapshot.parameters.items()}
    ...         return state, [Reading(place, "max_abs", size) for place, size in sizes.items()]
    >>> isinstance(LargestWeight(), Observer)
    True
    """

    name: ClassVar[str]  # in the table

    def init(self, context: TrainingContext) -> S:
        """The state before the first snapshot.

        Args:
            context: of the training.

        Returns:
            The state.

        Raises:
            Unavailable: where it cannot work.
        """
        ...

    def observe(self, context: TrainingContext, state: S, snapshot: Snapshot) -> tuple[S, Sequence[Reading]]:
        """Read one snapshot: at every point of a flow, after a step of a training loop.

        Args:
            context: of the training.
            state: after the snapshot before, or of `init`.
            snapshot: of this instant.

        Returns:
            The next state, and the readings.
        """
        ...


@runtime_checkable
class StepObserver(Observer[S], Protocol[S]):
    """An observer with `requires.before_step`: it also reads a snapshot before each discrete step."""

    def before(self, context: TrainingContext, state: S, snapshot: Snapshot) -> tuple[S, Sequence[Reading]]:
        """Read a snapshot while weights and gradients belong together.

        Args:
            context: of the training.
            state: after the step before.
            snapshot: with gradients.

        Returns:
            The next state, and the readings.
        """
        ...


class Stateless:
    """The `init` of an observer that has nothing to remember, to inherit from.

    >>> Stateless().init(TrainingContext({}, ()))
    ObserverState()
    """

    def init(self, context: TrainingContext) -> ObserverState:
        """An empty state.

        Args:
            context: of the training.

        Returns:
            A state without fields.
        """
        return ObserverState()


def requirements(observer: Observer) -> Requirements:
    """The declaration of an observer.

    Args:
        observer: of one's own, or of this package.

    Returns:
        Its `requires`. One that declares nothing gets the leading triplet of every matrix and, if it has a method
        `before`, snapshots before the steps.
    """
    declared = getattr(observer, "requires", None)
    return Requirements(before_step=hasattr(observer, "before"), triplets=1) if declared is None else declared


def step_observer(observer: Observer) -> StepObserver | None:
    """The observer, if it reads snapshots before discrete steps.

    Args:
        observer: any.

    Returns:
        The same, or None.
    """
    return cast(StepObserver, observer) if requirements(observer).before_step else None
