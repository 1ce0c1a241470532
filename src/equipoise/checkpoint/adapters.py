"""LoRA adapters as PEFT saves them, merged into the weights they adapt."""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from equipoise.checkpoint.readers.limits import read_json
from equipoise.checkpoint.readers.safetensors import read_safetensors
from equipoise.checkpoint.stored import Checkpoint, Stored
from equipoise.errors import InputError

_FACTOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?$"
)


@dataclass(frozen=True, eq=False)
class _Pair:
    """The two factors for one module: the update is `scale · B A`."""

    module: str
    down: Stored
    up: Stored
    scale: float
    turned: bool  # the weight is stored as (in, out)

    def merged(self, base: Callable[[], Tensor]) -> Tensor:
        """The adapted weight, in float32 or float64."""
        weight = base()
        weight = weight if weight.itemsize > 4 else weight.float()
        update = self.scale * (self.up.read().to(weight).flatten(1) @ self.down.read().to(weight).flatten(1))
        return weight + (update.T if self.turned else update).reshape(weight.shape)


def merge(checkpoint: Checkpoint, folder: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint with `W + (α/r) B A` in place of each adapted weight, computed when it is read (Hu et al. 2022).

    `folder` holds `adapter_config.json` and `adapter_model.safetensors`. Rank-stabilised scaling (`α/√r`), patterns of
    ranks and alphas, embeddings, convolutions and `fan_in_fan_out` are followed. Raises `InputError` for DoRA, for
    what else the adapter may hold, and for weights that the checkpoint does not have.
    """
    where = Path(folder)
    if not (where / "adapter_model.safetensors").is_file():
        raise InputError(
            expected="a folder with adapter_config.json and adapter_model.safetensors",
            found=str(folder),
            remedy="pass the folder that PEFT's save_pretrained wrote",
        )
    config = read_json(where / "adapter_config.json")
    if config.get("peft_type", "LORA") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else str(config.get("peft_type"))
        raise InputError(expected="a LoRA adapter", found=kind, remedy="merge it with PEFT first")
    adapted: dict[int, _Pair] = {}
    for pair in _pairs(read_safetensors(where / "adapter_model.safetensors"), config):
        place = _target(checkpoint, pair)
        adapted[place] = pair
    tensors = list(checkpoint.tensors)
    for place, pair in adapted.items():
        tensors[place] = _adapted(tensors[place], pair)
    return replace(checkpoint, label=f"{checkpoint.label} + {folder}", tensors=tuple(tensors))


def _pairs(tensors: tuple[Stored, ...], config: Mapping[str, Any]) -> list[_Pair]:
    sides: dict[str, dict[str, Stored]] = {}
    embeddings: set[str] = set()
    for stored in tensors:
        found = _FACTOR.match(stored.name)
        if not found:
            raise InputError(
                expected="LoRA factors A and B alone", found=stored.name, remedy="merge it with PEFT first"
            )
        sides.setdefault(found["module"], {})[found["side"]] = stored
        if found["embedding"]:
            embeddings.add(found["module"])
    if halves := [module for module, factors in sides.items() if len(factors) < 2]:
        raise InputError(expected="both factors of each module", found=f"one of {halves[0]}", remedy="save it again")
    return [
        _Pair(
            module,
            factors["A"],
            factors["B"],
            _scale(module, factors["A"].shape[0], config),
            module in embeddings or bool(config.get("fan_in_fan_out")),
        )
        for module, factors in sides.items()
    ]


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """`α/r`, or `α/√r` if rank-stabilised; `alpha_pattern` gives some modules an `α` of their own."""
    alpha = config.get("lora_alpha", rank)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?{re.escape(pattern)}", module):
            alpha = own
    if not isinstance(alpha, int | float):
        raise InputError(expected="lora_alpha as a number", found=repr(alpha), remedy="save the adapter again")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _target(checkpoint: Checkpoint, pair: _Pair) -> int:
    """The place of the weight that is adapted; a base model may be saved with or without its outermost prefix."""
    wanted = f"{pair.module}.weight"
    names = [(place, name) for place, stored in enumerate(checkpoint.tensors) for name in stored.names]
    for fits in (
        lambda name: name == wanted,
        lambda name: wanted.endswith(f".{name}") or name.endswith(f".{wanted}"),
    ):
        found = {place for place, name in names if fits(name)}
        if len(found) == 1:
            return found.pop()
    raise InputError(
        expected=f"one weight {wanted} for the adapter to change",
        found="none",
        remedy="pass the adapter's own base model",
    )


def _adapted(stored: Stored, pair: _Pair) -> Stored:
    delta = (pair.up.shape[0], math.prod(pair.down.shape[1:]))
    shape = (stored.shape[0], math.prod(stored.shape[1:]))
    if delta != (shape[::-1] if pair.turned else shape):
        raise InputError(
            expected=f"factors for {stored.name} of shape {stored.shape}",
            found=f"{pair.up.shape} and {pair.down.shape}",
            remedy="pass the adapter's own base model",
        )
    dtype = stored.dtype if stored.dtype == "float64" else "float32"
    return replace(stored, dtype=dtype, read=lambda: pair.merged(stored.read), mapped=False)
