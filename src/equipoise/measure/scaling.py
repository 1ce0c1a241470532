"""Scalings of the parameters under which a network has degree 1, derived from its graph (docs/theory.md, T11)."""

from collections.abc import Mapping
from numbers import Rational

import torch
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.graph.capture import Inputs, capture
from equipoise.graph.degrees import QuasiHomogeneity
from equipoise.graph.degrees import quasi_homogeneity as of_graph
from equipoise.modes import default_modes


@default_modes()
def quasi_homogeneity(model: nn.Module, example_inputs: Inputs, *, ignore_eps: bool = False) -> QuasiHomogeneity:
    """Exponents `λ_p ≥ 0` with `f(ψ_a θ) = e^a f(θ)`, `ψ_a θ_p = e^{a λ_p} θ_p`, of any model that can be read (T11).

    The parameters with the largest exponent are those whose norm is in the max-margin problem that the limit of
    gradient flow solves (Kunin et al. 2023). Of several choices the exponents are those whose largest is least, then
    the next largest, and so on.

    Args:
        model: a model of one output, or of several that are to have the same degree.
        example_inputs: a tensor, a sequence of arguments or a mapping of keywords to read it with.
        ignore_eps: take the constants in normalisations for zero; the exponents are then those of large weights.

    Returns:
        The exponents as fractions by the name of the parameter, or the obstacle.

    Raises:
        CaptureError: for a model that cannot be read.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> found = quasi_homogeneity(model, torch.ones(2, 3))
    >>> found.exponents["0.bias"], found.largest
    (Fraction(1, 2), ('2.bias',))
    """
    return of_graph(capture(model, example_inputs), ignore_eps=ignore_eps)


@default_modes()
def euler_residual(model: nn.Module, inputs: Tensor, exponents: Mapping[str, Rational | float]) -> float:
    """The largest `|Σ_p λ_p ⟨θ_p, ∂_p f(x)⟩ - f(x)|` over examples and outputs, over the largest `|f|`.

    Zero but for rounding exactly where the exponents make the network quasi-homogeneous (Euler's identity).

    Args:
        model: any differentiable model.
        inputs: a batch of examples.
        exponents: by the name of the parameter; 0 for one that is not named.

    Returns:
        The relative residual.

    Raises:
        InputError: where all outputs are zero.

    >>> model = nn.Linear(3, 1, bias=False).double()
    >>> euler_residual(model, torch.ones(2, 3).double(), {"weight": 1.0}) < 1e-15
    True
    """
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    along = {name: float(exponents.get(name, 0.0)) * weight for name, weight in weights.items()}
    output, change, *_ = torch.func.jvp(lambda w: torch.func.functional_call(model, w, (inputs,)), (weights,), (along,))
    largest = float(output.detach().abs().max())
    if largest == 0:
        raise InputError(expected="outputs that are not all zero", found="zeros", remedy="pass other inputs or weights")
    return float((change - output).detach().abs().max()) / largest
