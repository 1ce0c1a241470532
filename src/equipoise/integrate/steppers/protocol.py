"""The protocol of steppers, and the checks of the sizes that they take."""

import math
from typing import ClassVar, Protocol, runtime_checkable

from equipoise.arguments import require_real
from equipoise.integrate.margins.protocol import Weights
from equipoise.integrate.objective import Objective
from equipoise.integrate.state import State, Step


@runtime_checkable
class Stepper(Protocol):
    """A method that advances a flow: a frozen value; all that changes is in the state."""

    continuous: ClassVar[bool]  # follows the flow, so that a shorter step ends at an earlier point of it

    def init(self, objective: Objective, weights: Weights) -> State:
        """The state at the start of a run."""
        ...

    def step(self, objective: Objective, state: State, max_size: float = math.inf) -> tuple[State, Step] | None:
        """One accepted step, of relative size at most `max_size`; `None` where none can be taken."""
        ...


def check_steps(rtol: float, step_size: float, smallest: float) -> None:
    """Refuse a tolerance that is not positive, and sizes without `0 < smallest < step_size ≤ 1`."""
    require_real("rtol", rtol, "pass rtol=0.01", above=0)
    require_real("step_size", step_size, "pass step_size=0.05", above=0, most=1)
    require_real("smallest", smallest, "pass smallest=1e-10, or leave it out", above=0, below=step_size)
