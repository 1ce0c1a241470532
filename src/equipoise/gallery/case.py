"""One data set and one seed, and the networks trained on it: each once, for all the claims that use it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from equipoise import data
from equipoise.data import Dataset
from equipoise.integrate.goals import Goal, LogLoss
from equipoise.integrate.loop import flow
from equipoise.integrate.run import Run
from equipoise.integrate.steppers import EntropicMidpoint, Stepper
from equipoise.observers import Observer, ObserverState, Reading, Requirements, Snapshot, Stateless, TrainingContext

DATA = ("mnist", "fashion_mnist", "digits", "separable")
PAIRS = ((0, 1), (3, 5), (4, 9), (2, 7), (6, 8))
"""The two classes of a seed, from easy to alike; the same ten labels are clothes in Fashion-MNIST."""
EXAMPLES = 20


@dataclass(frozen=True)
class Moment:
    """One accepted point of a flow. Slopes are those that the step to it was taken with."""

    growth: float
    log_loss: float
    norm: float
    parameters: Mapping[str, Tensor]
    preactivations: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]


@dataclass(frozen=True)
class Tape(Stateless):
    """An observer that keeps every point it is shown, for the claims to read afterwards."""

    moments: list[Moment]
    name: ClassVar[str] = "tape"
    requires: ClassVar[Requirements] = Requirements(activations=True, margins=True)

    def observe(
        self, context: TrainingContext, state: ObserverState, snapshot: Snapshot
    ) -> tuple[ObserverState, Sequence[Reading]]:
        """Keep the point; no readings."""
        assert snapshot.log_loss is not None  # a flow offers all of these
        assert snapshot.preactivations is not None
        assert snapshot.slopes is not None
        here = (snapshot.clock, snapshot.log_loss, snapshot.norm)
        self.moments.append(Moment(*here, snapshot.parameters, snapshot.preactivations, snapshot.slopes))
        return state, []


@dataclass(frozen=True)
class Trail:
    """A finished flow and every accepted point of it, the initial one first."""

    run: Run
    moments: tuple[Moment, ...]

    @property
    def unfinished(self) -> str:
        """Why the claims about the limit do not apply to this run; empty where it reached its goal."""
        return "" if self.run.status in ("reached", "precision_floor") else self.run.status.ending


@dataclass(frozen=True)
class Recipe:
    """How a network is made, on which data, and how far it is trained.

    `network` gets an example and the seed; `data` makes the training set from the case's own.
    """

    network: Callable[[Tensor, int], nn.Module]
    data: Callable[["Case"], tuple[Tensor, Tensor]] = lambda case: case.pair()
    until: Goal = LogLoss(-1e5)  # noqa: RUF009 - a frozen value
    loss: str = "exponential"
    stepper: Stepper = EntropicMidpoint(step_size=0.05)  # noqa: RUF009 - a frozen value
    max_steps: int = 2000
    observe: tuple[Observer, ...] = ()


@dataclass(frozen=True)
class Case:
    """One setting: a data set and a seed, which chooses classes, examples and initial weights."""

    data: str
    seed: int
    examples: int = EXAMPLES
    trails: dict[Recipe, Trail] = field(default_factory=dict, repr=False, compare=False)

    def pair(self) -> Dataset:
        """Two classes of the data set, in equal measure as they come; `separable` has two of its own."""
        classes = None if self.data == "separable" else PAIRS[self.seed % len(PAIRS)]
        return data.load(self.data, classes=classes, n=self.examples, seed=self.seed)

    def train(self, recipe: Recipe) -> Trail:
        """The flow of the recipe on this case, from the cache where a claim has asked for it before."""
        if recipe not in self.trails:
            X, y = recipe.data(self)
            tape: list[Moment] = []
            run = flow(
                recipe.network(X[0], self.seed),
                (X, y),
                loss=recipe.loss,
                until=recipe.until,
                observe=(Tape(tape), *recipe.observe),
                stepper=recipe.stepper,
                max_steps=recipe.max_steps,
            )
            self.trails[recipe] = Trail(run, tuple(tape))
        return self.trails[recipe]
