"""The tensors of a checkpoint by name, and how several of them are put together to one."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from equipoise.checkpoint.tensor_entry import Json, TensorEntry, TensorUse


@dataclass(frozen=True, eq=False)
class AssembledTensor:
    """A tensor computed from its `parts`, which are then listed no more."""

    entry: TensorEntry
    parts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TensorIndex:
    """The tensors of a checkpoint, by all of their names, and its configuration."""

    tensors: Sequence[TensorEntry]
    config: Json

    @cached_property
    def by_name(self) -> Mapping[str, TensorEntry]:
        """Each tensor under each of its names."""
        return {name: entry for entry in self.tensors for name in entry.names}

    def get(self, name: str) -> TensorEntry | None:
        """The tensor of that name, if there is one."""
        return self.by_name.get(name)

    @cached_property
    def _in_order(self) -> tuple[list[str], list[TensorEntry]]:
        tensors = sorted(self.tensors, key=lambda entry: entry.name)
        return [entry.name for entry in tensors], tensors

    def under(self, name: str) -> list[TensorEntry]:
        """The tensors whose names go on after that name and a dot."""
        names, tensors = self._in_order
        return tensors[bisect_left(names, f"{name}.") : bisect_left(names, f"{name}/")]  # "/" comes after "."

    def ending(self, suffix: str) -> Iterator[tuple[str, TensorEntry]]:
        """Stem and tensor of every name with this suffix; each tensor once."""
        for entry in self.tensors:
            name = next((name for name in entry.names if name.endswith(suffix)), None)
            if name is not None:
                yield name.removesuffix(suffix), entry

    @property
    def quantization(self) -> Json:
        """`quantization_config` of `config.json`, which old exports call `compression_config`."""
        found = self.config.get("quantization_config") or self.config.get("compression_config")
        return found if isinstance(found, Mapping) else {}


def put_together(
    name: str,
    shape: Sequence[int],
    parts: Sequence[TensorEntry],
    compute: Callable[..., Tensor],
    note: str,
    suffixes: tuple[str, str] = ("", ""),
) -> AssembledTensor:
    """The tensor that `compute` makes of the numbers of its parts, in float32 or, of float64, in float64.

    It is tied as the first part is: `suffixes` are the end of that part's name, and its replacement.
    """
    first = parts[0]
    was, becomes = suffixes
    aliases = tuple(alias.removesuffix(was) + becomes for alias in first.aliases if was and alias.endswith(was))
    reason = next((part.reason for part in parts if part.reason), None)
    made = TensorEntry(
        name,
        tuple(shape),
        "float64" if first.dtype == "float64" else "float32",
        lambda: compute(*(part.read().detach() for part in parts)),
        aliases,
        replace(first.use, reason=None),
        reason,
        computed=True,
        note=note,
    )
    return AssembledTensor(made, tuple(part.name for part in parts))


def refused(name: str, shape: Sequence[int], dtype: str, parts: Sequence[TensorEntry], reason: str) -> AssembledTensor:
    """The row that says why the parts are not put together."""
    made = TensorEntry(name, tuple(shape), dtype, Tensor, use=TensorUse(), reason=reason)
    return AssembledTensor(made, tuple(part.name for part in parts))


def working(tensor: Tensor) -> Tensor:
    """In float32, or float64 if it is.

    >>> import torch
    >>> working(torch.ones(2, dtype=torch.bfloat16)).dtype, working(torch.ones(2, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return tensor if tensor.dtype.is_floating_point and tensor.itemsize > 4 else tensor.float()
