"""Models as they are passed in: copied with all that they keep, and called on the inputs that they take."""

import copy
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from equipoise.errors import InputError
from equipoise.modes import callers_device


def copied_model(model: nn.Module) -> nn.Module:
    """A deep copy; tensors with a history that modules keep, such as caches, are constants in it."""
    kept = (leaf for module in model.modules() for leaf in pytree.tree_leaves(dict(vars(module))))
    memo: dict[int, object] = {
        id(leaf): leaf.detach().clone() for leaf in kept if isinstance(leaf, Tensor) and not leaf.is_leaf
    }
    return copy.deepcopy(model, memo)


def require_readable(model: object) -> None:
    """Refuse what cannot be read.

    Raises:
        InputError: for what is no module, or one that is compiled or scripted, and for lazy or complex weights.

    >>> require_readable(nn.LazyLinear(2))
    Traceback (most recent call last):
        ...
    equipoise.errors.InputError: expected initialised parameters; found lazy weight; run the model once first
    """
    if not isinstance(model, nn.Module) or hasattr(model, "_orig_mod"):
        raise InputError(
            expected="a torch.nn.Module that is not compiled",
            found=type(model).__name__,
            remedy="pass the module inside (model._orig_mod of torch.compile)",
        )
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise InputError(
            expected="a model written in Python", found="a ScriptModule", remedy="pass the model it was made from"
        )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise InputError(expected="initialised parameters", found=f"lazy {name}", remedy="run the model once first")
        if parameter.is_complex():
            raise InputError(
                expected="real parameters",
                found=f"{name} of dtype {parameter.dtype}",
                remedy="write it as its real and imaginary parts",
            )


def require_values(model: nn.Module) -> None:
    """Refuse parameters on the meta device; raises `InputError`."""
    meta = next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)
    if meta is not None:
        raise InputError(
            expected="weights with values", found=f"{meta} on the meta device", remedy="load the weights first"
        )


def call_model(model: nn.Module, inputs: object) -> object:
    """The result of a model on a tensor, a sequence of arguments, or a mapping of keywords."""
    with callers_device():
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(inputs) if isinstance(inputs, Tensor) else model(*cast(Sequence[object], inputs))
