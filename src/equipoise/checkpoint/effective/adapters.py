"""LoRA adapters as PEFT saves them, merged into the weights they adapt."""

import math
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from equipoise.checkpoint.readers.limits import NAME_LIMIT, read_json
from equipoise.checkpoint.readers.safetensors import read_safetensors
from equipoise.checkpoint.readers.torch_save import read_torch
from equipoise.checkpoint.tensor_entry import Checkpoint, Json, TensorEntry
from equipoise.errors import InputError

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.(?P<adapter>[^.]+?))??(\.(?P<leaf>weight|bias))?$"
)
_FILES: Mapping[str, Callable[[Path], tuple[TensorEntry, ...]]] = {
    "adapter_model.safetensors": read_safetensors,
    "adapter_model.bin": read_torch,
}
# Initialisations that leave W + scale · B A = W, so that the adapter changes the weights as they were saved
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
_VARIANTS = {  # options that make more of A and B than W + scale · B A
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "activated LoRA, which changes no weight for the tokens before its invocation",
    "arrow_config": "Arrow, which chooses among adapters by token",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "layer_replication, which makes copies of layers",
    "target_parameters": "target_parameters (LoRA on parameters that are no layer's weight)",
    "trainable_token_indices": "trainable_token_indices",
}
_STEPS = 1e9  # of comparing all names with all patterns, counted too high: seconds
_MERGE = "merge it with PEFT first (merge_and_unload) and analyze what that saves"


@dataclass(frozen=True, eq=False)
class _Update:
    """The change of an adapter to one tensor: `replaced` by another, then `scale · B A` added, and `scale · bias`."""

    name: str
    up: TensorEntry | None = None
    down: TensorEntry | None = None
    scale: float = 1.0
    turned: bool = False  # the weight is stored as (in, out)
    bias: TensorEntry | None = None
    replaced: TensorEntry | None = None

    def applied(self, base: Callable[[], Tensor]) -> Tensor:
        """The adapted tensor, in float32 or float64."""
        if self.replaced is not None:
            return self.replaced.read()
        weight = base()
        weight = weight if weight.itemsize > 4 else weight.float()
        if self.up is None or self.down is None:
            assert self.bias is not None
            return weight + self.scale * self.bias.read().to(weight)
        update = self.scale * (self.up.read().to(weight).flatten(1) @ self.down.read().to(weight).flatten(1))
        return weight + (update.T if self.turned else update).reshape(weight.shape)

    def require_fits(self, entry: TensorEntry) -> None:
        """Raise `InputError` unless the shapes agree with those of the base."""
        if self.up is not None and self.down is not None:
            delta = (self.up.shape[0], math.prod(self.down.shape[1:]))
            shape = (entry.shape[0], math.prod(entry.shape[1:]))
            fits = delta == (shape[::-1] if self.turned else shape) and _inner(self.up) == self.down.shape[0]
            given = f"{self.up.shape} and {self.down.shape}"
        elif self.bias is not None:
            fits, given = self.bias.shape == entry.shape, f"a bias of shape {self.bias.shape}"
        else:
            return
        if not fits:
            raise InputError(
                expected=f"factors for {entry.name} of shape {entry.shape}",
                found=given,
                remedy="pass the adapter's own base model",
            )


def merge(checkpoint: Checkpoint, folder: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint with `W + scale · B A` in place of each adapted weight, computed when it is read (Hu et al. 2022).

    `scale = α/r`, or `α/√r` with `use_rslora` (Kalajdzievski 2023). As in PEFT, the keys of `alpha_pattern` and
    `rank_pattern` are regular expressions for the end of a module's name, of which the first that matches counts.
    Convolutions, embeddings, `fan_in_fan_out`, `lora_bias` and whole tensors of `modules_to_save` are followed.

    Args:
        checkpoint: The base model.
        folder: Holds `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).

    Returns:
        The merged checkpoint; of what is not adapted, the tensors of the base.

    Raises:
        InputError: For other kinds of adapters, variants of LoRA (DoRA and others) and initialisations that change
            the base (PiSSA, OLoRA, CorDA, LoftQ, …), each by its name; for factors whose rank is not what the
            configuration says; for weights that the checkpoint does not have.
    """
    where = Path(folder)
    file = next((where / name for name in _FILES if (where / name).is_file()), None)
    if file is None:
        raise InputError(
            expected="a folder with adapter_config.json and adapter_model.safetensors",
            found=str(folder),
            remedy="pass the folder that PEFT's save_pretrained wrote",
        )
    config = read_json(where / "adapter_config.json")
    _require_plain_lora(config)
    tensors, names = list(checkpoint.tensors), _Names.of(checkpoint)
    for update in _updates(_FILES[file.name](file), config):
        place = names.target(update.name)
        if place is not None:
            update.require_fits(tensors[place])
            tensors[place] = _adapted(tensors[place], update)
        elif update.replaced is not None:  # a head that the base model does not have
            tensors.append(replace(update.replaced, name=update.name, aliases=()))
        else:
            raise InputError(
                expected=f"one tensor {update.name} for the adapter to change",
                found="none",
                remedy="pass the adapter's own base model",
            )
    return replace(checkpoint, label=f"{checkpoint.label} + {folder}", tensors=tuple(tensors))


def _require_plain_lora(config: Json) -> None:
    """Raise `InputError` for anything more than `W + scale · B A` on the base as it is."""
    kind, start = str(config.get("peft_type") or "LORA"), config.get("init_lora_weights", True)
    unknown = [
        key for key, value in config.items() if key.startswith("use_") and key != "use_rslora" and value and value != []
    ]
    variant = next((its for key, its in _VARIANTS.items() if config.get(key)), unknown[0] if unknown else None)
    if kind.upper() != "LORA" or variant:
        raise InputError(
            expected="a LoRA adapter", found=kind if kind.upper() != "LORA" else str(variant), remedy=_MERGE
        )
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        raise InputError(
            expected="a LoRA adapter of the base model as it was saved",
            found=f"init_lora_weights={start!r}, which changes the base before it is trained",
            remedy=f"{_MERGE}, or save it with path_initial_model_for_weight_conversion",
        )


def _updates(tensors: Iterable[TensorEntry], config: Json) -> list[_Update]:
    """The changes to the base that the tensors of an adapter's file make."""
    factors: dict[str, dict[str, TensorEntry]] = {}
    embeddings: set[str] = set()
    adapters: set[str | None] = set()
    whole: list[_Update] = []
    for entry in tensors:
        name = entry.name.removeprefix(_PREFIX)
        found = _FACTOR.match(name)
        if found:
            factors.setdefault(_module(found["module"]), {})[found["side"] + (found["leaf"] or "weight")] = entry
            adapters.add(found["adapter"])
            if found["embedding"]:
                embeddings.add(_module(found["module"]))
        elif re.search(r"(^|[._])(lora|vera|hada|lokr|ia3|oft|boft|hra|token_adapter)_?", name):
            raise InputError(expected="LoRA factors A and B alone", found=entry.name, remedy=_MERGE)
        else:
            whole.append(_Update(_module(name), replaced=entry))
    if len(adapters) > 1:
        names = ", ".join(sorted(map(str, adapters)))
        raise InputError(expected="one adapter", found=names, remedy="save each in a folder of its own")
    _require_quick(config, factors)
    return [
        *whole,
        *(
            update
            for module, sides in factors.items()
            for update in _of_module(module, sides, module in embeddings, config)
        ),
    ]


def _of_module(module: str, sides: Mapping[str, TensorEntry], embedding: bool, config: Json) -> list[_Update]:
    if not {"Aweight", "Bweight"} <= set(sides):
        raise InputError(expected="both factors of each module", found=f"one of {module}", remedy="save it again")
    down, up = sides["Aweight"], sides["Bweight"]
    if down.reason or up.reason or min(len(down.shape), len(up.shape)) < 2:
        found = f"{up.shape} and {down.shape}"
        raise InputError(expected=f"two matrices for {module}", found=found, remedy="save the adapter again")
    scale = _scale(module, down.shape[0], config)
    turned = embedding or bool(config.get("fan_in_fan_out"))
    found = [_Update(f"{module}.weight", up, down, scale, turned)]
    if "Bbias" in sides:
        found.append(_Update(f"{module}.bias", scale=scale, bias=sides["Bbias"]))
    return found


def _module(name: str) -> str:
    """The name in the base model: PEFT puts the layer that it adapts, or replaces, one level down."""
    return re.sub(r"\.(base_layer|modules_to_save(\.[^.]+(?=\.))?)(?=\.|$)", "", name)


def _scale(module: str, rank: int, config: Json) -> float:
    """`α/r`, or `α/√r` if rank-stabilised, with the `α` of the module."""
    said = _by_pattern("r", module, config.get("rank_pattern"), config.get("r", rank))
    default = config.get("lora_alpha", 8)  # PEFT's own
    alpha = _by_pattern("lora_alpha", module, config.get("alpha_pattern"), default)
    if said != rank:
        raise InputError(
            expected=f"factors of rank {said} for {module}, as adapter_config.json says",
            found=f"rank {rank}",
            remedy="pass the configuration that was saved with the factors",
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(name: str, module: str, patterns: object, otherwise: object) -> int | float:
    """The value of the first pattern that matches the module's name from some dot on, as `peft.utils.get_pattern_key`.

    >>> patterns = {r"h\\.1\\..*": 3, "q_proj": 4}
    >>> _by_pattern("r", "h.1.q_proj", patterns, 5), _by_pattern("r", "xq_proj", patterns, 5)
    (3, 5)

    Raises:
        InputError: for patterns that are no dictionary, and for a value that is no number.
    """
    listed = patterns or {}
    if not isinstance(listed, Mapping):
        raise InputError(expected="patterns as a dictionary", found=repr(patterns), remedy="save the adapter again")
    value = next((value for pattern, value in listed.items() if _matches(pattern, module)), otherwise)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(expected=f"{name} as a number", found=repr(value)[:80], remedy="save the adapter again")
    return value


def _matches(pattern: object, module: str) -> bool:
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as error:
        raise InputError(
            expected="regular expressions as patterns", found=f"{str(pattern)[:80]!r} ({error})", remedy="save it again"
        ) from None


def _require_quick(config: Json, modules: Collection[str]) -> None:
    """Raise `InputError` for patterns that may take forever to compare with the names."""
    length = max(map(len, modules), default=0)
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key)
        listed = [str(pattern) for pattern in patterns] if isinstance(patterns, Mapping) else []
        if len(modules) * sum(_most_steps(pattern, length) for pattern in listed) > _STEPS:
            longest = max(listed, key=lambda pattern: _most_steps(pattern, length))
            raise InputError(
                expected=f"a {key} that is quickly compared with {len(modules)} names",
                found=f"{len(listed)} patterns, {longest[:80]!r} among them",
                remedy=_MERGE,
            )


def _most_steps(pattern: str, length: int) -> float:
    """A bound on the number of ways to compare an expression with a name: Python tries them all, where none fits.

    >>> _most_steps("q_proj", 40), _most_steps("layers[.](0|1).q_proj", 40), _most_steps("(a+)+", 40)
    (40.0, 80.0, inf)
    """
    bare = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", pattern)  # an escape or a class is a letter
    if len(pattern) > NAME_LIMIT or re.search(r"\)[*+{]", bare):
        return math.inf
    ways = float(length) * 2.0 ** len(re.findall(r"(?<!\()\?", bare))
    for each in re.split(r"[()]", bare):
        ways *= 1 + each.count("|")
    return ways * float(length) ** len(re.findall(r"[*+{]", bare))


@dataclass(frozen=True)
class _Names:
    """The places of the base model's tensors by name, and the names from their ends, in order."""

    places: Mapping[str, set[int]]
    turned: Sequence[str]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "_Names":
        """Every name of each tensor."""
        places: dict[str, set[int]] = {}
        for place, entry in enumerate(checkpoint.tensors):
            for name in entry.names:
                places.setdefault(name, set()).add(place)
        return cls(places, sorted(name[::-1] for name in places))

    def target(self, wanted: str) -> int | None:
        """The place of the tensor that is adapted; a base may be saved with or without its outermost prefix."""
        for candidate in (wanted, re.sub(r"\.weight$", ".in_proj_weight", wanted)):  # of MultiheadAttention
            for found in (self.places.get(candidate, set()), self._related(candidate)):
                if len(found) == 1:
                    return next(iter(found))
        return None

    def _related(self, wanted: str) -> set[int]:
        """The places of names that are the end of it after a dot, or of which it is."""
        parts = wanted.split(".")
        shorter = {".".join(parts[place:]) for place in range(1, len(parts))}
        end = f".{wanted}"[::-1]
        low, high = bisect_left(self.turned, end), bisect_left(self.turned, end[:-1] + "/")  # which comes after "."
        longer = {name[::-1] for name in self.turned[low:high]}
        return {place for name in (shorter & self.places.keys()) | longer for place in self.places[name]}


def _inner(up: TensorEntry) -> int:
    return math.prod(up.shape[1:])


def _adapted(entry: TensorEntry, update: _Update) -> TensorEntry:
    if update.replaced is not None:
        its = update.replaced
        return replace(its, name=entry.name, aliases=entry.aliases, use=entry.use)
    dtype = entry.dtype if entry.dtype == "float64" else "float32"
    return replace(
        entry, dtype=dtype, read=lambda: update.applied(entry.read), mapped=False, computed=True, stretch=None
    )
