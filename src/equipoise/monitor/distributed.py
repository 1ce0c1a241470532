"""The processes that train together: sums over all of them, and the part of a weight that each one holds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.linalg import sum_of_squares, wide
from equipoise.linalg.rows import RowBlock
from equipoise.measure.unfolding import Unfolding

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class PeerFailure(RuntimeError):
    """A failure, on this process or another, of work that all of them do together."""


@dataclass(frozen=True)
class ProcessGroup:
    """`size` processes, of which this is number `rank`; one, where nothing is distributed.

    Before each sum they exchange whether they are ready; one that has failed reports it, and none waits for it.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "ProcessGroup":
        """The default process group of torch, if there is one.

        >>> ProcessGroup.current()
        ProcessGroup(rank=0, size=1)
        """
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def reduce(self, tensors: list[Tensor]) -> list[Tensor]:
        """The sum of each tensor over all processes, by one reduction in float64."""
        if self.size == 1 or not tensors:
            return tensors
        self._meet()
        flat = torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view(tensor.shape).to(tensor.dtype) for piece, tensor in zip(pieces, tensors, strict=True)]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that ends in sums over all processes: any failure inside is a `PeerFailure`, here and on all others."""
        try:
            yield
        except Exception as error:
            failure = self.share_failure(error)
            if failure is error:
                raise
            raise failure from error

    def share_failure(self, error: Exception) -> Exception:
        """The error to report, once all other processes know of it."""
        if self.size == 1 or isinstance(error, PeerFailure):
            return error
        with suppress(Exception):
            self._meet(failed=True)
        return PeerFailure(f"{type(error).__name__}: {error}")

    def _meet(self, failed: bool = False) -> None:
        failures = torch.tensor([float(failed)], device=_device())
        dist.all_reduce(failures)
        if failures.item():
            raise PeerFailure("observation failed on another rank; see its log")

    def broadcast(self, number: int) -> int:
        """The number of the leading process, on all of them."""
        if self.size == 1:
            return number
        sent = torch.tensor([number if self.leads else 0], dtype=torch.float64)
        return int(self.reduce([sent.to(_device())])[0])

    # --- parts of a weight ---

    def rows(self, unfolding: Unfolding, along: str | None, weights: Mapping[str, Tensor]) -> RowBlock:
        """The rows of a matrix that are this process's: its shard, or its share of what all have.

        `along` names a bias `b`: then `[W b]` is iterated besides.
        """
        tensor = weights[unfolding.weight]
        offset, count = _offset_and_rows(tensor)
        local = {name: _local(weights[name]) for name in (unfolding.weight, unfolding.bias, along) if name}
        if not _is_sharded(tensor) and self.size > 1:
            low, high = (count * rank // self.size for rank in (self.rank, self.rank + 1))
            local, offset = {name: part[low:high] for name, part in local.items()}, low
        mine = local[unfolding.weight].shape[0]
        matrix = wide(unfolding.matrix(local))
        taps = matrix.shape[0] // mine if mine else 1
        return RowBlock(matrix, wide(local[along]) if along else None, offset * taps, count * taps)

    def summands(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights as tensors of their full shape whose sum over all processes is the weight."""
        return Summands(weights.weights if isinstance(weights, Gathered) else weights, self)

    def squares(self, weights: Mapping[str, Tensor], known: Mapping[str, float] | None = None) -> dict[str, float]:
        """`Σ w²` of every weight, shards included, by one reduction; those that are `known` are not read."""
        known = known or {}
        rest = [name for name in weights if name not in known]
        sums = {}
        if rest:
            with self.together():
                counted = [sum_of_squares(_local(weights[name])) for name in rest]
                mine = [self.leads or _is_sharded(weights[name]) for name in rest]
                apart = [part if own else torch.zeros_like(part) for part, own in zip(counted, mine, strict=True)]
                sums = dict(zip(rest, self.reduce([torch.stack(apart)])[0].tolist(), strict=True))
        return {name: known[name] if name in known else sums[name] for name in weights}


class Summands(Mapping[str, Tensor]):
    """Each process's shard, padded with zeros; a weight that all have is the first one's."""

    def __init__(self, weights: Mapping[str, Tensor], group: ProcessGroup):
        self.weights, self.group = weights, group

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.weights[name]
        if not _is_sharded(tensor):
            return tensor if self.group.leads else torch.zeros_like(tensor)
        offset, rows = _offset_and_rows(tensor)
        local = _local(tensor)
        padding = [0, 0] * (local.ndim - 1) + [offset, rows - offset - len(local)]
        return torch.nn.functional.pad(local, padding)

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


class Gathered(Mapping[str, Tensor]):
    """The weights as whole tensors; a shard is gathered from all processes when it is read."""

    def __init__(self, weights: Mapping[str, Tensor]):
        self.weights = weights

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.weights[name]
        return tensor.full_tensor() if _is_sharded(tensor) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def gathered(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights, gathered where they are in shards."""
    return Gathered(weights) if any_sharded(weights) else weights


def any_sharded(weights: Mapping[str, Tensor]) -> bool:
    """Whether some weight is in shards."""
    return not isinstance(weights, Gathered) and any(map(_is_sharded, weights.values()))


def _is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    return type(tensor) is not Tensor and hasattr(tensor, "placements")  # torch.distributed.tensor is slow to import


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if _is_sharded(tensor) else tensor


def _offset_and_rows(tensor: Tensor) -> tuple[int, int]:
    """The number of rows before this process's, and of all."""
    if not _is_sharded(tensor):
        return 0, tensor.shape[0]
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return int(offset[0]), tensor.shape[0]


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
