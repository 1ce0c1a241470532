"""Softmax, and attention: scores rest but for a shift of all of them, the values pass through."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from numpy import ndarray
from torch import Tensor, fx
from torch.nn import functional as F

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.shift_groups import Groups, Rows, along, dense
from equipoise.graph.labels.signal import Role, Signal
from equipoise.graph.ops import rules
from equipoise.graph.ops.arithmetic import ignored_by_centring
from equipoise.graph.ops.contraction import matmul
from equipoise.graph.ops.operator import (
    IgnoringRule,
    Operator,
    Regularity,
    Site,
    Sources,
    Trait,
    declare,
    element_numbers,
)
from equipoise.graph.ops.pointwise import lawless


def attention(
    algebra: Algebra,
    query: Signal,
    key: Signal,
    value: Signal,
    mask: Signal | None = None,
    dropout: object = 0.0,
    causal: object = False,
    *,
    scale: object = None,
    enable_gqa: bool = False,
) -> Signal:
    """`softmax(q kᵀ) v`: queries and keys cancel head by head, values carry their role to the output."""
    if enable_gqa:
        key, value = (_repeated(algebra, tensor, query.shape[-3]) for tensor in (key, value))
    turned = Signal(
        (*key.shape[:-2], key.shape[-1], key.shape[-2]),
        tuple(role.moved(lambda labels: labels.transpose(-1, -2)) for role in key.roles),
    )
    scores = matmul(algebra, query, turned)
    algebra.scalable.discard(algebra.place)  # no scale is left in front of a softmax
    algebra.still(scores, *([mask] if mask is not None else []))
    return matmul(algebra, Signal(scores.shape), value)


def _repeated(algebra: Algebra, tensor: Signal, heads: int) -> Signal:
    """The heads of a group share keys and values."""
    count = heads // tensor.shape[-3]
    repeat = lambda labels: torch.repeat_interleave(labels, count, -3)  # noqa: E731
    roles = tuple(algebra.distinct(Role(repeat(role.coordinates), repeat(role.fibres))) for role in tensor.roles)
    return Signal((*tensor.shape[:-3], heads, *tensor.shape[-2:]), roles)


def log_sum_exp(algebra: Algebra, signal: Signal, dim: int | Sequence[int], keepdim: object = False) -> Signal:
    """`log Σ exp` over axes: as a softmax, it commutes with no linear flow."""
    algebra.still(signal)
    dims = [dim] if isinstance(dim, int) else list(dim)
    like = torch.empty(signal.shape, device="meta").sum(dims, keepdim=bool(keepdim))
    return Signal(tuple(like.shape))


def cosine_similarity(x: Tensor, y: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """`x · y / (‖x‖ ‖y‖)`."""
    return (F.normalize(x, dim=dim, eps=eps) * F.normalize(y, dim=dim, eps=eps)).sum(dim)


# Shifts ---------------------------------------------------------------------------------------------------------------


def _ignored_along(axis: Callable[[Site, int], int]) -> IgnoringRule:
    """A common shift along one axis of a number of them."""

    def rule(site: Site) -> Sources:
        source = site.source()
        shape = site.shape_of(source)
        yield source, along(shape, [axis(site, len(shape))])

    return rule


def _ignored_by_attention(site: Site) -> Sources:
    """A shift of all keys alike shifts every score of a query alike; so does one of its row of the mask."""
    key, mask = site.tensor(1), site.tensor(3)
    if key is None:
        return
    yield key, along(site.shape_of(key), [-2])
    if mask is not None and site.shape_of(mask)[-1] == site.shape_of(key)[-2]:
        yield mask, along(site.shape_of(mask), [-1])


def _shift_in_common(site: Site, groups: Groups | Rows) -> Sources:
    """The result is shifted as all that it is taken over are in common."""
    source, labels = site.source(), dense(groups, site.shape)
    shape = site.shape_of(source)
    axes = [axis % len(shape) for axis in site.integers(1)]
    if labels is not None:
        kept = labels.reshape([1 if axis in axes else size for axis, size in enumerate(shape)])
        yield source, kept.expand(shape)


# Balances -------------------------------------------------------------------------------------------------------------


def _shares(site: Site) -> tuple[ndarray, float]:
    """Probabilities sum to one."""
    axis = site.integer(1) % max(len(site.shape), 1)
    numbers = element_numbers(site.shape).movedim(axis, -1)
    return numbers.reshape(-1, site.shape[axis]).numpy(), 1.0


# Declarations ---------------------------------------------------------------------------------------------------------


def _drops(node: fx.Node) -> bool:
    return bool(node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p"))


_SOFTMAX = Operator(
    symmetry=lawless,
    ignores=_ignored_along(lambda site, ndim: site.integer(1)),
    regularity=Regularity.SMOOTH,
    traits=Trait.RESTING,
)
declare("softmax _softmax", replace(_SOFTMAX, balance=_shares))
declare("log_softmax _log_softmax", _SOFTMAX)
declare("_safe_softmax", Operator(regularity=Regularity.SMOOTH))
declare(
    "logsumexp",
    Operator(
        symmetry=log_sum_exp,
        ignores=ignored_by_centring,
        shift=_shift_in_common,
        regularity=Regularity.SMOOTH,
        traits=Trait.RESTING | Trait.CENTRE,
    ),
)
declare("cross_entropy_loss", Operator(ignores=_ignored_along(lambda site, ndim: min(1, ndim - 1))))
declare(
    "scaled_dot_product_attention",
    Operator(
        symmetry=attention,
        ignores=_ignored_by_attention,
        exchange=rules.added_last(2),  # weights that sum to one
        regularity=Regularity.SMOOTH,
        draws=_drops,
        traits=Trait.RESTING | Trait.ROTATABLE,
    ),
)
declare(
    "cosine_similarity",
    Operator(reference=cosine_similarity, regularity=Regularity.SMOOTH, traits=Trait.ROTATABLE),
)
