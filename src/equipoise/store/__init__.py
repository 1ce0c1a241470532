"""A run on disk: its records, checkpoints and weights, each covered by a hash."""

from equipoise.store.database import Record, ResumePoint
from equipoise.store.files import MANIFEST, RECORDS, RESULT, Json, append_json, finite, place, read_json_lines
from equipoise.store.folder import Store
from equipoise.store.lookup import latest, require_latest

__all__ = [
    "MANIFEST",
    "RECORDS",
    "RESULT",
    "Json",
    "Record",
    "ResumePoint",
    "Store",
    "append_json",
    "finite",
    "latest",
    "place",
    "read_json_lines",
    "require_latest",
]
