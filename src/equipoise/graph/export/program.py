"""`torch.export` of a model on example inputs: its arguments, the free batch, and what to say where it refuses."""

import copy
import inspect
import io
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from equipoise.errors import CaptureError, InputError, one_line
from equipoise.graph.export.functional import make_functional
from equipoise.graph.export.passes import cut_off, guards, inline_regions, placeholders, strip_guards, widen_autocast
from equipoise.modes import callers_device

Inputs: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]
Arguments: TypeAlias = tuple[Any, ...]
Keywords: TypeAlias = dict[str, Any]
Decompositions: TypeAlias = Mapping[torch._ops.OperatorBase, Callable[..., object]]


_COPIED = 1 << 30  # bytes of weights that are copied for a free batch


@dataclass(frozen=True)
class Exported:
    """A functional program, the floating dtypes that its code casts to, and whether it updates buffers."""

    program: torch.export.ExportedProgram
    casts: frozenset[torch.dtype]
    updates_buffers: bool


def arguments(example_inputs: object) -> tuple[Arguments, Keywords]:
    """Positional and keyword arguments."""
    if not isinstance(example_inputs, (Tensor, Sequence, Mapping)) or _batch((example_inputs,), {}) == 0:
        raise InputError(
            expected="a tensor, a sequence of arguments or a mapping of keywords, of at least one example",
            found=f"shape {tuple(example_inputs.shape)}"
            if isinstance(example_inputs, Tensor)
            else repr(example_inputs),
            remedy="pass inputs that the model accepts, such as two examples of the data",
        )
    keywords = isinstance(example_inputs, Mapping)
    args = () if keywords else (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    return pytree.tree_map_only(Tensor, _traceable, (args, dict(example_inputs) if keywords else {}))


def _traceable(tensor: Tensor) -> Tensor:
    """An example input with values, which autograd may keep."""
    if tensor.is_meta:
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return tensor.clone() if tensor.is_inference() else tensor


def without_cache(model: nn.Module, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
    """Arguments for a model that does not return its keys and values: `use_cache=False` where it takes that."""
    parameters = inspect.signature(model.forward).parameters
    if "use_cache" not in parameters or "use_cache" in kwargs or list(parameters).index("use_cache") < len(args):
        return args, kwargs
    return (), {**dict(zip(parameters, args, strict=False)), **kwargs, "use_cache": False}


@contextmanager
def _caches_off(model: nn.Module) -> Iterator[None]:
    """The same for what the configurations of its parts ask for."""
    configurations: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    found = {id(each): each for each in configurations if getattr(each, "use_cache", None)}
    for configuration in found.values():
        configuration.use_cache = False
    try:
        yield
    finally:
        for configuration in found.values():
            configuration.use_cache = True


def materialised(model: nn.Module) -> nn.Module:
    """A model on `meta` as one on the CPU whose weights take no memory: export mixes the two devices badly.

    One that was created in inference mode as one that autograd follows.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if not any(tensor.is_meta or tensor.is_inference() for tensor in tensors):
        return model
    stand_in = {id(tensor): _hollow(tensor) for tensor in tensors if tensor.is_meta}
    return copy.deepcopy(model, memo=stand_in)


def _hollow(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(torch.zeros((), dtype=tensor.dtype).expand(tensor.shape), tensor.requires_grad)


def exported(model: nn.Module, args: Arguments, kwargs: Keywords, decompositions: Decompositions) -> Exported:
    """The program with its decompositions; `CaptureError` where export refuses."""
    export, doubled = partial(_with_free_batch, model, decompositions), _doubled(args, kwargs)
    try:
        with _quiet(), _caches_off(model):
            if doubled is not None:
                try:
                    return export(*doubled)
                except Exception:  # the model wants this batch and no other
                    pass
            return export(args, kwargs)
    except Exception as error:
        raise _refusal(model, args, kwargs, error) from error


def _refusal(model: nn.Module, args: Arguments, kwargs: Keywords, error: Exception) -> CaptureError:
    """Why a model cannot be read, and what helps: it raises by itself, or decides by values, or else."""
    if (own := _raised(model, args, kwargs)) is not None:
        return CaptureError(
            expected="inputs that the model accepts",
            found=f"{one_line(own)}, raised by the model itself{place(own)}",
            remedy="pass example inputs with which model(...) runs",
        )
    text = f"{type(error).__name__} {error}"
    if "data-dependent" in text or "DataDependent" in text or "unbacked" in text.lower():
        parts = any("expert" in name for name, _ in model.named_modules())
        experts = parts and hasattr(model, "set_experts_implementation")
        return CaptureError(
            expected="a model whose operations do not depend on the values of tensors",
            found=f"{type(error).__name__}: a decision by such a value{place(error)}",
            remedy=(
                "call model.set_experts_implementation('batched_mm') first" if experts else "write it as torch.where"
            )
            + ", or state interfaces= by hand",
        )
    if "Cache" in text:
        return CaptureError(
            expected="a model that returns tensors",
            found=f"{one_line(error)[:120]}",
            remedy="pass use_cache=False among the inputs, or set model.config.use_cache = False",
        )
    return CaptureError(
        expected="a model that torch.export can read",
        found=one_line(error) + place(error),
        remedy="remove what depends on the values of tensors, or state interfaces= by hand",
    )


def _raised(model: nn.Module, args: Arguments, kwargs: Keywords) -> Exception | None:
    """The exception that a copy of the model raises on these inputs without any export."""
    if any(parameter.is_meta or parameter.stride() == (0,) * parameter.ndim != () for parameter in model.parameters()):
        return None
    try:
        twin = copy.deepcopy(model)
    except Exception:
        return None
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), callers_device():
            twin(*args, **kwargs)
    except Exception as error:
        return error
    return None


def place(error: Exception) -> str:
    """Where in the model an exception arose: the last line that belongs neither to torch nor to us."""
    ours = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith((*ours, "<"))
    ]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _with_free_batch(model: nn.Module, decompositions: Decompositions, args: Arguments, kwargs: Keywords) -> Exported:
    """Without dynamo, which reads fewer models; with it where that leaves the batch fixed, as `len(x)` does.

    Dynamo copies every weight, also of a model that is only shapes: large ones are read at the batch as it is.
    """
    shapes = _dynamic_shapes(model, args, kwargs)
    export = partial(torch.export.export, model, args, kwargs, dynamic_shapes=shapes)
    with callers_device():
        program = export(strict=False)
        if shapes is not None and _fixed(program, _batch(args, kwargs)) and _weight_bytes(model) <= _COPIED:
            with suppress(Exception):  # the model wants this batch and no other
                program = export(strict=True)
    cut_off(program.graph_module)
    casts, module = _casts(program.graph_module), program.graph_module
    if not decompositions and not _autocasts(module):
        inline_regions(module)
        functional = make_functional(module, program.graph_signature)
        if functional is not None:
            return Exported(program, casts, functional.updates_buffers)
        module.recompile()
    program = _decomposed(program, decompositions)
    updates = any(spec.kind is OutputKind.BUFFER_MUTATION for spec in program.graph_signature.output_specs)
    return Exported(program, casts, updates)


def _decomposed(program: torch.export.ExportedProgram, decompositions: Decompositions) -> torch.export.ExportedProgram:
    """Read operations that torch cannot decompose under autocast, such as einsum, as without it, in float32.

    What strict export knows of its inputs is forgotten: checks of it mix up keywords, and are no part of the model.
    """
    program._guards_code = []
    try:
        return program.run_decompositions(dict(decompositions))
    except Exception:
        module = program.graph_module
        if not _autocasts(module):
            raise
        widen_autocast(module)
        inline_regions(module)
        strip_guards(module.graph)
        module.recompile()
        return program.run_decompositions(dict(decompositions))


def _autocasts(module: fx.GraphModule) -> bool:
    """Whether a part of it runs under autocast, which decides the dtypes there."""
    bodies = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    return any(str(node.target) == "wrap_with_autocast" for body in bodies for node in body.graph.nodes)


def _casts(module: fx.GraphModule) -> frozenset[torch.dtype]:
    """The floating dtypes among the arguments of operations, of regions too."""
    bodies = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    arguments = [pytree.tree_leaves((n.args, n.kwargs)) for body in bodies for n in body.graph.nodes if not guards(n)]
    leaves = (leaf for leaves in arguments for leaf in leaves)
    return frozenset(leaf for leaf in leaves if isinstance(leaf, torch.dtype) and leaf.is_floating_point)


def _fixed(program: torch.export.ExportedProgram, batch: int | None) -> bool:
    """Whether an input has this very batch: a free one is a symbol."""
    own = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in placeholders(program.graph) if node.name in own]
    return any(isinstance(value, Tensor) and value.ndim > 0 and str(value.shape[0]) == str(batch) for value in values)


def _weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights, where they are laid out in full."""
    return sum(weight.numel() * weight.element_size() for weight in (*model.parameters(), *model.buffers()))


def _batch(args: Arguments, kwargs: Keywords) -> int | None:
    sizes = [leaf.shape[0] for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
    return sizes[0] if sizes else None


def _doubled(args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords] | None:
    """A batch of one, doubled: export takes a size of one for a constant."""
    if _batch(args, kwargs) != 1:
        return None
    double = lambda leaf: torch.cat([leaf, leaf]) if leaf.ndim and leaf.shape[0] == 1 else leaf  # noqa: E731
    return pytree.tree_map_only(Tensor, double, (args, kwargs))


def _dynamic_shapes(model: nn.Module, args: Arguments, kwargs: Keywords) -> Keywords | None:
    """The batch, left free; export (torch 2.13) cannot do that where something goes into a `**kwargs`."""
    signature = inspect.signature(model.forward)
    if not kwargs.keys() <= signature.parameters.keys():
        return None
    batch = _batch(args, kwargs)

    def dims(leaf: object) -> dict[int, object] | None:
        shares = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == batch
        return {0: torch.export.Dim.AUTO} if shares else None

    return pytree.tree_map(dims, dict(signature.bind(*args, **kwargs).arguments))  # what goes into `*args` is a tuple


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch logs, warns of and prints while it traces: a refusal is raised in one line."""
    names = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
    disabled = {logger: logger.disabled for logger in map(logging.getLogger, names)}
    for logger in disabled:
        logger.disabled = True
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # where warnings are errors, none of tracing may end it
        try:
            yield
        finally:
            for logger, before in disabled.items():
                logger.disabled = before
