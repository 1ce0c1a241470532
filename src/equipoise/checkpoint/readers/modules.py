"""Models and state dicts that are already in memory."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from equipoise.checkpoint.stored import Stored, stored


def read_module(model: nn.Module) -> tuple[Stored, ...]:
    """Parameters and buffers of a model, each with the class of the module that owns it."""
    state = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    lazy = {name for name, value in state.items() if torch.nn.parameter.is_lazy(value)}
    owners = {
        f"{prefix}.{name}".removeprefix("."): type(module).__name__
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name in (*module._parameters, *module._buffers)
    }
    there = read_state({name: value for name, value in state.items() if name not in lazy}, owners)
    return (*there, *(Stored(name, (), "", torch.Tensor, reason="it is lazy: run the model once") for name in lazy))


def read_state(state: Mapping[str, Tensor], owners: Mapping[str, str] | None = None) -> tuple[Stored, ...]:
    """The tensors of a state dict.

    >>> [entry.names for entry in read_state({"a": torch.ones(2)})]
    [('a',)]
    """
    held = {name: value.detach() for name, value in state.items()}
    found = stored(held, lambda name: lambda: held[name])
    return tuple(
        Stored(its.name, its.shape, its.dtype, its.read, its.aliases, (owners or {}).get(its.name), its.reason)
        for its in found
    )
