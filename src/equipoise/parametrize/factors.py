"""Deep weight factorisation: `w = w₁ ⊙ … ⊙ w_D`, whose weight decay is a sparse penalty (Kolb et al., ICLR 2025).

`min (1/D) Σ_d ‖w_d‖²` over all factors of `w` is `Σ_i |w_i|^{2/D}`, by the inequality of arithmetic and geometric
means: the lasso for two factors, non-convex and sparser for more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from equipoise.arguments import checked
from equipoise.errors import InputError
from equipoise.parametrize.weights import chosen

Init = Literal["balanced", "random"]
LOW, HIGH = 0.3, 2.0  # standard deviations between which the magnitude of a random factor is drawn


class Factors(nn.Module):
    """A weight as the elementwise product of `depth` tensors of its shape.

    Args:
        depth: the number of factors, two at least.
        init: `balanced` takes the given weight apart into factors of equal magnitude, so that the function stays;
            `random` draws them such that the product has the variance of the weight.
    """

    def __init__(self, depth: int, init: Init = "balanced"):
        super().__init__()
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 2:
            raise InputError(expected="a depth of 2 or more", found=repr(depth), remedy="pass depth=2")
        if init not in ("balanced", "random"):
            raise InputError(expected="init 'balanced' or 'random'", found=repr(init), remedy="pass init='balanced'")
        self.depth: int = depth
        self.init: Init = init

    def forward(self, *factors: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The product."""
        return math.prod(factors[1:], start=factors[0])

    def right_inverse(self, weight: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], ...]:
        """Factors of a weight, or random ones of its variance."""
        if self.init == "random":
            return tuple(_random_factor(weight, self.depth) for _ in range(self.depth))
        root = weight.abs().pow(1 / self.depth)
        return root * weight.sign(), *(root.clone() for _ in range(self.depth - 1))


def _random_factor(weight: Tensor, depth: int) -> Tensor:
    """Numbers whose product over `depth` draws has the variance of the weight, none of them near zero.

    Magnitudes are those of a normal distribution between `LOW` and `HIGH` standard deviations: a factor near zero would
    stay there, because the gradient of every factor is the product of the others.
    """
    spread = float(weight.std(correction=0)) if weight.numel() > 1 else float(weight.abs())
    uniform = torch.rand_like(weight)
    low, high = (0.5 * (1 + math.erf(edge / math.sqrt(2))) for edge in (LOW, HIGH))
    magnitude = math.sqrt(2) * torch.erfinv(2 * (low + (high - low) * uniform) - 1)
    density = [math.exp(-edge * edge / 2) / math.sqrt(2 * math.pi) for edge in (LOW, HIGH)]
    variance = 1 + (LOW * density[0] - HIGH * density[1]) / (high - low)
    sign = torch.where(torch.rand_like(weight) < 0.5, -1.0, 1.0)
    return sign * magnitude * (spread ** (1 / depth) / math.sqrt(variance))


@checked
def factorize(
    model: nn.Module, depth: int = 2, names: str | Sequence[str] | None = None, *, init: Init = "balanced"
) -> nn.Module:
    """Replace weights by elementwise products of `depth` factors, which are trained in their place.

    Weight decay `λ` of the optimizer on the factors is the penalty `(λ D / 2) Σ_i |w_i|^{2/D}` on the weights once the
    factors are balanced. State dicts hold `parametrizations.weight.original0`, …; `torch.compile`, deepcopy and DDP
    work as for any parametrisation.

    Args:
        model: changed in place.
        depth: the number of factors.
        names: patterns of the parameters, such as `"*.weight"`; the weights of linear and convolutional layers if
            None.
        init: `balanced` keeps the function; `random` draws factors whose product has the variance of the weight.

    Returns:
        The model.

    Raises:
        InputError: for a depth below two, and names that match nothing or a parameter that cannot be parametrised.

    >>> model = factorize(nn.Linear(3, 1), depth=3)
    >>> sorted(name for name, _ in model.named_parameters())[:2]
    ['bias', 'parametrizations.weight.original0']
    """
    first = Factors(depth, init)  # refuses before anything is changed
    for module, own, _ in chosen(model, names, least_axes=1):
        parametrize.register_parametrization(module, own, Factors(first.depth, init))
    return model


def _factorized(model: nn.Module) -> list[tuple[nn.Module, str, str, list[Tensor]]]:
    """Module, parameter, full name and factors of every factorised weight."""
    found = []
    for prefix, module in model.named_modules():
        if not parametrize.is_parametrized(module) or not isinstance(module.parametrizations, nn.ModuleDict):
            continue
        for own, steps in module.parametrizations.items():
            if isinstance(steps, nn.ModuleList) and isinstance(first := steps[0], Factors):
                factors = [getattr(steps, f"original{place}") for place in range(first.depth)]
                found.append((module, own, f"{prefix}.{own}" if prefix else own, factors))
    if not found:
        raise InputError(
            expected="a model with factorised weights", found="none", remedy="call eq.parametrize.factorize(model)"
        )
    return found


@checked
def penalty(model: nn.Module) -> Float[Tensor, ""]:
    """`Σ (1/D) Σ_d ‖w_d‖²` over all factorised weights, at its least `Σ_i |w_i|^{2/D}`: to be multiplied by `λ`.

    Args:
        model: with factorised weights.

    Returns:
        A scalar that can be differentiated.

    Raises:
        InputError: for a model without any.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[4.0, -9.0]]))
    >>> float(penalty(factorize(model)).detach())  # |4| + |-9|
    13.0
    """
    terms = [sum(factor.square().sum() for factor in factors) / len(factors) for *_, factors in _factorized(model)]
    return torch.stack([torch.as_tensor(term) for term in terms]).sum()


@dataclass(frozen=True)
class Sparsity:
    """Entries of factorised weights that are zero, up to a threshold: by name, and altogether."""

    zeros: dict[str, int]
    entries: dict[str, int]

    @property
    def share(self) -> float:
        """The share of all entries that is zero."""
        return sum(self.zeros.values()) / max(sum(self.entries.values()), 1)

    @property
    def compression(self) -> float:
        """Entries per entry that is not zero; infinite if all are."""
        left = sum(self.entries.values()) - sum(self.zeros.values())
        return sum(self.entries.values()) / left if left else math.inf


@checked
def sparsity(model: nn.Module, threshold: float = 1e-6) -> Sparsity:
    """Count the entries of factorised weights whose magnitude is at most a threshold.

    Args:
        model: with factorised weights.
        threshold: largest magnitude of a zero.

    Returns:
        Counts by name of the weight.

    Raises:
        InputError: for a model without factorised weights, and a threshold that is negative or no number.
    """
    if not threshold >= 0:
        raise InputError(expected="a threshold of 0 or more", found=repr(threshold), remedy="pass threshold=1e-6")
    zeros, entries = {}, {}
    for module, own, name, _ in _factorized(model):
        weight = getattr(module, own).detach()
        zeros[name], entries[name] = int((weight.abs() <= threshold).sum()), weight.numel()
    return Sparsity(zeros, entries)


@checked
def collapse(model: nn.Module, threshold: float = 0.0) -> nn.Module:
    """Replace factors by their products: plain weights again, those up to a threshold set to zero.

    Args:
        model: changed in place.
        threshold: largest magnitude that becomes zero.

    Returns:
        The model. Optimizers made for its factors no longer train it.

    Raises:
        InputError: for a model without factorised weights, and a threshold that is negative or no number.

    >>> model = nn.Linear(3, 2)
    >>> weight = model.weight.detach().clone()
    >>> torch.allclose(collapse(factorize(model)).weight, weight)
    True
    """
    if not threshold >= 0:
        raise InputError(expected="a threshold of 0 or more", found=repr(threshold), remedy="pass threshold=1e-6")
    for module, own, _, _ in _factorized(model):
        parametrize.remove_parametrizations(module, own, leave_parametrized=True)
        weight = getattr(module, own)
        with torch.no_grad():
            weight[weight.abs() <= threshold] = 0.0
    return model
