"""Smaller models that others can use: modules as plain data, safetensors, ONNX."""

import copy
import json
import os
import warnings
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from equipoise.compression.data import DataBatches, call
from equipoise.compression.exact import relative_change
from equipoise.compression.layers import replace
from equipoise.errors import InputError, StoreError, one_line
from equipoise.models import copied_model

FORMAT = 1
Spec: TypeAlias = dict[str, object]

_CONVOLUTIONS = {"Conv1d": nn.Conv1d, "Conv2d": nn.Conv2d, "Conv3d": nn.Conv3d}
_ARGUMENTS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def evaluating(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode."""
    return copied_model(model).eval()


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every tensor in memory of its own."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}


def differences(original: nn.Module, smaller: nn.Module) -> dict[str, Spec]:
    """The modules of the smaller model that are of another type or shape, as plain data."""
    before = dict(original.named_modules())
    found: dict[str, Spec] = {}
    for name, module in smaller.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and name in before and (spec := _spec(module)) is not None and spec != _spec(before[name]):
            found[name] = spec
    return found


def counted(original: nn.Module, smaller: nn.Module) -> dict[str, dict[str, int]]:
    """Attributes of modules of both that count heads and differ."""
    before = dict(original.named_modules())
    found: dict[str, dict[str, int]] = {}
    for name, module in smaller.named_modules():
        if name in before and _spec(module) is None:
            own, other = vars(module), vars(before[name])
            changed = {key: value for key, value in own.items() if type(value) is int and other.get(key) != value}
            found |= {name: changed} if changed else {}
    return found


def load(folder: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """A compressed model from what `Compressed.save` wrote.

    Args:
        folder: the folder.
        model: a model of the original architecture, with any weights; it is left as it is.

    Returns:
        A copy with the smaller layers and the saved weights.

    Raises:
        StoreError: for a folder that holds no compressed model.
        InputError: for a model of another architecture.
    """
    path = Path(folder)
    try:
        config = json.loads((path / "compression.json").read_text(encoding="utf-8"))
        weights = load_file(path / "model.safetensors")
        specs = config["modules"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreError(
            expected=f"model.safetensors and compression.json in {path}",
            found=one_line(error),
            remedy="write them by compressed.save(folder)",
        ) from None
    made = copy.deepcopy(model)
    try:
        for name, spec in specs.items():
            replace(made, name, _built(spec))
        for name, attributes in config.get("counted", {}).items():
            for attribute, value in attributes.items():
                setattr(made.get_submodule(name), attribute, int(value))
        made.load_state_dict(weights)
    except (AttributeError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(
            expected="a model of the architecture that was compressed",
            found=one_line(error),
            remedy="build it as it was built before eq.compress",
        ) from None
    return made


def _spec(module: nn.Module) -> Spec | None:
    """A layer without its weights; None for any other module."""
    kind = type(module).__name__
    if type(module) is nn.Identity:
        return {"type": kind}
    if type(module) is nn.Linear:
        return {"type": kind, "in": module.in_features, "out": module.out_features, "bias": module.bias is not None}
    if kind in _CONVOLUTIONS and type(module) is _CONVOLUTIONS[kind]:
        return {"type": kind, "bias": module.bias is not None} | {name: getattr(module, name) for name in _ARGUMENTS}
    if type(module) is nn.Sequential and len(module) == 2:
        parts = [_spec(part) for part in module]
        return None if None in parts else {"type": kind, "layers": parts}
    return None


def _built(spec: Spec) -> nn.Module:
    kind = spec["type"]
    if kind == "Identity":
        return nn.Identity()
    if kind == "Linear":
        return nn.Linear(int(str(spec["in"])), int(str(spec["out"])), bool(spec["bias"]))
    if kind == "Sequential":
        layers = spec["layers"]
        assert isinstance(layers, list)
        return nn.Sequential(*map(_built, layers))
    arguments = {name: _tuples(spec[name]) for name in _ARGUMENTS}
    return partial(_CONVOLUTIONS[str(kind)], **arguments)(bias=bool(spec["bias"]))  # pyright: ignore[reportCallIssue]


def _tuples(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def to_onnx(model: nn.Module, examples: DataBatches, path: Path) -> float:
    """Export, run with onnxruntime, compare; see `Compressed.to_onnx`."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputError(
            expected="onnx, onnxscript and onnxruntime",
            found=f"no {' and no '.join(missing)}",
            remedy="pip install 'equipoise[onnx]'",
        )
    import onnxruntime  # only here, because it is an extra

    batch = next(examples.head(8).batches(next(model.parameters())))
    keywords = dict(batch.items()) if isinstance(batch, Mapping) else {}
    arguments = (batch,) if isinstance(batch, Tensor) else () if keywords else tuple(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own libraries
        try:
            torch.onnx.export(
                model, arguments, str(path), kwargs=keywords, dynamo=True, verbose=False, external_data=False
            )
        except OSError as error:
            raise StoreError(
                expected=f"to write {path}", found=error.strerror or str(error), remedy="choose another file"
            ) from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    values = [leaf.detach().cpu().numpy() for leaf in pytree.tree_leaves(batch)]
    with torch.no_grad():
        expected = call(model, batch).cpu()
    got = torch.from_numpy(session.run(None, dict(zip(names, values, strict=True)))[0])
    change = relative_change(expected, got)
    if not change <= 1e3 * torch.finfo(expected.dtype).eps:
        raise InputError(
            expected="the same outputs from onnxruntime",
            found=f"a relative difference of {change:.1e}",
            remedy="report the model; the file was written",
        )
    return change
