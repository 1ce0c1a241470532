"""Weights moved along the symmetry behind a law, in place: the function stays (docs/theory.md, T8).

A generator `A` of the commutant acts on the slices of a member by `e^{degree · A}`: producers are multiplied by `T`,
consumers by its inverse from the other side, biases are columns of their producer. Which slices these are, reshaped and
indexed as the model uses them, is what `Law.slices` says.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from equipoise.graph.interface import Member
from equipoise.laws import Law
from equipoise.laws.law import fitting

Weights = dict[str, Tensor]  # by canonical name, contiguous
Matrices = Float[Tensor, "blocks width width"]
Components = Float[Tensor, "blocks width"]


def moments(law: Law, left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Matrices:
    """`Σ degree · X Yᵀ` over the members, symmetric, projected on the commutant.

    At `X = Y = w` this is the conserved quantity, and the gradient of `½‖w‖²` along the symmetry.
    """
    return moments_of(law, left, law.slices(right))


def moments_of(law: Law, left: Mapping[str, Tensor], right: Sequence[Tensor]) -> Matrices:
    """The same from the slices `Y` of the members; what `left` does not have is zero."""
    pairs = zip(law.interface.members, right, strict=True)
    present = [(member, own) for member, own in pairs if member.parameter in left]
    if not present:
        blocks, width = law.commutant.shape
        return right[0].new_zeros(blocks, width, width)
    moved = [member.slices(fitting(member, left)) for member, _ in present]
    degrees = [member.degree for member, _ in present]
    found = law.commutant.project(law.commutant.moments(moved, [own for _, own in present], degrees))
    return found if found.shape[-1] == 1 else (found + found.mT) / 2


def scale(law: Law, weights: Weights, rates: Components, vanishing: Bool[Tensor, "blocks width"]) -> None:
    """Multiply component `i` of every member by `e^{degree · rates[i]}`, or by zero where it vanishes."""
    for member in law.interface.members:
        factors = (member.degree * rates).exp().masked_fill(vanishing, 0.0)[:, None, :, None]
        _update(member, weights, lambda slices, factors=factors: slices * factors)


def transform(law: Law, weights: Weights, producers: Matrices, consumers: Matrices) -> None:
    """Multiply the components of producers by one matrix, those of consumers by the other."""
    for member in law.interface.members:
        matrix = (producers if member.degree > 0 else consumers)[:, None]
        _update(member, weights, lambda slices, matrix=matrix: matrix @ slices)


def rotate(law: Law, weights: Weights, orthogonal: Matrices) -> None:
    """Multiply the components of producers and consumers by an orthogonal matrix, which is its own contragredient."""
    transform(law, weights, orthogonal, orthogonal)


def rearrange(law: Law, weights: Weights, order: Int64[Tensor, " blocks"]) -> None:
    """Put block `order[i]` of every member in the place of block `i`."""
    for member in law.interface.members:
        _update(member, weights, lambda slices: slices[order])


def advance(law: Law, weights: Weights, generator: Matrices) -> None:
    """Move the members along the curve `e^{tA}` to `t = 1`, for a symmetric generator `A`."""
    exponentials = {degree: torch.matrix_exp(degree * generator)[:, None] for degree in set(law.degrees)}
    for member in law.interface.members:
        matrix = exponentials[member.degree]
        _update(member, weights, lambda slices, matrix=matrix: _product(matrix, slices))


def add_velocity(law: Law, members: Sequence[Tensor], generator: Matrices, velocity: Weights) -> None:
    """Add to `velocity` the derivative of the weights along `e^{tA}` at `t = 0`, for a symmetric generator `A`.

    `members` are the slices of the weights; what `velocity` does not have is left out.
    """
    for member, slices in zip(law.interface.members, members, strict=True):
        if member.parameter in velocity:
            own = _product(member.degree * generator[:, None], slices)
            _update(member, velocity, lambda sofar, own=own: sofar + own)


def _product(matrix: Float[Tensor, "blocks _ width width"], slices: Tensor) -> Tensor:
    return matrix * slices if matrix.shape[-1] == 1 else matrix @ slices


def center(law: Law, velocity: Weights) -> None:
    """Take from a velocity its part along the translations of a shift: every group then sums to zero."""
    for member in law.interface.members:
        _update(member, velocity, lambda slices: slices - slices.mean(2, keepdim=True))


def shift_to(law: Law, weights: Weights, sums: Float[Tensor, "groups columns"]) -> None:
    """Translate the groups of a shift until they have these sums, as `law.value` lists them: member by member."""
    shares = sums.split([slices[:, :, 0].flatten(1).shape[1] for slices in law.slices(weights)], 1)
    for member, total in zip(law.interface.members, shares, strict=True):
        _update(member, weights, lambda slices, total=total: _translated(slices, total))


def _translated(slices: Float[Tensor, "groups copies width rest"], sums: Float[Tensor, "groups columns"]) -> Tensor:
    missing = sums.view(slices.shape[0], slices.shape[1], 1, slices.shape[3]) - slices.sum(2, keepdim=True)
    return slices + missing / slices.shape[2]


def overlaps(law: Law, weights: Weights) -> bool:
    """Whether two members share an element of a weight, as a recurrent matrix that is written and read by one layer.

    Such an element moves with the product of two factors, so that no unit can be solved for without the others.
    """
    names = [member.parameter for member in law.interface.members]
    repeated = {name: torch.zeros_like(weights[name]) for name in names if names.count(name) > 1}
    for member in law.interface.members:
        if member.parameter in repeated:
            _update(member, repeated, lambda hits: hits + 1)
    return any(bool((hits > 1).any()) for hits in repeated.values())


def stacked(
    law: Law, weights: Mapping[str, Tensor], chosen: Callable[[Member], bool]
) -> Float[Tensor, "blocks width rest"]:
    """The slices of the chosen members side by side, copies too."""
    pairs = zip(law.interface.members, law.slices(weights), strict=True)
    return torch.cat([slices.transpose(1, 2).flatten(2) for member, slices in pairs if chosen(member)], 2)


def writes(member: Member) -> bool:
    """Whether a member is a producer."""
    return member.degree > 0


def reads(member: Member) -> bool:
    """Whether a member is a consumer."""
    return member.degree < 0


def squared_norm(tensors: Mapping[str, Tensor] | Sequence[Tensor]) -> float:
    """The sum of squares of all elements."""
    values = tensors.values() if isinstance(tensors, Mapping) else tensors
    return float(sum(value.square().sum() for value in values))


def _update(member: Member, tensors: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> None:
    """Replace the slices of a member by what becomes of them; in its memory where they are a view of it."""
    tensor = tensors[member.parameter]
    slices = member.slices(tensor)
    changed = change(slices)
    if slices.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
        slices.copy_(changed)
    else:
        front = tensor.view(member.view).movedim(member.axes, tuple(range(len(member.axes))))
        lines = torch.unravel_index(member.index.reshape(-1).to(tensor.device), front.shape[: len(member.axes)])
        front[lines] = changed.reshape(-1, *front.shape[len(member.axes) :])
