"""The rows that a checkpoint is going to have, and each of them measured."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from equipoise.checkpoint.matrices import Rules, WeightMatrix
from equipoise.checkpoint.spectra.gram import squared_norm
from equipoise.checkpoint.spectra.matrix_stream import CHUNK, MatrixStream
from equipoise.checkpoint.spectra.measures import Row, Settings, measure, null_row
from equipoise.checkpoint.tensor_entry import Checkpoint, TensorEntry
from equipoise.errors import EquipoiseError, InputError, one_line


@dataclass(frozen=True, eq=False, slots=True)
class RowPlan:
    """A row to come: a matrix, or a tensor with the reason why it has none."""

    entry: TensorEntry
    matrix: WeightMatrix | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        """As the table lists it."""
        return self.matrix.name if self.matrix else self.entry.name

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names of a tied tensor."""
        return self.matrix.aliases if self.matrix else self.entry.aliases

    @property
    def kind(self) -> str:
        """The type of a matrix; `other` for what is none."""
        return self.matrix.kind if self.matrix else "other"

    def numbers(self) -> int:
        """How many numbers are read for it."""
        return self.entry.count if self.matrix is None else self.matrix.numbers

    def memory(self, largest: int) -> int:
        """About how many bytes it takes to measure: the Gram matrix, and then chunks and what stays mapped of a file.

        Of a file as much as a quarter of the `largest` tensor stays mapped; what is computed is there as a whole.
        """
        if self.matrix is None:
            return 0
        rows, columns = self.matrix.sides
        size = self.numbers() * (torch.float32.itemsize if self.entry.mapped else 0)
        gram = 8 * min(rows, columns) ** 2
        made = self.entry.count * torch.float32.itemsize if self.entry.computed else min(size, largest // 4)
        return gram + 2 * 8 * CHUNK + made

    def row(self, settings: Settings) -> Row:
        """Its row of the table. What goes wrong with one tensor is its reason, and the rest goes on."""
        shape = self.matrix.shape if self.matrix else self.entry.shape
        base: Row = {"name": self.name, "aliases": list(self.aliases), "type": self.kind, "shape": tuple(shape)}
        base |= {"dtype": self.entry.dtype, "reason": self.reason, "note": self._note()}
        try:
            return base | (self._measured(self.matrix, settings) if self.matrix else self._vector())
        except EquipoiseError as error:
            return base | {"reason": str(error)}
        except Exception as error:  # a dtype that torch cannot convert, a file that has changed, a matrix too large
            return base | {"reason": one_line(error)}

    def _note(self) -> str:
        notes = (self.entry.note, self.matrix.note if self.matrix else "")
        return "; ".join(note for note in notes if note)

    def _measured(self, matrix: WeightMatrix, settings: Settings) -> Row:
        found = measure(matrix.streamed(), settings)
        return {"reason": found} if isinstance(found, str) else found | null_row(found, *matrix.sides, settings)

    def _vector(self) -> Row:
        """The norm of a vector or number; its reason says as well when it is not finite."""
        readable = self.entry.reason is None and self.entry.dtype.startswith(("float", "bfloat"))
        if not readable or len(self.entry.shape) > 1 or self.entry.count == 0:
            return {}
        squares = squared_norm(MatrixStream.of(self.entry.read().detach().reshape(1, -1)))
        if squares - squares != 0:
            return {"reason": f"{self.reason}; NaN or infinite entries"}
        return {"frobenius_norm": squares**0.5}


def survey(
    checkpoint: Checkpoint,
    wanted: Callable[[Sequence[Collection[str]]], list[bool]],
    of_type: Callable[[str], bool],
    split: bool,
) -> list[RowPlan]:
    """The rows that the filters keep, in the order of the checkpoint. Raises `InputError` where they keep none."""
    rules = Rules(checkpoint.tensors, checkpoint.config, split)
    items: list[RowPlan] = []
    for entry in checkpoint.tensors:
        try:
            found = rules.matrices(entry)
        except Exception as error:  # shapes that no rule has thought of
            found = one_line(error)
        if isinstance(found, str):
            items.append(RowPlan(entry, reason=found))
        else:
            items.extend(RowPlan(entry, matrix) for matrix in found)
    by_name = wanted([(item.name, *item.aliases) for item in items])
    kept = [item for item, named in zip(items, by_name, strict=True) if named and of_type(item.kind)]
    if not kept:
        some = ", ".join(item.name for item in items[:4])
        raise InputError(
            expected="filters that keep something",
            found=f"nothing left of {len(items)} rows ({some}, …)",
            remedy="type names as globs, such as '*.weight'",
        )
    return kept


def matrices(items: list[RowPlan]) -> Mapping[str, WeightMatrix]:
    """The matrices among them by name, and by the other names of tied ones."""
    return {name: item.matrix for item in items if item.matrix for name in (item.name, *item.aliases)}
