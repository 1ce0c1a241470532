"""Models and state dicts that are already in memory."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from equipoise.checkpoint.readers.paths import in_memory, tensors_in
from equipoise.checkpoint.tensor_entry import Json, Opaque, TensorEntry, TensorUse, dtype_name, entries, unreadable
from equipoise.errors import one_line

_EVALUATING = RLock()  # a parametrization is put into evaluation mode while its value is taken
_KINDS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Linear, "linear"),
    (nn.Embedding, "embedding"),
    (nn.EmbeddingBag, "embedding"),
    (nn.Bilinear, "bilinear"),
    *((kind, f"conv{d}d") for d, kind in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d))),
    *((kind, f"conv{d}d") for d, kind in ((1, nn.ConvTranspose1d), (2, nn.ConvTranspose2d), (3, nn.ConvTranspose3d))),
)


@dataclass(frozen=True, eq=False)
class _Computed:
    """A tensor that a module computes from what it stores, and the names of that; `owner` is what says its use."""

    name: str
    value: Callable[[], Tensor]
    note: str
    factors: re.Pattern[str]
    owner: nn.Module | None = None


def read_module(model: nn.Module) -> tuple[TensorEntry, ...]:
    """Parameters and buffers of a model, each with what the module that owns it says of its use.

    A weight that a module computes, by `parametrize`, by hooks of `torch.nn.utils` or from packed codes, is there as it
    is used in evaluation, and what it is computed from is not. Tensors that are neither parameters nor buffers, and
    buffers that are not saved, are there with that reason.
    """
    state = in_memory(tensors_in(model))
    lazy = {name for name, value in state.items() if isinstance(value, Tensor) and torch.nn.parameter.is_lazy(value)}
    owners = dict(model.named_modules(remove_duplicate=False))
    there = read_state({name: value for name, value in state.items() if name not in lazy})
    known = [replace(its, use=_use(its.name, owners, state.get(its.name))) for its in there]
    computed = _all_computed(owners)
    found = _with_computed(known, computed, owners)
    listed = {name for its in found for name in its.names}
    factors = [its.factors for several in computed for its in several]
    unsaved = (its for its in _unsaved(owners) if not any(factor.fullmatch(its.name) for factor in factors))
    return (
        *found,
        *(TensorEntry(name, (), "", torch.Tensor, reason="it is lazy: run the model once") for name in lazy),
        *(its for its in unsaved if its.name not in listed and its.name not in state),
    )


def read_state(state: Mapping[str, Tensor | Opaque]) -> tuple[TensorEntry, ...]:
    """The tensors of a state dict.

    >>> [entry.names for entry in read_state({"a": torch.ones(2)})]
    [('a',)]
    """
    held = {name: value.detach() if isinstance(value, Tensor) else value for name, value in state.items()}
    tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    return entries(held, lambda name: lambda: tensors[name])


def config_of(model: nn.Module) -> Json:
    """The configuration of a model of `transformers`, as in its `config.json`."""
    config = getattr(model, "config", None)
    to_dict = getattr(config, "to_dict", None)
    try:
        found = to_dict() if callable(to_dict) else config
    except Exception:  # of another library
        return {}
    return found if isinstance(found, Mapping) else {}


def _use(name: str, owners: Mapping[str, nn.Module], value: Tensor | Opaque | None) -> TensorUse:
    """The use of a tensor by the module that owns it."""
    prefix, _, last = name.rpartition(".")
    module = owners.get(prefix)
    if module is None:
        return TensorUse()
    if last in module._buffers:
        return TensorUse(type(module).__name__, reason="a buffer, not a weight")
    kind = next((kind for its, kind in _KINDS if isinstance(module, its)), None) if last == "weight" else None
    shape = tuple(value.shape) if isinstance(value, Tensor) else ()
    stacked = kind == "bilinear" or (not kind and _holds_experts(module, owners.get(prefix.rpartition(".")[0]), shape))
    layer = type(module).__name__
    convolution = "conv" in (kind or layer).lower()  # the quantised ones of torch.ao are no subclasses
    turned = (convolution and getattr(module, "transposed", False)) or (
        stacked and getattr(module, "is_transposed", False)
    )
    return TensorUse(
        layer,
        kind,
        turned=turned is True or layer == "Conv1D",  # of transformers
        groups=int(getattr(module, "groups", 1)) if convolution else 1,
        stacked=stacked,
        trained=isinstance(value, Tensor) and value.requires_grad,
    )


def _holds_experts(module: nn.Module, parent: nn.Module | None, shape: tuple[int, ...]) -> bool:
    """Whether the module, or the one around it, is of experts, as many as the first dimension is long."""
    if len(shape) not in (2, 3):
        return False
    if len(shape) == 3 and re.search("expert|moe", type(module).__name__, re.IGNORECASE):
        return True
    counts = {
        value
        for its in (module, parent)
        if its is not None
        for name, value in vars(its).items()
        if "expert" in name.lower() and isinstance(value, int) and not isinstance(value, bool)
    }
    return shape[0] in counts and shape[0] > 1


def _all_computed(owners: Mapping[str, nn.Module]) -> list[list[_Computed]]:
    """The tensors that modules compute, each with the same of the same module under its other names."""
    found: dict[tuple[int, str], list[_Computed]] = {}
    for prefix, module in owners.items():
        several = list(_computed_by(f"{prefix}." if prefix else "", module))
        for its in several:
            if not any(
                other.factors.fullmatch(its.name) for other in several if other is not its
            ):  # a factor that is pruned
                found.setdefault((id(module), its.name.removeprefix(f"{prefix}.")), []).append(its)
    return list(found.values())


def _with_computed(
    known: list[TensorEntry], computed: list[list[_Computed]], owners: Mapping[str, nn.Module]
) -> list[TensorEntry]:
    """The tensors, with what modules compute in the place of what it is computed from."""
    for several in computed:
        made = _stored(several[0], tuple(its.name for its in several[1:]), owners)
        gone = {its.name for its in known if any(part.factors.fullmatch(its.name) for part in several)}
        at = next((place for place, its in enumerate(known) if its.name in gone), len(known))
        known = [*known[:at], made, *(its for its in known[at:] if its.name not in gone)]
    return known


def _stored(its: _Computed, aliases: tuple[str, ...], owners: Mapping[str, nn.Module]) -> TensorEntry:
    try:
        value = its.value()
    except Exception as error:  # of the module's own code
        return TensorEntry(its.name, (), "", Tensor, aliases, reason=f"its module cannot compute it: {one_line(error)}")
    known = owners if its.owner is None else {its.name.rpartition(".")[0]: its.owner}
    use = replace(_use(its.name, known, value), trained=True)
    reason = unreadable(value)
    return TensorEntry(
        its.name,
        tuple(value.shape),
        dtype_name(value.dtype),
        its.value,
        aliases,
        use,
        reason,
        computed=True,
        note=its.note,
    )


def _computed_by(prefix: str, module: nn.Module) -> Iterator[_Computed]:
    """The tensors that a module computes from its parameters and buffers."""
    start = re.escape(prefix)
    if parametrize.is_parametrized(module):
        steps: Any = module.parametrizations
        for name, its in steps.items():
            note = "parametrized by " + ", ".join(type(step).__name__.lstrip("_") for step in its)
            yield _Computed(prefix + name, _evaluation(its), note, re.compile(rf"{start}parametrizations\.{name}\..*"))
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield _of_hook(prefix, hook.name, "[gv]", "weight_norm", _weight_norm(hook, module))
        elif isinstance(hook, SpectralNorm):
            yield _of_hook(prefix, hook.name, "orig|[uv]", "spectral_norm", _spectral_norm(hook, module))
        elif isinstance(hook, prune.BasePruningMethod):
            name = hook._tensor_name
            yield _of_hook(prefix, name, "orig|mask", f"{name}_orig × {name}_mask", _pruned(hook, module))
    yield from _unpacked(prefix, module)
    yield from _adapted(prefix, module)


def _adapted(prefix: str, module: Any) -> Iterator[_Computed]:
    """A layer that PEFT adapts, merged by its own code in a copy."""
    if not all(hasattr(module, name) for name in ("get_base_layer", "merge", "active_adapters", "merged")):
        return
    base = module.get_base_layer()
    if not isinstance(getattr(base, "weight", None), Tensor):
        return

    def value() -> Tensor:
        layer = copy.deepcopy(module)
        if not (layer.merged or getattr(layer, "disable_adapters", False)):
            layer.merge()
        return layer.get_base_layer().weight.detach()

    factors = re.compile(rf"{re.escape(prefix)}(base_layer\.weight|(?!base_layer\.).*)")
    yield _Computed(f"{prefix}weight", value, "merged with its adapters", factors, base)


def _of_hook(prefix: str, name: str, parts: str, note: str, value: Callable[[], Tensor]) -> _Computed:
    return _Computed(prefix + name, value, note, re.compile(rf"{re.escape(prefix + name)}_({parts})(_orig|_mask)?"))


def _weight_norm(hook: WeightNorm, module: nn.Module) -> Callable[[], Tensor]:
    return lambda: hook.compute_weight(module).detach()


def _spectral_norm(hook: SpectralNorm, module: nn.Module) -> Callable[[], Tensor]:
    return lambda: hook.compute_weight(module, do_power_iteration=False).detach()


def _pruned(hook: prune.BasePruningMethod, module: nn.Module) -> Callable[[], Tensor]:
    return lambda: hook.apply_mask(module).detach()


def _evaluation(its: nn.Module) -> Callable[[], Tensor]:
    """The value of a parametrization in evaluation mode: in training, spectral_norm changes its buffers."""

    def value() -> Tensor:
        with _EVALUATING, torch.no_grad():
            modes = {part: part.training for part in its.modules()}
            try:
                for part in modes:
                    part.training = False
                return its().detach()
            finally:
                for part, mode in modes.items():
                    part.training = mode

    return value


def _unpacked(prefix: str, module: Any) -> Iterator[_Computed]:
    """Recurrent layers of `torch.ao.nn.quantized.dynamic`, which keep their weights in packed objects."""
    if not type(module).__module__.startswith("torch.ao.nn.quantized") or not hasattr(module, "get_weight"):
        return
    packed = re.compile(re.escape(prefix) + r"(_all_weight_values\.\d+\.param|_packed_weight_\w+)")
    for name, weight in module.get_weight().items():
        value = _dequantized(weight)
        yield _Computed(prefix + name, value, f"dequantised: {dtype_name(weight.dtype)}", packed)
    for name, bias in module.get_bias().items():
        if isinstance(bias, Tensor):
            yield _Computed(prefix + name, _dequantized(bias), "", packed)


def _dequantized(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: (tensor.dequantize() if tensor.is_quantized else tensor).detach()


def _unsaved(owners: Mapping[str, nn.Module]) -> Iterator[TensorEntry]:
    """Tensors that the state dict leaves out."""
    seen: set[int] = set()
    for prefix, module in owners.items():
        its = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        for kept, reason in ((module._buffers, "a buffer that is not saved"), (its, "an attribute, no parameter")):
            for name, value in kept.items():
                if isinstance(value, Tensor) and id(value) not in seen:
                    seen.add(id(value))
                    full = f"{prefix}.{name}".removeprefix(".")
                    yield TensorEntry(full, tuple(value.shape), dtype_name(value.dtype), Tensor, reason=reason)
