"""Memory that many products share."""

import torch
from torch import Tensor

_LITTLE = 1 << 20  # elements: 4 MB in float32


class Scratch:
    """Products element by element, each valid until the next: fresh memory would cost more than the product.

    >>> Scratch().product(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    tensor([3., 8.])
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        """`x y` for tensors of one shape, in their common dtype."""
        memory = self._memory
        dtype = x.dtype if x.dtype == y.dtype else torch.promote_types(x.dtype, y.dtype)
        if memory is None or memory.numel() < x.numel() or memory.dtype != dtype or memory.device != x.device:
            memory = self._memory = x.new_empty(x.numel(), dtype=dtype)
        return torch.mul(x, y, out=memory[: x.numel()].view(x.shape))

    def trim(self) -> None:
        """Keep the memory for later only if it is little."""
        if self._memory is not None and self._memory.numel() > _LITTLE:
            self._memory = None
