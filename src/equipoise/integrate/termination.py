"""Termination: the reasons to stop a flow, and the findings where it stops short of its goal."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from equipoise.errors import InputError
from equipoise.graph.evaluate import unfollowed
from equipoise.integrate.goals import Goal, Instant, LogLoss
from equipoise.integrate.implicit.dual_problem import precision_floor, resolved_temperature
from equipoise.integrate.margins.protocol import MarginEvaluation, Weights, local_slopes
from equipoise.integrate.margins.readout import Rows
from equipoise.integrate.objective import Objective
from equipoise.integrate.problem import Problem
from equipoise.integrate.run import Status
from equipoise.integrate.state import Progress, State
from equipoise.losses import Loss

STALL_STEPS = 60
"""Steps over which the loss must fall by more than a millionth of itself."""
_STALL_FALL = 1e-6
_ASKED = 20  # steps between two linearisations of a flow that does not fall
_MOVING = 1e-3  # ‖Δw‖/‖w‖ of the last steps together, below which the weights are at rest
_DIRECTIONS = 12  # of the Krylov space
_DIFFERENCE = 1e-5  # of ‖w‖, over which the linearisation is taken
_FASTER = 10.0  # times the speed `‖v‖/‖w‖`, from which a growth rate is that of a saddle
_DOUBLED = 2.0
_ALIGNED = 0.1  # `‖Σ f_i ∇m_i‖` over `(Σ ‖f_i ∇m_i‖²)^½`, from which the per-example gradients do not cancel
_LIVE = 1e-6  # weight of the examples with a gradient, below which they have been learnt and only dead ones remain
_LISTED = 10  # examples
_HEADROOM = 1e-4  # of the square root of the largest number, which gradients may reach
_SHALLOW = -60.0  # log R below which a loss without an exponential tail is zero in float64


@dataclass(frozen=True)
class Termination:
    """The reasons to end a flow: its goal, the limit of steps, a stall, a proof that the goal is out of reach."""

    problem: Problem
    goal: Goal
    max_steps: int
    continuous: bool = True  # whether the stepper follows the flow

    def out_of_reach(self) -> Status | None:
        """`not_separable` where a goal of loss is proved out of reach."""
        bottomless = isinstance(self.goal, LogLoss) and self.goal.value < self.problem.log_separation
        return Status.not_separable if bottomless and why_not_separable(self.problem) else None

    def status(self, before: Progress, now: Progress) -> Status | None:
        """The reason to stop after the step from `before` to `now` (at the start: the same twice), or None."""
        if not unreached(self.problem, before, now, [self.goal]):
            return Status.precision_floor if now.state.temperature > 1 else Status.reached
        if now.step >= self.max_steps:
            return Status.step_limit
        if overflowing(now.state):
            return Status.overflow
        return Status.stalled if self._flat(now) and not escaping(now.slopes) and not self._leaving(now) else None

    def _flat(self, now: Progress) -> bool:
        """Whether the loss is flat over the last steps; of a discrete method, so flat that longer ones would not help.

        `‖∇ log R‖ ‖w‖` is the fall of the loss if the weights moved by their own size.
        """
        fell = now.falls
        if len(fell) < STALL_STEPS:
            return False
        least = _STALL_FALL * max(1.0, abs(fell[-1]))
        return fell[0] - fell[-1] < least if self.continuous else max(now.slopes) < least

    def _leaving(self, now: Progress) -> bool:
        """Whether the weights move under gradients that do not cancel, or pass a saddle; tested every few steps."""
        if not self.continuous:
            return False
        moves = sum(now.sizes) > _MOVING and driven(self.problem, now.state)
        return now.step % _ASKED != 0 or moves or unstable(self.problem.objective, now.state)

    def reason(self, status: Status, state: State) -> str | None:
        """The finding where a run ended short of its goal, in words."""
        if status == Status.stalled:
            return why_stalled(self.problem, state)
        if status == Status.precision_floor:
            return why_unresolved(self.problem, state.evaluation)
        if status == Status.overflow:
            return why_overflowing(state)
        return why_not_separable(self.problem) if status == Status.not_separable else None


def instant(problem: Problem, state: State, steps: int) -> Instant:
    """The figures of a state that goals refer to."""
    reached = problem.log_loss(state.evaluation), problem.growth(state.weights)
    return Instant(*reached, steps, problem.log_separation, state.evaluation.preactivations)


def unreached(problem: Problem, before: Progress, now: Progress, goals: Iterable[Goal]) -> list[Goal]:
    """The goals that the step between the two has not reached."""
    start, end = (instant(problem, each.state, each.step) for each in (before, now))
    return [goal for goal in goals if goal.distance(start, end) > 0]


# ---- goals out of reach ----


def require_tail(loss: Loss, goal: Goal) -> None:
    """Raises `InputError` for a goal in the limit of a loss that has none: laws and trajectories only."""
    if not loss.exponential_tail and isinstance(goal, LogLoss) and goal.value < _SHALLOW:
        raise InputError(
            expected="a loss with an exponential tail, under which weights grow for ever",
            found=f"the {loss.name} loss, whose gradient vanishes at finite weights, and the goal {goal.describe()}",
            remedy="pass until=eq.Steps(200) or eq.Growth(...) for its laws and trajectories, or another loss",
        )


def why_not_separable(problem: Problem) -> str | None:
    """A proof that no weights fit the data, in words, or `None`.

    Two kinds are known: one input with two labels, and a network without activations (linear in its input) of one score
    whose data no hyperplane separates, by a linear programme.
    """
    inputs, labels = (tensor.cpu().numpy() for tensor in problem.weighted_data)
    inputs = inputs.reshape(len(inputs), -1)
    _, group = np.unique(inputs, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    same = np.diff(group.ravel()[order]) == 0
    clash = np.flatnonzero(same & (np.diff(labels[order]) != 0))
    if len(clash):
        i, j = problem.positions(torch.as_tensor(order[clash[0] : clash[0] + 2])).sort().values.tolist()
        return f"examples {i} and {j} are the same input with two labels"
    if problem.chain is None or problem.kinks.names or problem.loss.multiclass:
        return None
    biased = any(layer.bias for layer in problem.chain)
    rows = np.hstack([inputs, np.ones((len(inputs), 1))]) if biased else inputs
    programme = linprog(
        np.zeros(rows.shape[1]),
        A_ub=-labels[:, None] * rows,
        b_ub=-np.ones(len(rows)),
        bounds=(None, None),
        method="highs",
    )
    return "the network is linear and no hyperplane separates the classes" if programme.status == 2 else None


# ---- stalls ----


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
    """Whether the per-example gradients neither cancel nor vanish: then small margins keep the loss as it is.

    At a minimum `Σ f_i ∇m_i` is small beside `(Σ ‖f_i ∇m_i‖²)^½`, its length if the signs of the terms were random.
    Examples without a gradient must not have all the weight.
    """
    objective = problem.objective
    cotangents = objective.cotangents(state.evaluation)
    linearization = objective.linearize(state.weights, state.slopes)
    signs = torch.randint(2, cotangents.shape, generator=torch.Generator().manual_seed(0)).to(cotangents) * 2 - 1
    together, apart = (float(linearization.vjp(each).norm()) for each in (cotangents, signs * cotangents))
    dead = torch.unique(torch.cat([rows for _, rows in dead_examples(problem, state)] or [torch.tensor([])]).long())
    live = float(cotangents.abs().sum() - cotangents[dead.to(cotangents.device)].abs().sum()) / float(
        cotangents.abs().sum()
    )
    return together > _ALIGNED * apart and live > _LIVE


def dead_examples(problem: Problem, state: State) -> list[tuple[str, Rows]]:
    """By layer, the examples on which all its neurons are off and that have no gradient left.

    Where a skip passes the layer, or biases lie above it, they may have one.
    """
    found = []
    for name, k in zip(problem.kinks.names, problem.kinks.rectifiers, strict=True):
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
    linearization = margins.linearize(state.weights, tuple(slope[rows] for slope in state.slopes))
    return not bool(linearization.vjp(torch.ones_like(linearization.margins)).any())


def why_stalled(problem: Problem, state: State) -> str | None:
    """Examples without a gradient, weights without one, or kinks that are not followed, in words; `None` without any.

    Such examples contribute no gradient, and the midpoint rule does not pass such kinks.
    """
    for name, dead in dead_examples(problem, state):
        count, listed = problem.margins.count, ", ".join(map(str, problem.positions(dead[:_LISTED]).tolist()))
        more = ", …" if len(dead) > _LISTED else ""
        share = "every example" if len(dead) == count else f"{len(dead)} of {count} examples ({listed}{more})"
        return f"every neuron of {name} is off for {share}: they have no gradient left (dead neurons)"
    if bends := unfollowed(problem.captured):
        return f"{', '.join(bends)} bends where no kink is followed: write it by relu, maximum, amax or max_pool2d"
    if state.gradient_norm == 0:
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
        return objective.linearize(weights, slopes).vjp(objective.cotangents(objective.margins.evaluate(weights)))

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


# ---- precision ----


def overflowing(state: State) -> bool:
    """Whether products of gradients, as in the kernel `J Jᵀ`, are about to leave the range of the precision.

    `10⁸` is left for the sums in them, and for examples whose gradients are longer than `‖∇ log R‖`.
    """
    return state.gradient_norm > _HEADROOM * math.sqrt(torch.finfo(state.weights.dtype).max)


def why_overflowing(state: State) -> str:
    """The length of the gradient beside the range of the precision, in words."""
    dtype = state.weights.dtype
    name, largest = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
    return (
        f"the gradient has the norm {state.gradient_norm:.1e}, and {name} holds numbers up to {largest:.1e}: "
        "its products would be infinite"
    )


def why_unresolved(problem: Problem, at: MarginEvaluation) -> str:
    """The floor of the precision of a flow beside its margins, in words."""
    potential, dtype = problem.objective.potential(at), problem.weights.dtype
    name, largest = str(dtype).removeprefix("torch."), float(potential.abs().max())
    return (
        f"{name} resolves margins up to {precision_floor(dtype):.1e}, the largest is {largest:.1e}: "
        f"the temperature is {resolved_temperature(potential):.3g}"
    )
