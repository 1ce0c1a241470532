"""Numbers of a file as a tensor, mapped into memory or read."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equipoise.errors import InputError


def mapped(path: Path, offset: int, length: int) -> Tensor:
    """So many bytes of a file, as uint8, mapped: a page counts as memory from when it is looked at."""
    if length == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_numpy(np.memmap(path, np.uint8, "c", offset, (length,)))  # "c": torch wants it writable


def stretch(path: Path, start: int, dtype: torch.dtype, low: int, high: int) -> Tensor:
    """Numbers `low` to `high` of those that start there, past any mapping. Raises `InputError` if they are gone."""
    numbers = torch.empty(high - low, dtype=dtype)
    missing = numbers.view(torch.uint8).numpy().data
    with path.open("rb", buffering=0) as file:
        file.seek(start + low * dtype.itemsize)
        while missing and (count := file.readinto(missing)):
            missing = missing[count:]
    if missing:
        raise InputError(expected=f"{path.name} as it was", found="less of it", remedy="analyze it again")
    return numbers
