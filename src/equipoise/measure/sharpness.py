"""Sharpness: trace, Frobenius norm, largest eigenvalue and determinant of the Hessian of a loss, by its products.

`relative` measures `D H D` with `D = diag(|w|)` in place of `H`: unchanged where weights are rescaled coordinate by
coordinate without changing the loss, as the determinant is for rescalings of product one (Tahmasebi et al., 2023).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call

from equipoise.errors import InputError
from equipoise.linalg.hessian import HessianProduct, hessian_product
from equipoise.modes import default_modes


@dataclass(frozen=True)
class Estimate:
    """A figure with its error: a standard error over random directions, or a bound; zero where it is exact."""

    value: float
    error: float = 0.0


@dataclass(frozen=True)
class HessianSharpness:
    """Measures of the Hessian `H` of a loss at given weights.

    Attributes:
        trace: `tr H`.
        frobenius: `‖H‖_F`.
        largest: the largest eigenvalue; an eigenvalue lies within the error of it.
        log_determinant: `log |det(H + damping I)|`; minus infinity where that is singular.
        parameters: the size of `H`.
        products: how often `H` was multiplied with a vector.
    """

    trace: Estimate
    frobenius: Estimate
    largest: Estimate
    log_determinant: Estimate
    parameters: int
    products: int


@default_modes()
def sharpness(
    model: nn.Module,
    closure: Callable[[nn.Module], Tensor],
    *,
    relative: bool = False,
    damping: float = 0.0,
    samples: int = 32,
    steps: int = 20,
    dense: int = 256,
    seed: int = 0,
) -> HessianSharpness:
    """Measure the Hessian of a loss in all trained parameters of a model.

    Up to `dense` parameters the Hessian is built and everything is exact. Above, trace and Frobenius norm are means
    over random signs (`zᵀHz` and `‖Hz‖²`: Hutchinson 1990), the determinant is by stochastic Lanczos quadrature (Ubaru,
    Chen & Saad, 2017), whose error is that of the directions alone, and the largest eigenvalue is ARPACK's.

    Args:
        model: the model; its gradients are not changed.
        closure: computes the loss by calling the model, the same at every call.
        relative: whether to measure `D H D`, `D = diag(|w|)`, in place of `H`.
        damping: added to the diagonal for the determinant alone, as Hessians of large models are singular.
        samples: the number of random directions.
        steps: Lanczos steps of each.
        dense: the largest number of parameters for which the Hessian is built.
        seed: of the directions.

    Returns:
        The measures, each with its error.

    Raises:
        InputError: for a model without trained parameters, a loss that is not finite, and counts below two.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> X = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> found = sharpness(model, lambda model: 0.5 * model(X).square().sum())  # H = diag(1, 4)
    >>> [round(each.value, 4) for each in (found.trace, found.frobenius, found.largest, found.log_determinant)]
    [5.0, 4.1231, 4.0, 1.3863]
    """
    if min(samples, steps) < 2:
        raise InputError(
            expected="2 samples and 2 steps or more",
            found=f"samples={samples}, steps={steps}",
            remedy="pass samples=32, steps=20",
        )
    weights = _trained(model)
    operator = _Operator(_hessian_product(model, closure, weights), _scale(weights) if relative else None)
    size = sum(weight.numel() for weight in weights.values())
    like = torch.cat([weight.flatten() for weight in weights.values()])
    if size <= dense:
        return _exact(operator, like, damping)
    return _estimated(operator, like, damping, samples, steps, torch.Generator().manual_seed(seed))


@dataclass
class _Operator:
    """`H`, or `D H D`, with a count of its products."""

    product: HessianProduct
    scale: Float[Tensor, " p"] | None
    products: int = 0

    def __call__(self, vector: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        self.products += 1
        if self.scale is None:
            return self.product(vector)
        return self.scale * self.product(self.scale * vector)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    found = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad and each.numel()}
    if not found:
        raise InputError(
            expected="a model with trained parameters", found="none", remedy="call model.requires_grad_() first"
        )
    return found


def _scale(weights: dict[str, Tensor]) -> Float[Tensor, " p"]:
    return torch.cat([weight.abs().flatten() for weight in weights.values()])


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, closure: Callable[[nn.Module], Tensor]):
        super().__init__()
        self.model, self.closure = model, closure

    def forward(self) -> Tensor:
        """The loss."""
        return self.closure(self.model)


def _hessian_product(
    model: nn.Module, closure: Callable[[nn.Module], Tensor], weights: dict[str, Tensor]
) -> HessianProduct:
    """`v ↦ H v` for the loss of a model at these weights."""
    leaves = {f"model.{name}": weight.clone().requires_grad_() for name, weight in weights.items()}
    with torch.enable_grad():
        loss = functional_call(_Loss(model, closure), leaves, ())
        if loss.numel() != 1 or not bool(torch.isfinite(loss)):
            raise InputError(
                expected="a loss that is one finite number",
                found=_shown(loss),
                remedy="return its mean from the closure",
            )
        return hessian_product(loss, list(leaves.values()))


def _shown(loss: Tensor) -> str:
    return f"shape {tuple(loss.shape)}" if loss.numel() != 1 else f"{float(loss.detach())}"


def _exact(operator: _Operator, like: Float[Tensor, " p"], damping: float) -> HessianSharpness:
    unit = torch.eye(len(like), dtype=like.dtype, device=like.device)
    matrix = torch.stack([operator(row) for row in unit]).double()
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    return HessianSharpness(
        Estimate(float(values.sum())),
        Estimate(float(values.norm())),
        Estimate(float(values[-1])),
        Estimate(float(torch.log((values + damping).abs()).sum())),
        len(like),
        operator.products,
    )


def _estimated(
    operator: _Operator,
    like: Float[Tensor, " p"],
    damping: float,
    samples: int,
    steps: int,
    generator: torch.Generator,
) -> HessianSharpness:
    size = len(like)
    traces, squares, logs = [], [], []
    for _ in range(samples):
        signs = (2 * torch.randint(2, (size,), generator=generator) - 1).to(like)
        diagonal, beside = _lanczos(operator, signs / math.sqrt(size), steps)
        traces.append(size * diagonal[0])
        squares.append(size * (diagonal[0] ** 2 + (beside[0] ** 2 if len(beside) else 0.0)))
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        with np.errstate(divide="ignore"):
            logs.append(size * float(vectors[0] ** 2 @ np.log(np.abs(values + damping))))
    square = _mean(squares)
    norm = math.sqrt(square.value)
    return HessianSharpness(
        _mean(traces),
        Estimate(norm, square.error / (2 * norm) if norm else 0.0),
        _largest(operator, like, generator),
        _mean(logs),
        size,
        operator.products,
    )


def _mean(values: Sequence[float]) -> Estimate:
    array = np.array(values)
    if not np.isfinite(array).all():
        return Estimate(float(array.mean()), math.nan)
    return Estimate(float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array))))


def _lanczos(operator: _Operator, start: Float[Tensor, " p"], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The diagonal and the off-diagonal of the tridiagonal matrix, with full reorthogonalisation."""
    basis, diagonal, beside = [start], [], []
    for _ in range(min(steps, len(start))):
        image = operator(basis[-1])
        diagonal.append(float(basis[-1] @ image))
        known = torch.stack(basis)
        for _ in range(2):  # twice is enough
            image = image - known.T @ (known @ image)
        norm = float(image.norm())
        if norm <= 1e2 * torch.finfo(start.dtype).eps * max(map(abs, diagonal)):
            break
        beside.append(norm)
        basis.append(image / norm)
    return np.array(diagonal), np.array(beside[: len(diagonal) - 1])


def _largest(operator: _Operator, like: Float[Tensor, " p"], generator: torch.Generator) -> Estimate:
    def multiply(vector: np.ndarray) -> np.ndarray:
        return operator(torch.as_tensor(vector.reshape(-1)).to(like)).double().cpu().numpy()

    start = torch.randn(len(like), generator=generator, dtype=torch.float64).numpy()
    if not multiply(start).any():  # ARPACK refuses the zero matrix
        return Estimate(0.0)
    wrapped = LinearOperator(shape=(len(like), len(like)), matvec=multiply, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    values, vectors = eigsh(wrapped, k=1, which="LA", v0=start, tol=1e-6)  # pyright: ignore[reportArgumentType]
    residual = multiply(vectors[:, 0]) - values[0] * vectors[:, 0]
    return Estimate(float(values[0]), float(np.linalg.norm(residual)))
