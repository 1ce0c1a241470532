"""Critical points of regularised losses: L-BFGS, then Newton steps in a trust region, and the gradient that is left."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, minres
from torch import Tensor, nn

from equipoise.arguments import checked
from equipoise.errors import InputError
from equipoise.linalg.hessian import HessianProduct, hessian_product
from equipoise.models import copied_model


@dataclass(frozen=True)
class CriticalPoint:
    """A point where a loss with ridge was minimised to, and what is certain about it.

    Attributes:
        model: a copy of the model in float64 at that point.
        value: `loss(model) + ½ Σ λ ‖θ‖²`.
        gradient_norm: the norm of its gradient there, computed anew from the weights of `model`.
        gradients: by parameter, the norm of that gradient.
        converged: whether the gradient is within the tolerance.
        iterations: of L-BFGS, and of Newton's method.
    """

    model: nn.Module = field(repr=False)
    value: float
    gradient_norm: float
    gradients: Mapping[str, float] = field(repr=False)
    converged: bool
    iterations: tuple[int, int]


@checked
def minimise(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    *,
    ridge: float | int | Mapping[str, float | int] = 0.0,
    tolerance: float = 1e-9,
    iterations: int = 20_000,
    newton: int = 200,
) -> CriticalPoint:
    """Minimise `loss(model) + ½ Σ_p λ_p ‖θ_p‖²` to a critical point; the model is left as it is.

    L-BFGS first (SciPy's, 30 pairs), then trust-region Newton by conjugate gradients on Hessian-vector products, which
    leaves saddles along negative curvature, and Newton steps by MINRES where values no longer distinguish points; in
    float64 on the trained parameters of a copy. The gradient at the result is computed anew, and its norm is part of
    it: nothing is claimed of a point that falls short, as may happen on the kink of a ReLU, where there is no gradient.

    Args:
        model: any module; parameters that do not require a gradient stay.
        loss: the data loss of the copy it is given, a scalar: `lambda m: cross_entropy(m(X), y)`.
        ridge: `λ` of all parameters, or by name; those that are not named have none.
        tolerance: of the norm of the gradient.
        iterations: of L-BFGS at most.
        newton: iterations of Newton's method at most; 0 leaves it out.

    Returns:
        The point with its value, its gradient's norm, and whether that is within the tolerance.

    Raises:
        InputError: for a model without trained parameters, negative or unknown ridges, and a loss that is no finite
            scalar at the start.

    >>> from torch.nn import functional as F
    >>> X, y = torch.eye(2, dtype=torch.float64), torch.tensor([[1.0], [-1.0]]).double()
    >>> found = minimise(nn.Linear(2, 1, bias=False), lambda m: (m(X) - y).square().sum() / 2, ridge=1.0)
    >>> found.converged, [round(w, 9) for w in found.model.weight.flatten().tolist()]
    (True, [0.5, -0.5])
    """
    objective = _Objective.of(model, loss, ridge)
    x = objective.start()
    largest = tolerance / len(x) ** 0.5  # of an entry of the gradient
    limits = {"maxiter": iterations, "maxfun": 10 * iterations, "maxcor": 30, "ftol": 0.0, "gtol": largest}
    first = minimize(objective, x, jac=True, method="L-BFGS-B", options=limits)
    x, steps = first.x, (int(first.nit), 0)
    if newton and np.linalg.norm(objective(x)[1]) > tolerance:
        second = minimize(
            objective,
            x,
            jac=True,
            hessp=objective.hessian_product,
            method="trust-ncg",
            options={"gtol": tolerance, "maxiter": newton, "initial_trust_radius": 0.1, "max_trust_radius": 1e3},
        )
        x, more = _polished(objective, second.x, tolerance, newton - int(second.nit))
        steps = (steps[0], int(second.nit) + more)
    return objective.at(x, tolerance, steps)


def _polished(objective: "_Objective", x: np.ndarray, tolerance: float, most: int) -> tuple[np.ndarray, int]:
    """Newton steps by MINRES as long as each makes the gradient smaller: differences of values are rounding here."""
    norm = float(np.linalg.norm(objective(x)[1]))
    for step in range(max(most, 0)):
        if norm <= tolerance:
            return x, step
        gradient = objective(x)[1]
        hessian = LinearOperator((len(x), len(x)), matvec=partial(objective.hessian_product, x), dtype=x.dtype)  # pyright: ignore[reportCallIssue]
        direction, _ = minres(hessian, -gradient, rtol=1e-6, maxiter=500)
        trials = [x + direction / 2**halvings for halvings in range(4)]
        norms = [float(np.linalg.norm(objective(trial)[1])) for trial in trials]
        if min(norms) >= norm:
            return x, step
        x, norm = trials[int(np.argmin(norms))], min(norms)
    return x, max(most, 0)


@dataclass
class _Objective:
    """The regularised loss as a function of one flat vector."""

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]
    ridges: dict[str, float]
    _linearised: tuple[np.ndarray, HessianProduct] | None = None

    @classmethod
    def of(
        cls, model: nn.Module, loss: Callable[[nn.Module], Tensor], ridge: float | int | Mapping[str, float | int]
    ) -> "_Objective":
        own = copied_model(model).double()
        names = [name for name, parameter in own.named_parameters() if parameter.requires_grad]
        ridges = dict(ridge) if isinstance(ridge, Mapping) else dict.fromkeys(names, ridge)
        unknown = [name for name in ridges if name not in names]
        if not names or unknown or any(not value >= 0 for value in ridges.values()):
            raise InputError(
                expected="a model with trained parameters, and ridges of zero or more for some of them",
                found=f"parameters {', '.join(names[:4]) or 'none'} …, ridge={ridge}",
                remedy="pass ridge=1e-3, or a mapping of names from model.named_parameters()",
            )
        objective = cls(own, loss, {name: float(ridges.get(name, 0.0)) for name in names})
        value = objective._value()
        if value.numel() != 1 or not torch.isfinite(value):
            raise InputError(
                expected="a loss that is one finite number at the start",
                found=f"shape {tuple(value.shape)}, {value.detach().flatten()[:3].tolist()}",
                remedy="pass loss=lambda model: criterion(model(X), y)",
            )
        return objective

    @property
    def _parameters(self) -> list[nn.Parameter]:
        trained = dict(self.model.named_parameters())
        return [trained[name] for name in self.ridges]

    def start(self) -> np.ndarray:
        return _flat([parameter.detach() for parameter in self._parameters])

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        self._linearised = None  # its graph holds the parameters that are written now
        self._set(x)
        value = self._value()
        return float(value.detach()), _flat(torch.autograd.grad(value, self._parameters, materialize_grads=True))

    def hessian_product(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        if self._linearised is None or not np.array_equal(self._linearised[0], x):
            self._set(x)
            self._linearised = x.copy(), hessian_product(self._value(), self._parameters)
        vector = torch.from_numpy(np.array(v).reshape(-1)).to(self._parameters[0].device)
        return _flat([self._linearised[1](vector)])

    def at(self, x: np.ndarray, tolerance: float, iterations: tuple[int, int]) -> CriticalPoint:
        value, gradient = self(x)
        norms = {name: float(part.norm()) for name, part in zip(self.ridges, self._split(gradient), strict=True)}
        norm = float(np.linalg.norm(gradient))
        return CriticalPoint(self.model, value, norm, norms, norm <= tolerance, iterations)

    def _value(self) -> Tensor:
        ridge = [
            0.5 * decay * parameter.square().sum()
            for parameter, decay in zip(self._parameters, self.ridges.values(), strict=True)
        ]
        return self.loss(self.model) + torch.stack(ridge).sum()

    def _set(self, x: np.ndarray) -> None:
        with torch.no_grad():
            for parameter, part in zip(self._parameters, self._split(x), strict=True):
                parameter.copy_(part)

    def _split(self, x: np.ndarray) -> list[Tensor]:
        parameters = self._parameters
        parts = torch.from_numpy(np.array(x)).split([parameter.numel() for parameter in parameters])
        return [part.view_as(parameter).to(parameter.device) for part, parameter in zip(parts, parameters, strict=True)]


def _flat(tensors: object) -> np.ndarray:
    return np.concatenate([tensor.detach().cpu().numpy().ravel() for tensor in tensors])  # pyright: ignore
