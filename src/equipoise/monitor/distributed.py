"""The processes that train together: how they agree on what to watch, their sums, and each one's part of a weight."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.linalg import sum_of_squares, wide
from equipoise.linalg.blocks import MatrixBlock
from equipoise.measure.unfolding import Unfolding
from equipoise.monitor.shards import (
    Copies,
    Layout,
    Share,
    any_sharded,
    described,
    is_sharded,
    laid_out_as,
    local,
    meshes_of,
    undescribed,
)
from equipoise.observers import Unavailable

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

SAME = 0.01
"""Copies of a weight are taken for the same while their sums differ by less than this share of the norm. Those that
train together are the same to rounding; those of experts, or of stages, differ as their random numbers do."""

PATIENCE = 10.0
"""Seconds for which a process that watches waits for others that may not."""

ENDING = 120.0
"""Seconds for which a process that has left the loop waits for the others, before the last snapshot."""


class PeerFailure(RuntimeError):
    """A failure, on this process or another, of work that all of them do together."""


@dataclass(frozen=True)
class ProcessGroup:
    """`size` processes, of which this is number `rank`; one, where nothing is distributed.

    Before each sum they exchange whether they are ready; one that has failed reports it, and none waits for it.

    Attributes:
        rank: the number of this process.
        size: the number of processes.
        meshes: by the name of a mesh of shards, which of the meshes that hold the same it is, and how many there are;
            those not named here are alone.
    """

    rank: int = 0
    size: int = 1
    meshes: Mapping[str, Copies] = field(default_factory=dict)

    @classmethod
    def current(cls) -> "ProcessGroup":
        """The default process group of torch, if there is one.

        >>> ProcessGroup.current()
        ProcessGroup(rank=0, size=1, meshes={})
        """
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    # --- work of all processes ---

    def reduce(self, tensors: list[Tensor]) -> list[Tensor]:
        """The sum of each tensor over all processes, by one reduction in float64."""
        if self.size == 1 or not tensors:
            return tensors
        self.ready()
        flat = torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view(tensor.shape).to(tensor.dtype) for piece, tensor in zip(pieces, tensors, strict=True)]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that fails on all processes or on none: where some fail, it is a `PeerFailure`, here and on all others.

        A failure that all of them have is left as it is.
        """
        try:
            yield
        except Exception as error:
            failure = self.share_failure(error)
            if failure is error:
                raise
            raise failure from error
        self.ready()

    def share_failure(self, error: Exception) -> Exception:
        """The error to report, once all other processes know of it."""
        if self.size == 1 or isinstance(error, PeerFailure):
            return error
        failures = 1
        with suppress(Exception):
            failures = self._failures(failed=True)
        return error if failures == self.size else PeerFailure(f"{type(error).__name__}: {error}")

    def ready(self) -> None:
        """Wait until all others are here; a `PeerFailure` where one of them has failed instead."""
        if self.size > 1 and self._failures(failed=False):
            raise PeerFailure("observation failed on another rank; see its log")

    def any(self, flag: bool) -> bool:
        """Whether it is true on some process."""
        if self.size == 1:
            return flag
        return bool(self.reduce([torch.tensor([float(flag)], dtype=torch.float64, device=_device())])[0])

    def largest(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Of numbers of the same names on all processes the largest of each; NaN where one is."""
        if self.size == 1 or not numbers:
            return dict(numbers)
        self.ready()
        mine = torch.tensor(list(numbers.values()), dtype=torch.float64, device=_device()).nan_to_num(math.inf)
        dist.all_reduce(mine, op=dist.ReduceOp.MAX)
        return dict(zip(numbers, mine.tolist(), strict=True))

    def broadcast(self, number: int) -> int:
        """The number of the leading process, on all of them."""
        if self.size == 1:
            return number
        sent = torch.tensor([number if self.leads else 0], dtype=torch.float64)
        return int(self.reduce([sent.to(_device())])[0])

    def _failures(self, failed: bool) -> int:
        """How many processes have failed."""
        failures = torch.tensor([float(failed)], device=_device())
        dist.all_reduce(failures)
        return int(failures.item())

    # --- parts of a weight ---

    def block(self, unfolding: Unfolding, along: str | None, weights: Mapping[str, Tensor]) -> MatrixBlock:
        """The entries of a matrix that are this process's: of its shard, or its share of what others hold too.

        `along` names a bias `b`: then `[W b]` is iterated besides.
        """
        names = [name for name in (unfolding.weight, unfolding.bias, along) if name]
        split = Layout.of(weights[unfolding.weight]).split
        apart = unfolding.bias and (1 in split or not _same_rows(weights[unfolding.weight], weights[unfolding.bias]))
        if apart or any(axis > 1 for axis in split):  # a shard is no block of the matrix
            weights, split = {name: self._whole(weights[name]) for name in names}, ()
        weight = weights[unfolding.weight]
        share = self.share(weight)
        parts = {unfolding.weight: share.block}
        if unfolding.bias:
            parts[unfolding.bias] = self.share(weights[unfolding.bias]).block
        bias = self.share(weights[along]) if along else None
        matrix = wide(unfolding.matrix(parts))
        taps = math.prod(weight.shape[2:])
        by_row, by_column = (taps, 1) if unfolding.reads else (1, taps)
        return MatrixBlock(
            matrix,
            None if bias is None else wide(bias.block),
            (weight.shape[0] * by_row, weight.shape[1] * by_column + bool(unfolding.bias)),
            (share.begin[0] * by_row, share.begin[1] * by_column),
            0 if bias is None else bias.begin[0],
            across=1 in split or (along is not None and not _same_rows(weight, weights[along])),
        )

    def share(self, tensor: Tensor) -> Share:
        """This process's own block of a weight."""
        layout = Layout.of(tensor)
        if not layout.contiguous:
            tensor = self._whole(tensor)
            layout = Layout.of(tensor)
        return Share.of(tensor, local(tensor), layout.begin, self._copies(layout))

    def _copies(self, layout: Layout) -> Copies:
        """All processes that hold the same as this one."""
        everyone = Copies(self.rank, self.size)
        return layout.copies.among(self.meshes.get(layout.mesh, Copies()) if layout.mesh else everyone)

    def summands(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights as tensors of their full shape whose sum over all processes is the weight."""
        return Summands(weights.weights if isinstance(weights, Gathered) else weights, self)

    def gathered(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights as whole tensors; a shard is gathered from all processes when it is read."""
        if isinstance(weights, Gathered) or not any_sharded(weights):
            return weights
        return Gathered(weights, self)

    def like_weights(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradients, each in the layout of its weight; all processes have the same ones."""
        if any_sharded(weights):
            self.ready()
        return {name: laid_out_as(weights[name], gradient) for name, gradient in gradients.items()}

    def census(self, weights: Mapping[str, Tensor]) -> "Census":
        """`Σ w²` of every weight, shards included, and the weights of which the processes hold different copies.

        By one reduction. Copies are compared by their sums: of two that are drawn apart these differ as much as their
        norms are large.
        """
        shares = [self.share(weight) for weight in weights.values()]
        squares = [sum_of_squares(share.block) for share in shares]
        if self.size == 1:
            return Census(dict(zip(weights, torch.stack(squares).tolist(), strict=True)) if squares else {})
        contrasts = [self._contrast(weight) for weight in weights.values()]
        with self.together():
            sums = self.reduce([torch.stack([*squares, *contrasts])])[0].tolist()
        found = dict(zip(weights, sums[: len(squares)], strict=True))
        off = dict(zip(weights, sums[len(squares) :], strict=True))
        return Census(found, tuple(name for name in found if abs(off[name]) > SAME * found[name] ** 0.5))

    def _contrast(self, weight: Tensor) -> Tensor:
        """Terms that sum to zero over all processes if copies agree: a sum of the first, less the others' mean."""
        copies, held = self._copies(Layout.of(weight)), local(weight)
        if copies.count == 1:
            return held.new_zeros((), dtype=torch.float64)
        half = held.reshape(-1)[: (held.numel() + 1) // 2]  # a gradient as a whole may sum to zero, as a softmax's does
        return half.sum(dtype=torch.float64) * (1.0 if copies.number == 0 else -1 / (copies.count - 1))

    def _whole(self, tensor: Tensor) -> Tensor:
        if not is_sharded(tensor):
            return tensor
        self.ready()
        return tensor.full_tensor()


@dataclass(frozen=True)
class Census:
    """`Σ w²` of each weight, and the names of those of which processes hold different copies."""

    squares: Mapping[str, float]
    different: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summands(Mapping[str, Tensor]):
    """Each process's share of a weight, padded with zeros."""

    weights: Mapping[str, Tensor]
    group: ProcessGroup

    def __getitem__(self, name: str) -> Tensor:
        return self.group.share(self.weights[name]).padded(self.weights[name].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True)
class Gathered(Mapping[str, Tensor]):
    """The weights as whole tensors; a shard is gathered from all processes when it is read."""

    weights: Mapping[str, Tensor]
    group: ProcessGroup

    def __getitem__(self, name: str) -> Tensor:
        return self.group._whole(self.weights[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def _same_rows(weight: Tensor, bias: Tensor) -> bool:
    """Whether each process has the bias of just the rows that it has of the weight."""
    if not is_sharded(weight) or not is_sharded(bias):
        return is_sharded(weight) == is_sharded(bias)
    return weight.placements == bias.placements and weight.device_mesh == bias.device_mesh


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


# --- how they come to watch together ---


@dataclass
class Membership:
    """The processes of torch's default group agree on what to watch through its store, for which none has to wait.

    Each announces its parameters when it begins to watch. At the first snapshot those of all are compared: `group` is
    then all processes, or this one alone where some do not watch.
    """

    world: ProcessGroup
    group: ProcessGroup = field(default_factory=ProcessGroup)
    agreed: bool = False
    _store: "Store | None" = None
    _prefix: str = ""
    _ended: bool | None = None
    _round: int = 0

    def __post_init__(self) -> None:
        self.agreed = self.world.size == 1
        with suppress(Exception):  # one of another kind of group: then each is alone
            if not self.agreed:
                store = dist.distributed_c10d._get_default_store()
                number = store.add(f"equipoise/{self.world.rank}", 1)  # of watches, the same on all of them
                self._store, self._prefix = store, f"equipoise/{number}/"

    def announce(self, parameters: Mapping[str, Tensor]) -> None:
        """Tell the others of this process's parameters; nothing is waited for."""
        if self._store is None:
            return
        try:
            text = described(parameters)
        except Exception as error:  # parameters that have no shape yet, or a mesh that this process is not in
            text = undescribed(error)
        self._say(f"{self._round}", text)

    def agree(self, parameters: Mapping[str, Tensor]) -> ProcessGroup:
        """The processes that watch together.

        Raises:
            Unavailable: where the parameters of the processes are not those of one model.
        """
        if self.agreed:
            return self.group
        self.agreed = True
        said = self._all(f"{self._round}", PATIENCE)
        if said is not None:
            self.group = self.world
            self.group = replace(self.world, meshes=meshes_of(said, self.world.rank))
        elif any_sharded(parameters):
            raise Unavailable(
                expected="eq.watch on all processes, whose shards make up the weights",
                found=f"not all of the {self.world.size} processes that hold shards of the weights watch",
                remedy="call eq.watch on every process",
            )
        return self.group

    def again(self, parameters: Mapping[str, Tensor]) -> None:
        """Compare once more, since the model has changed."""
        if self.group.size > 1:
            self.agreed, self._round = False, self._round + 1
            self.announce(parameters)
            self.agree(parameters)

    def share_failure(self, error: Exception) -> Exception:
        """The error to report, once all other processes know of it."""
        if not self.agreed:
            self.agreed = True
            self.group = self.world if self._decided(f"{self._round}", "apart") == "together" else self.group
        return self.group.share_failure(error)

    def end(self) -> bool:
        """Whether all processes have come to the end of the block, and none of them by an exception."""
        if self.group.size > 1 and self._ended is None:
            self._say("end", "finished")
            said = self._all("end", ENDING)
            self._ended = said is not None and set(said) == {"finished"}
        return self._ended is not False

    def leave(self) -> None:
        """Tell the others that this process has left the block, if they do not know it."""
        if self._ended is None:
            self._ended = False
            self._say("end", "left")

    def _say(self, subject: str, text: str) -> None:
        with suppress(Exception):
            if self._store is not None:
                self._store.set(f"{self._prefix}{subject}/{self.world.rank}", text)

    def _all(self, subject: str, patience: float) -> list[str] | None:
        """The texts of all processes; None, on all of them, where one of them gave up waiting for another."""
        store, keys = self._store, [f"{self._prefix}{subject}/{rank}" for rank in range(self.world.size)]
        if store is None:
            return None
        try:
            store.wait(keys, timedelta(seconds=patience))
            wish = "together"
        except Exception:  # torch raises several kinds for a timeout
            wish = "apart"
        if self._decided(subject, wish) != "together":
            return None
        return [store.get(key).decode() for key in keys]

    def _decided(self, subject: str, wish: str) -> str:
        """The wish of the process that was first."""
        try:
            assert self._store is not None
            return self._store.compare_set(f"{self._prefix}{subject}/verdict", "", wish).decode()
        except Exception:
            return "apart"
