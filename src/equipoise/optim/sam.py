"""Sharpness-aware minimisation over any optimizer: the worst point nearby, trace, Frobenius norm or determinant.

With `z` standard normal, `q(z) = ½ zᵀ H z` has `2 E q = tr H`, `2 Var q = ‖H‖_F²` and
`-2 log E e^{-τ² q} = log det(I + τ² H)`: three sharpnesses of one form (Tahmasebi, Soleymani, Bahri, Jegelka & Jaillet,
2024). `q` and its gradient are second differences, `(L(w + ρz) + L(w - ρz) - 2 L(w)) / 2ρ²`: unlike the one-sided ones
of that paper they hold away from critical points too, for an evaluation more. `plain` is the loss at
`w + ρ ∇L/‖∇L‖` (Foret, Kleiner, Mobahi & Neyshabur, 2021).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from equipoise.arguments import checked_fields
from equipoise.errors import InputError
from equipoise.optim.validation import require_dense, require_positive

Sharpness = Literal["plain", "trace", "frobenius", "determinant"]
Closure = Callable[[], Tensor | float]

_RADIUS: Mapping[str, float] = {"plain": 0.05, "trace": 0.01, "frobenius": 0.01, "determinant": 0.01}
_STRENGTH: Mapping[str, float] = {"plain": 1.0, "trace": 1e-2, "frobenius": 1e-4, "determinant": 1e-2}


@checked_fields
class SAM(Optimizer):
    """Minimise `L + λ S`, `S` a sharpness of the loss, by an optimizer of any kind.

    It has the parameter groups and the state of that optimizer, and its state dict: schedulers, checkpoints and
    `maximize` work as without. Directions are drawn from torch's generator, so seed all processes of a distributed
    training alike. BatchNorm updates its statistics at every evaluation.

    Args:
        optimizer: takes the steps, as `torch.optim.AdamW(model.parameters())`.
        sharpness: `plain`, `L(w + ρ ∇L/‖∇L‖) - L(w)`, for 2 evaluations of the closure a step; `trace`, `tr H`;
            `frobenius`, `‖H‖_F²`; `determinant`, `log det(I + τ² H)`: each for `1 + 2 samples` evaluations.
        rho: the radius `ρ`, in the norm of all parameters for `plain`, and in that of a single one for the others; by
            default 0.05 and 0.01.
        strength: `λ`; by default 1 for `plain`, 1e-2, 1e-4 and 1e-2 for the others. It weighs against the curvature:
            `eq.measure.sharpness` gives its size.
        samples: the number of random directions; 2 at least for `frobenius` and `determinant`.
        width: `τ` of `determinant`.

    Raises:
        InputError: for what is no optimizer, an unknown sharpness, a radius or strength that is no positive number, too
            few samples, groups of which some ascend and some descend; and at a step, without a closure and for sparse
            gradients.

    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), sharpness="trace")
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = model(torch.ones(4, 3)).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> bool(optimizer.step(closure) > optimizer.step(closure))
    True
    """

    def __init__(
        self,
        optimizer: Optimizer,
        sharpness: Sharpness = "plain",
        rho: float | None = None,
        *,
        strength: float | None = None,
        samples: int = 2,
        width: float = 1.0,
    ):
        self.sharpness: Sharpness = sharpness
        self.rho = require_positive("rho", _RADIUS[sharpness] if rho is None else rho, "leave out rho= for its default")
        self.strength = require_positive(
            "strength", _STRENGTH[sharpness] if strength is None else strength, "leave out strength= for its default"
        )
        self.width = require_positive("width", width, "leave out width= for its default")
        self.samples = _samples(samples, 2 if sharpness in ("frobenius", "determinant") else 1)
        state = optimizer.state
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, optimizer.defaults)
        optimizer.state = state  # torch's constructor has put an empty one in its place

    @property
    def param_groups(self) -> list[dict[str, object]]:
        """Those of the wrapped optimizer."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, object]]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.optimizer.param_groups = value

    @property
    def state(self) -> dict[Tensor, object]:
        """That of the wrapped optimizer."""
        return self.optimizer.state

    @state.setter
    def state(self, value: dict[Tensor, object]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.optimizer.state = value  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def defaults(self) -> dict[str, object]:
        """Those of the wrapped optimizer."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, value: dict[str, object]) -> None:
        self.optimizer.defaults = value

    def __getstate__(self) -> dict[str, object]:
        names = ("optimizer", "sharpness", "rho", "strength", "width", "samples")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Load the state of the wrapped optimizer."""
        self.optimizer.load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step.

        Args:
            closure: computes the loss, its gradients by `backward()`, and returns the loss.

        Returns:
            The loss before the step.

        Raises:
            InputError: without a closure.
        """
        if closure is None:
            raise InputError(
                expected="a closure that computes the loss again at other weights",
                found="none",
                remedy="call optimizer.step(closure), as for torch.optim.LBFGS",
            )
        ascends = self._ascends()
        loss, gradients = self._evaluate(closure)
        trained = [parameter for parameter, _ in gradients]
        kept = [parameter.clone() for parameter in trained]
        own = [gradient for _, gradient in gradients]
        try:
            added = (self._worst if self.sharpness == "plain" else self._curvature)(
                closure, trained, kept, own, loss, ascends
            )
        finally:
            _set(trained, kept)
        for parameter, gradient, change in zip(trained, own, added, strict=True):
            parameter.grad = gradient.add_(change, alpha=self.strength)
        self.optimizer.step()
        return loss

    def _ascends(self) -> float:
        """-1 where the optimizer maximises, else 1."""
        found = {bool(group.get("maximize", False)) for group in self.param_groups}
        if len(found) > 1:
            raise InputError(
                expected="groups that all minimise or all maximise",
                found="some with maximize=True",
                remedy="use two optimizers",
            )
        return -1.0 if True in found else 1.0

    def _evaluate(self, closure: Closure) -> tuple[Tensor | float, list[tuple[Tensor, Tensor]]]:
        """The loss, and every parameter that got a gradient with that."""
        groups = cast("list[dict[str, Sequence[Tensor]]]", self.param_groups)
        places = [(group, place) for group in groups for place in range(len(group["params"]))]
        parameters = [group["params"][place] for group, place in places]
        for parameter in parameters:
            parameter.grad = None
        with torch.enable_grad():
            loss = closure()
        for parameter, (group, place) in zip(parameters, places, strict=True):
            if parameter.grad is not None:
                require_dense(parameter.grad, group, place)
        found = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        for parameter, _ in found:
            parameter.grad = None  # the closure must not add to it
        return loss, found

    def _at(
        self, closure: Closure, trained: Sequence[Tensor], kept: Sequence[Tensor], moves: Sequence[Tensor], by: float
    ) -> tuple[float, list[Tensor]]:
        """Loss and gradients at other weights; zero where a parameter gets none there."""
        for parameter, start, move in zip(trained, kept, moves, strict=True):
            torch.add(start, move, alpha=by, out=parameter)
        loss, gradients = self._evaluate(closure)
        by_parameter = dict(gradients)
        return float(loss), [by_parameter.get(each, torch.zeros_like(each)) for each in trained]

    def _worst(
        self,
        closure: Closure,
        trained: Sequence[Tensor],
        kept: Sequence[Tensor],
        own: Sequence[Tensor],
        loss: Tensor | float,
        ascends: float,
    ) -> list[Tensor]:
        """The gradient at `w + ρ ∇L/‖∇L‖` less that at `w`."""
        norm = math.hypot(*(float(gradient.norm()) for gradient in own))
        there = self._at(closure, trained, kept, own, ascends * self.rho / norm if norm > 0 else 0.0)[1]
        return [after - before for after, before in zip(there, own, strict=True)]

    def _curvature(
        self,
        closure: Closure,
        trained: Sequence[Tensor],
        kept: Sequence[Tensor],
        own: Sequence[Tensor],
        loss: Tensor | float,
        ascends: float,
    ) -> list[Tensor]:
        """The gradient of `S`, from second differences along random directions."""
        values, slopes = [], []
        for _ in range(self.samples):
            directions = [torch.randn_like(parameter) for parameter in trained]
            above, up = self._at(closure, trained, kept, directions, self.rho)
            below, down = self._at(closure, trained, kept, directions, -self.rho)
            scale = ascends / (2 * self.rho**2)
            values.append((above + below - 2 * float(loss)) * scale)
            slopes.append([(a + b - 2 * c) * scale for a, b, c in zip(up, down, own, strict=True)])
        weights = _slopes(self.sharpness, torch.tensor(values, dtype=torch.float64), self.width).tolist()
        return [
            sum((slope * (ascends * weight) for slope, weight in zip(column, weights, strict=True)), start)
            for column, start in zip(zip(*slopes, strict=True), map(torch.zeros_like, own), strict=True)
        ]


def _slopes(sharpness: Sharpness, values: Tensor, width: float) -> Tensor:
    """`∂S/∂q_i` of the estimate of `S` from `q_1 … q_m`."""
    count = len(values)
    if sharpness == "trace":
        return torch.full_like(values, 2 / count)
    if sharpness == "frobenius":
        return 4 * (values - values.mean()) / (count - 1)
    return 2 * width**2 * torch.softmax(-(width**2) * values, 0)


def _set(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _samples(value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(expected=f"{least} samples or more", found=repr(value), remedy=f"pass samples={least}")
    return value
