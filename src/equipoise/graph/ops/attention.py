"""Fused attention: the scores are at rest under softmax, the values pass through."""

from typing import Any

import torch

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.signal import Role, Signal
from equipoise.graph.ops.contraction import matmul
from equipoise.graph.ops.operator import matches


@matches("scaled_dot_product_attention")
def attention(
    algebra: Algebra,
    query: Signal,
    key: Signal,
    value: Signal,
    mask: Signal | None = None,
    dropout: Any = 0.0,
    causal: Any = False,
    *,
    scale: Any = None,
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
