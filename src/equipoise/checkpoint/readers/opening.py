"""Open a model, a state dict, a file or a folder as a `Checkpoint`; formats are recognised by their content."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from equipoise.checkpoint.effective import effective
from equipoise.checkpoint.readers.limits import guarded, read_json, require_name
from equipoise.checkpoint.readers.modules import config_of, read_module, read_state
from equipoise.checkpoint.readers.onnx import read_onnx
from equipoise.checkpoint.readers.paths import in_memory, unnested
from equipoise.checkpoint.readers.recognised import foreign_file, foreign_folder
from equipoise.checkpoint.readers.safetensors import read_index, read_safetensors
from equipoise.checkpoint.readers.torch_save import LEGACY, ZIP, read_torch, read_torch_index
from equipoise.checkpoint.tensor_entry import Checkpoint, TensorEntry
from equipoise.errors import InputError, visible

_USUAL = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "adapter_model.safetensors",
    "model.onnx",
)
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".onnx", ".index.json")


def open_checkpoint(source: object) -> Checkpoint:
    """A model, a state dict, a file, or a folder with one checkpoint in it; tensors are not read yet.

    Raises:
        InputError: for anything else, in one line.
    """
    if isinstance(source, nn.Module):
        return _named(Checkpoint(type(source).__name__, read_module(source), config_of(source)))
    if isinstance(source, Mapping):
        with guarded("the state dict"):
            return _named(Checkpoint("state dict", read_state(in_memory(unnested(source)))))
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            expected="a model, a state dict or the path of a checkpoint",
            found=type(source).__name__,
            remedy="pass a torch.nn.Module or a path",
        )
    path = Path(source)
    with guarded(str(path)):
        return _in_file(path)


def _in_file(path: Path) -> Checkpoint:
    try:
        file = _in_folder(path) if path.is_dir() else path
        tensors = _read(file)
    except OSError as error:
        raise InputError(
            expected=f"to read {path}", found=error.strerror or str(error), remedy="check the path"
        ) from None
    config = file.parent / "config.json"
    found = Checkpoint(str(path), tensors, read_json(config) if config.is_file() else {})
    return _named(found)


def _read(path: Path) -> tuple[TensorEntry, ...]:
    if not path.is_file():
        raise InputError(expected="a checkpoint file or folder", found=f"none at {path}", remedy="check the path")
    with path.open("rb") as file:
        start = file.read(max(9, len(LEGACY)))
    if path.name.endswith(".index.json"):
        return read_index(path) if ".safetensors." in path.name else read_torch_index(path)
    if path.suffix != ".distcp" and start.startswith((ZIP, LEGACY)):
        return read_torch(path)
    if start[8:9] == b"{" and start[:1] not in b"[{<":  # after the length of the header, which no text begins with
        return read_safetensors(path)
    foreign = foreign_file(path)
    if foreign is not None:
        raise foreign.refusal(path)
    if path.suffix == ".onnx":
        return read_onnx(path)
    raise InputError(
        expected="a checkpoint: safetensors, torch.save or ONNX",
        found=f"{path.name}, which is none of them or is cut short",
        remedy="pass another file",
    )


def _in_folder(folder: Path) -> Path:
    """The one checkpoint in a folder."""
    usual = [folder / name for name in _USUAL if (folder / name).is_file()]
    if usual:
        return usual[0]
    there = sorted(folder.iterdir())
    others = [path for path in there if path.is_file() and path.name.endswith(_SUFFIXES)]
    foreign = foreign_folder(folder, [path.name for path in there])
    if foreign is not None and len(others) != 1:
        raise foreign.refusal(folder)
    if len(others) != 1:
        raise InputError(
            expected=f"one checkpoint in {folder}",
            found=", ".join(path.name for path in others[:5]) or "none",
            remedy="pass the path of the file itself",
        )
    return others[0]


def _named(checkpoint: Checkpoint) -> Checkpoint:
    """With names as they may be listed, and without the prefixes that `torch.compile` and data parallelism add.

    What does not show in a name is escaped. The prefixes stay where two names would become one without them.

    Raises:
        InputError: where there are no tensors.
    """
    if not checkpoint.tensors:
        raise InputError(
            expected="a checkpoint with tensors", found=f"none in {checkpoint.label}", remedy="pass another one"
        )
    for tensor in checkpoint.tensors:
        for name in tensor.names:
            require_name(name)
    checkpoint = effective(checkpoint)
    for cleaned in (lambda name: visible(_clean(name)), visible, lambda name: visible(name.replace("\\", "\\\\"))):
        named = [tuple(cleaned(name) for name in tensor.names) for tensor in checkpoint.tensors]
        flat = [name for names in named for name in names]
        if len(set(flat)) == len(flat):
            break
    tensors = (
        replace(tensor, name=names[0], aliases=names[1:], reason=tensor.reason and visible(tensor.reason))
        for tensor, names in zip(checkpoint.tensors, named, strict=True)
    )
    return replace(checkpoint, tensors=tuple(tensors))


def _clean(name: str) -> str:
    return name.replace("_orig_mod.", "").removeprefix("module.")
