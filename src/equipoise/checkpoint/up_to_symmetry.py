"""Two checkpoints of one model side by side, the second moved next to the first along the symmetries of the model."""

import os
from collections.abc import Mapping

import torch
from torch import nn

from equipoise.checkpoint.readers.opening import open_checkpoint
from equipoise.checkpoint.tensor_entry import TensorEntry
from equipoise.errors import InputError
from equipoise.graph.capture import Inputs
from equipoise.models import copied_model
from equipoise.transform import Aligned, align

Source = str | os.PathLike[str]


def aligned_checkpoints(
    model: nn.Module, example_inputs: Inputs, source: Source, other: Source
) -> tuple[nn.Module, Aligned]:
    """The model with the weights of one checkpoint, and with those of another moved as near to them as can be.

    A file holds weights and no graph: which of them may be exchanged or turned is read from the model.

    Args:
        model: of the architecture of both; its own weights are not used.
        example_inputs: on which it runs.
        source: the checkpoint that stays as it is.
        other: the one that is moved.

    Returns:
        The first as a model, and the aligned second with its report.

    Raises:
        InputError: for a checkpoint that lacks a parameter of the model, or has it in another shape.
    """
    first, second = (_loaded(model, each) for each in (source, other))
    return first, align(second, first, example_inputs)


def _loaded(model: nn.Module, source: Source) -> nn.Module:
    """A copy of a model with all parameters of a checkpoint, and the buffers that it has."""
    made = copied_model(model)
    entries = {name: entry for entry in open_checkpoint(source).tensors for name in entry.names}
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(_found(name, tuple(parameter.shape), entries, source).read().to(parameter))
        for name, buffer in made.named_buffers():
            if name in entries and entries[name].reason is None and entries[name].shape == tuple(buffer.shape):
                buffer.copy_(entries[name].read().to(buffer))
    return made


def _found(name: str, shape: tuple[int, ...], entries: Mapping[str, TensorEntry], source: Source) -> TensorEntry:
    entry = entries.get(name)
    if entry is None or entry.reason is not None or entry.shape != shape:
        there = f"none in {source}" if entry is None else entry.reason or f"shape {entry.shape} in {source}"
        raise InputError(
            expected=f"the parameter {name} of the model, of shape {shape}",
            found=there,
            remedy="pass the model that the checkpoint was saved from",
        )
    return entry
