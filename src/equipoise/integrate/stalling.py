"""Whether a flow whose loss does not fall has ended, or is passing a saddle; and why it ended."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from equipoise.graph.evaluate import unfollowed
from equipoise.integrate.margins import Weights, local_slopes
from equipoise.integrate.objective import Objective
from equipoise.integrate.problem import Problem
from equipoise.integrate.readout import Rows
from equipoise.integrate.steppers import State

_DIRECTIONS = 12  # of the Krylov space
_DIFFERENCE = 1e-5  # of ‖w‖, over which the linearisation is taken
_FASTER = 10.0  # times the speed `‖v‖/‖w‖`, from which a growth rate tells of a saddle
_DOUBLED = 2.0
_ALIGNED = 0.1  # `‖Σ f_i ∇m_i‖` over `(Σ ‖f_i ∇m_i‖²)^½`, from which the forces do not cancel
_LIVE = 1e-6  # weight of the examples with a gradient, below which they have been learnt and only dead ones remain
_LISTED = 10  # examples


def escaping(slopes: Sequence[float]) -> bool:
    """Whether `‖∇ log R‖ ‖w‖` grows: at every step, or to twice what it was in the earlier half.

    So it does on the way from a saddle, where the loss falls by less than can be seen; in the approach to a minimum it
    falls, and where only rounding is left it does neither.

    >>> escaping([1e-9 * 1.05**step for step in range(60)]), escaping([1e-9 * 0.95**step for step in range(60)])
    (True, False)
    """
    rises = all(earlier < later for earlier, later in pairwise(slopes))
    earlier = slopes[: max(1, len(slopes) // 2)]
    return len(slopes) > 1 and (rises or slopes[-1] >= _DOUBLED * max(earlier))


def driven(problem: Problem, state: State) -> bool:
    """Whether the forces neither cancel nor vanish: then it is small margins that keep the loss as it is.

    At a minimum `Σ f_i ∇m_i` is small beside `(Σ ‖f_i ∇m_i‖²)^½`, its length if the signs of the terms were random.
    Examples without a gradient must not have all the weight.
    """
    objective = problem.objective
    forces = objective.forces(state.evaluation)
    here = objective.linearise(state.weights, state.slopes)
    signs = torch.randint(2, forces.shape, generator=torch.Generator().manual_seed(0)).to(forces) * 2 - 1
    together, apart = (float(here.pullback(each).norm()) for each in (forces, signs * forces))
    dead = torch.unique(torch.cat([rows for _, rows in dead_examples(problem, state)] or [torch.tensor([])]).long())
    live = float(forces.abs().sum() - forces[dead.to(forces.device)].abs().sum()) / float(forces.abs().sum())
    return together > _ALIGNED * apart and live > _LIVE


def dead_examples(problem: Problem, state: State) -> list[tuple[str, Rows]]:
    """By layer, the examples that none of its neurons answers and that have no gradient left.

    Where a skip passes the layer, or biases lie above it, they may have one.
    """
    found = []
    for name, k in zip(problem.kink_names, problem.rectifiers, strict=True):
        if problem.margins.kinks[k].negative_slope == 0:
            off = (state.evaluation.preactivations[k].flatten(1) <= 0).all(1).nonzero().squeeze(1)
            dead = [example for example in off.tolist() if _without_gradient(problem.objective, state, example)]
            if dead:
                found.append((name, torch.tensor(dead, device=off.device)))
    return found


def _without_gradient(objective: Objective, state: State, example: int) -> bool:
    """Whether the margins of this example have no gradient."""
    rows = torch.tensor([example], device=state.weights.device)
    margins = objective.margins.restricted(rows)
    here = margins.linearise(state.weights, tuple(slope[rows] for slope in state.slopes))
    return not bool(here.pullback(torch.ones_like(here.margins)).any())


def why_stalled(problem: Problem, state: State) -> str | None:
    """Examples without a gradient, weights without one, or kinks that are not followed, in words; `None` without any.

    No force comes from such examples, and the midpoint rule does not pass such kinks.
    """
    for name, dead in dead_examples(problem, state):
        count, listed = problem.margins.count, ", ".join(map(str, dead[:_LISTED].tolist()))
        more = ", …" if len(dead) > _LISTED else ""
        share = "every example" if len(dead) == count else f"{len(dead)} of {count} examples ({listed}{more})"
        return f"every neuron of {name} is off for {share}: they have no gradient left (dead neurons)"
    if bends := unfollowed(problem.captured):
        return f"{', '.join(bends)} bends where no kink is followed: write it by relu, maximum, amax or max_pool2d"
    if state.steepness == 0:
        return "the gradient of every parameter is exactly zero: a saddle or a minimum; start elsewhere"
    return None


def unstable(objective: Objective, state: State) -> bool:
    """Whether the linearised flow `dv/dτ = H v`, `H` the Hessian of `-log R`, grows from here by itself.

    By its largest Ritz value on the Krylov space of the velocity: a Rayleigh quotient, so a lower bound on the largest
    eigenvalue of `H`, in a direction that the flow has a share in. It must exceed the speed `‖v‖/‖w‖` tenfold: the
    symmetries of the network alone give `H` eigenvalues of about that size.
    """
    slopes = local_slopes(objective.margins, state.evaluation)

    def velocity(weights: Weights) -> Weights:
        return objective.linearise(weights, slopes).pullback(objective.forces(objective.margins.evaluate(weights)))

    flow, norm = velocity(state.weights), float(state.weights.norm())
    speed = float(flow.norm()) / norm
    if not 0 < speed < math.inf:
        return False

    def times(direction: Weights) -> Weights:
        step = _DIFFERENCE * norm * direction
        return (velocity(state.weights + step) - velocity(state.weights - step)) / (2 * _DIFFERENCE * norm)

    return _largest_ritz(times, flow) > _FASTER * speed


def _largest_ritz(times: Callable[[Tensor], Tensor], start: Tensor) -> float:
    """The largest eigenvalue of a symmetric map on the Krylov space of `start`, orthogonalised in full (Lanczos)."""
    basis, images = [start / start.norm()], []
    while len(images) < min(_DIRECTIONS, len(start)):
        images.append(times(basis[-1]))
        rest, space = images[-1], torch.stack(basis)
        for _ in range(2):
            rest = rest - space.T @ (space @ rest)
        if float(rest.norm()) <= 1e-6 * float(images[-1].norm()):
            break
        basis.append(rest / rest.norm())
    small = torch.stack(basis[: len(images)]) @ torch.stack(images).T
    return float(torch.linalg.eigvalsh((small + small.T) / 2)[-1])
