"""A run on disk: its records, checkpoints and weights, each covered by a hash."""

from equipoise.store.database import Checkpoint, Record
from equipoise.store.files import MANIFEST, RESULT, finite
from equipoise.store.folder import Store

__all__ = ["MANIFEST", "RESULT", "Checkpoint", "Record", "Store", "finite"]
