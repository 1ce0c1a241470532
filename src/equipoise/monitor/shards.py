"""The parts of weights that processes hold: each one's share, so that all shares together are every weight once."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from equipoise.errors import one_line
from equipoise.observers import Unavailable

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.placement_types import Placement


@dataclass(frozen=True)
class Copies:
    """The processes that hold the same: `count` of them, of which this is number `number`."""

    number: int = 0
    count: int = 1

    def among(self, outer: "Copies") -> "Copies":
        """These copies, once more in each of the `outer` ones."""
        return Copies(outer.number * self.count + self.number, outer.count * self.count)

    def rows(self, count: int) -> slice:
        """The rows of a block of `count` that are this process's own."""
        return slice(count * self.number // self.count, count * (self.number + 1) // self.count)


@dataclass(frozen=True)
class Share:
    """The block of a weight that is one process's own, and the number of elements before it along each axis."""

    block: Tensor
    begin: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, held: Tensor, begin: Sequence[int], copies: Copies) -> "Share":
        """The rows of what is `held` here that no other process counts; a number is a row of one."""
        if tensor.ndim == 0:
            held, begin = held.reshape(1), (0,)
        rows = copies.rows(held.shape[0])
        return cls(held[rows], (begin[0] + rows.start, *begin[1:]))

    def padded(self, shape: torch.Size) -> Tensor:
        """A tensor of the shape of the weight, zero where others have their shares."""
        sizes = shape or torch.Size([1])
        each = zip(sizes, self.begin, self.block.shape, strict=True)
        sides = [(first, size - first - own) for size, first, own in each]
        return torch.nn.functional.pad(self.block, [side for pair in reversed(sides) for side in pair]).reshape(shape)


@dataclass(frozen=True)
class Layout:
    """How a weight is held: by this process alone, or all of it by each, or in shards.

    Attributes:
        begin: the number of elements before those of this process, along each axis.
        copies: within the mesh of its shards, the processes that hold the same.
        split: the axes along which it is in shards.
        contiguous: whether each shard is one block.
        mesh: a name of the processes of the mesh; empty for a plain tensor.
    """

    begin: tuple[int, ...]
    copies: Copies = Copies()
    split: tuple[int, ...] = ()
    contiguous: bool = True
    mesh: str = ""

    @classmethod
    def of(cls, tensor: Tensor) -> "Layout":
        """The layout of a weight; of a plain tensor that of one process."""
        if not is_sharded(tensor):
            return cls((0,) * tensor.ndim)
        return _layout(tensor.shape, tensor.device_mesh, tuple(tensor.placements))


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is a DTensor."""
    return type(tensor) is not Tensor and hasattr(tensor, "placements")  # torch.distributed.tensor is slow to import


def any_sharded(weights: Mapping[str, Tensor]) -> bool:
    """Whether some weight is in shards."""
    return any(map(is_sharded, weights.values()))


def local(tensor: Tensor) -> Tensor:
    """The part of a weight that this process holds."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def laid_out_as(weight: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the layout of its weight; that of a weight that all hold may come in summands."""
    if not is_sharded(weight) or not is_sharded(gradient) or gradient.placements == weight.placements:
        return gradient
    return gradient.redistribute(weight.device_mesh, weight.placements)


def splits(tensor: Tensor) -> int:
    """Along how many axes of its mesh a weight is in shards."""
    return sum(map(_splits, tensor.placements)) if is_sharded(tensor) else 0


@lru_cache(maxsize=1 << 14)  # asked for at every snapshot, several times for each weight
def _layout(shape: torch.Size, mesh: "DeviceMesh", placements: "tuple[Placement, ...]") -> Layout:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    place, copies = mesh.get_coordinate(), Copies()
    if place is None:
        raise ValueError("a weight in shards of which this process holds none")
    _, begin = compute_local_shape_and_global_offset(shape, mesh, placements)
    for axis, placement in enumerate(placements):
        if not _splits(placement):
            copies = Copies(place[axis], mesh.size(axis)).among(copies)
    split = tuple(sorted({placement.dim for placement in placements if _splits(placement)}))
    members = hashlib.sha256(str(sorted(mesh.mesh.flatten().tolist())).encode()).hexdigest()[:16]
    return Layout(tuple(map(int, begin)), copies, split, _is_contiguous(mesh, placements), members)


def _splits(placement: "Placement") -> "TypeGuard[Shard]":
    """Whether it is a `Shard`, or the strided one of `fully_shard` over tensor parallelism."""
    return hasattr(placement, "dim")


def _is_contiguous(mesh: "DeviceMesh", placements: "Sequence[Placement]") -> bool:
    """Whether each shard is one block: a strided split must be undone by those that come after it."""
    for axis, placement in enumerate(placements):
        later = [(mesh.size(axis + 1 + n), each) for n, each in enumerate(placements[axis + 1 :])]
        if _splits(placement) and hasattr(placement, "split_factor"):
            inner = math.prod(size for size, each in later if _splits(each) and each.dim == placement.dim)
            if placement.split_factor != inner:
                return False
    return True


# --- descriptions of weights, compared between processes ---


class DifferentParameters(Unavailable):
    """Processes that do not train one model together."""

    def __init__(self, detail: str):
        super().__init__(
            expected="processes that hold one model: all of it each, or shards of it",
            found=f"parameters differ from process to process ({detail}), as those of pipeline stages, of experts in "
            "expert parallelism, or of FSDP1 do: these are not watched",
            remedy="watch data, sharded or tensor parallelism",
        )


def described(parameters: Mapping[str, Tensor]) -> str:
    """The parameters of a process as text, to be compared with those of others."""
    shapes = {name: [*tensor.shape] for name, tensor in parameters.items()}
    held = {name: [str(tensor.dtype), tensor.requires_grad, _held(tensor)] for name, tensor in parameters.items()}
    digest = hashlib.sha256(json.dumps([shapes, held]).encode()).hexdigest()
    meshes = {Layout.of(each).mesh: each.device_mesh.size() for each in parameters.values() if is_sharded(each)}
    found = {"digest": digest, "parameters": _shown(shapes), "meshes": [*meshes], "sizes": [*meshes.values()]}
    return json.dumps(found)


def undescribed(error: Exception) -> str:
    """In place of `described` parameters, the reason why they cannot be."""
    return json.dumps({"digest": one_line(error), "parameters": one_line(error), "meshes": [], "sizes": []})


def meshes_of(descriptions: Sequence[str], rank: int) -> dict[str, Copies]:
    """Of the meshes of this process, which of those that hold the same each is.

    Args:
        descriptions: of all processes, by their rank.
        rank: of this one.

    Returns:
        By the name of each mesh, its number and how many there are.

    Raises:
        DifferentParameters: where the processes do not hold the same parameters in the same way.
    """
    parsed = [json.loads(text) for text in descriptions]
    other = next((n for n, each in enumerate(parsed) if each["digest"] != parsed[0]["digest"]), None)
    if other is not None:
        raise DifferentParameters(
            f"process 0 has {parsed[0]['parameters']}, and process {other} {parsed[other]['parameters']}"
        )
    found = {}
    for place, (mine, size) in enumerate(zip(parsed[rank]["meshes"], parsed[rank]["sizes"], strict=True)):
        alike = sorted({each["meshes"][place] for each in parsed})
        if len(alike) * size != len(parsed):
            raise DifferentParameters(f"{len(alike)} meshes of {size} among {len(parsed)} processes hold shards")
        found[mine] = Copies(alike.index(mine), len(alike))
    return found


def _held(tensor: Tensor) -> str:
    return f"{tensor.placements} of {tuple(tensor.device_mesh.shape)}" if is_sharded(tensor) else ""


def _shown(shapes: Mapping[str, Sequence[int]]) -> str:
    first = [f"{name} {tuple(shape)}" for name, shape in [*shapes.items()][:2]]
    return ", ".join(first) + (f" and {len(shapes) - 2} more" if len(shapes) > 2 else "")
