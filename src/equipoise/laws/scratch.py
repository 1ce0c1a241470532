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
        self._used = 0
        self._views: dict[torch.Size, Tensor] = {}

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        """`x y` for tensors of one shape, in their common dtype."""
        dtype = x.dtype if x.dtype == y.dtype else torch.promote_types(x.dtype, y.dtype)
        view = self._views.get(x.shape)
        if view is None or view.dtype != dtype or view.device != x.device:
            view = self._views[x.shape] = self._room(x, dtype).view(x.shape)
        return torch.mul(x, y, out=view)

    def _room(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory for one product: beside the others of this dtype while there is little, else in place of them."""
        memory, count = self._memory, like.numel()
        if memory is None or memory.dtype != dtype or memory.device != like.device or len(memory) < count:
            memory = self._memory = like.new_empty(max(count, _LITTLE), dtype=dtype)
            self._views.clear()
            self._used = 0
        start = self._used if self._used + count <= len(memory) else 0
        self._used = start + count
        return memory[start : self._used]

    def trim(self) -> None:
        """Keep the memory for later only if it is little."""
        if self._memory is not None and self._memory.numel() > _LITTLE:
            self._memory = None
            self._views.clear()
