"""Stochastic gradient descent with weight decay."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from equipoise.arguments import checked_fields, require_integer, require_real
from equipoise.errors import InputError
from equipoise.integrate.margins.protocol import Weights
from equipoise.integrate.objective import Objective
from equipoise.integrate.state import State, Step, Update
from equipoise.integrate.steppers.gradient_descent import check_rate, descended
from equipoise.integrate.steppers.kink_selection import check_selection, selected_slopes


@checked_fields
@dataclass(frozen=True)
class SGD:
    """`w ← (1 - η λ) w - η ∇R_B`, `B` a batch without replacement from an order shuffled anew in every epoch.

    `η = lr`, `λ = weight_decay` (coupled, as in `torch.optim.SGD`). The order depends on `seed` and the epoch alone, so
    that a resumed run takes the same batches. `at_kinks` is as of `GradientDescent`. Raises `InputError` for a batch
    size under 1 and senseless rates.
    """

    lr: float = 0.1
    batch_size: int = 32
    weight_decay: float = 0.0
    seed: int = 0
    at_kinks: float | str = 0.0
    continuous: ClassVar[bool] = False

    def __post_init__(self):
        check_rate(self.lr)
        check_selection(self.at_kinks)
        require_integer("batch_size", self.batch_size, "pass batch_size=32", least=1)
        require_integer("seed", self.seed, "pass seed=0")
        require_real("weight_decay", self.weight_decay, "pass weight_decay=0.0", below=1 / self.lr)
        if self.weight_decay < 0:
            raise InputError(
                expected="a weight decay of at least 0",
                found=f"weight_decay={self.weight_decay}",
                remedy="pass weight_decay=0.0",
            )

    def init(self, objective: Objective, weights: Weights) -> State:
        """The state at the start of a run."""
        return State.start(objective, weights, {})

    def step(self, objective: Objective, state: State, max_size: float = math.inf) -> tuple[State, Step] | None:
        """One step on the next batch; `None` where it moves nothing."""
        examples = self.batch(objective.count, state.taken).to(state.weights.device)
        per_example = objective.per_example
        rows = (examples[:, None] * per_example + torch.arange(per_example, device=examples.device)).flatten()
        on = objective.restricted(rows)
        state = replace(state, slopes=selected_slopes(objective, state, self.at_kinks))
        at = state.evaluation.take(examples)
        linearization = on.linearize(state.weights, tuple(slope[examples] for slope in state.slopes))
        scale = math.exp(min(on.log_risk(at), 700.0))
        flow = linearization.vjp(on.cotangents(at))
        update = Update(-scale * flow, self.lr, self.lr * self.weight_decay)
        return descended(objective, state, update, math.log(self.lr), float(flow.norm()), full=False)

    def batch(self, count: int, taken: int) -> Tensor:
        """The examples of the step after `taken` ones, ascending.

        >>> [SGD(batch_size=2).batch(4, taken).tolist() for taken in range(2)]
        [[0, 1], [2, 3]]
        """
        size = min(self.batch_size, count)
        epoch, position = divmod(taken, count // size)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(count, generator=generator)
        return order[position * size : (position + 1) * size].sort().values
