"""Records as TensorBoard scalars."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from equipoise.arguments import checked_fields
from equipoise.sinks.protocol import metric_name
from equipoise.store import Record

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@checked_fields
class TensorBoard:
    """Scalars under `observer_quantity/place`, in a log folder or through a `SummaryWriter` of one's own."""

    def __init__(self, log_dir: str | os.PathLike[str] | None = None, writer: "SummaryWriter | None" = None):
        from torch.utils.tensorboard import SummaryWriter

        self._own = writer is None
        self.writer = SummaryWriter(None if log_dir is None else str(log_dir)) if writer is None else writer

    def write(self, records: Sequence[Record]) -> None:
        """One scalar a record."""
        for record in records:
            self.writer.add_scalar(metric_name(record), record.value, record.step)

    def close(self) -> None:
        """Flush; close a writer that was made here."""
        self.writer.flush()
        if self._own:
            self.writer.close()
