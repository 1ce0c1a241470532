"""Operations that bend, in terms of ReLU and of maxima along an axis: the two whose kinks are known (T6.2).

A flow does not pass a kink that it does not know of: the midpoint rule stalls where the derivative jumps. Each function
here is the operation of its name in other words, the same numbers up to rounding, as a decomposition for `capture`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
_GUARD = 1e6
_SELU = 1.6732632423543772, 1.0507009873554805  # α, and the scale


def _larger(z: Tensor, low: Any) -> Tensor:
    """A number far away is a guard, and costs `z` no digits."""
    if isinstance(low, int | float) and (low == 0 or abs(low) > _GUARD):
        return torch.relu(z) if low == 0 else z + torch.relu(low - z)
    return low + torch.relu(z - low)


def _smaller(z: Tensor, high: Any) -> Tensor:
    return -_larger(-z, -high)


def _clamp(z: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """At least `low`, then at most `high`, exactly where it saturates."""
    z = z if low is None else _larger(z, low)
    return z if high is None else _smaller(z, high)


def _hardsigmoid(z: Tensor) -> Tensor:
    return _clamp(z + 3, 0.0, 6.0) / 6


def _elu(z: Tensor, alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> Any:
    if alpha * input_scale == 1:
        return NotImplemented  # its derivative does not jump
    return scale * (torch.relu(z) + alpha * torch.expm1(-input_scale * torch.relu(-z)))


def _max(z: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    return z.amax() if dim is None else (z.amax(dim, keepdim), z.argmax(dim, keepdim))


def _min(z: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    return -(-z).amax() if dim is None else (-(-z).amax(dim, keepdim), z.argmin(dim, keepdim))


def _amin(z: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return -torch.amax(-z, dim, keepdim)


def _adaptive_max_pool(z: Tensor, sizes: int | Sequence[int]) -> Any:
    """Where windows are of one size, their maxima; the places of these are of no use here."""
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    shape = z.shape[-len(sizes) :]
    if any(length % size for length, size in zip(shape, sizes, strict=True)):
        return NotImplemented
    for axis, size in enumerate(sizes, -len(sizes)):
        z = z.unflatten(axis, (size, -1)).amax(axis)
    return z, torch.zeros_like(z, dtype=torch.int64)


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    _aten.clamp.default: _clamp,
    _aten.clamp.Tensor: _clamp,
    _aten.clamp_min.default: _larger,
    _aten.clamp_min.Tensor: _larger,
    _aten.clamp_max.default: _smaller,
    _aten.clamp_max.Tensor: _smaller,
    _aten.hardtanh.default: lambda z, low=-1.0, high=1.0: _clamp(z, low, high),
    _aten.relu6.default: lambda z: _clamp(z, 0.0, 6.0),
    _aten.hardsigmoid.default: _hardsigmoid,
    _aten.hardswish.default: lambda z: z * _hardsigmoid(z),
    _aten.elu.default: _elu,
    _aten.selu.default: lambda z: _elu(z, *_SELU),
    _aten.maximum.default: _larger,
    _aten.fmax.default: _larger,
    _aten.max.other: _larger,
    _aten.minimum.default: _smaller,
    _aten.fmin.default: _smaller,
    _aten.min.other: _smaller,
    _aten.max.default: _max,
    _aten.max.dim: _max,
    _aten.min.default: _min,
    _aten.min.dim: _min,
    _aten.amin.default: _amin,
    _aten.adaptive_max_pool1d.default: _adaptive_max_pool,
    _aten.adaptive_max_pool2d.default: _adaptive_max_pool,
}
