"""Which weights of a model are parametrised: chosen by name, refused where that cannot be done."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils import parametrize

from equipoise.errors import InputError

Place = tuple[nn.Module, str, str]  # the module, its parameter, and the full name


def chosen(model: nn.Module, names: str | Sequence[str] | None, least_axes: int) -> list[Place]:
    """The parameters that match the patterns; without patterns, the weights of linear and convolutional layers.

    Raises:
        InputError: for patterns that match nothing, and for parameters that are shared, parametrised already, not
            floating, or of fewer axes than needed.
    """
    if isinstance(names, str):
        names = [names]
    found = list(_matching(model, names))
    if not found:
        raise InputError(
            expected="parameters to parametrise",
            found=f"none that match {list(names)}" if names else "no linear or convolutional layer",
            remedy=f"choose among {', '.join(name for name, _ in list(model.named_parameters())[:6])}",
        )
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for module, own, name in found:
        _require(module, own, name, owners, least_axes)
    return found


def _matching(model: nn.Module, names: Sequence[str] | None) -> Iterator[Place]:
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    for prefix, module in model.named_modules():
        held = getattr(module, "parametrizations", {}) if parametrize.is_parametrized(module) else {}
        for own in (*(own for own, _ in module.named_parameters(recurse=False)), *held):
            name = f"{prefix}.{own}" if prefix else own
            default = isinstance(module, layers) and own == "weight"
            if default if names is None else any(name == each or fnmatchcase(name, each) for each in names):
                yield module, own, name


def _require(module: nn.Module, own: str, name: str, owners: dict[int, list[str]], least_axes: int) -> None:
    if parametrize.is_parametrized(module, own):
        raise InputError(
            expected=f"a parameter {name}", found="one that is parametrised already", remedy="leave it out by names=[…]"
        )
    parameter = getattr(module, own)
    shared = owners.get(id(parameter), [])
    found = None
    if len(shared) > 1:
        found = f"one that is shared: {', '.join(shared)}"
    elif not torch.is_floating_point(parameter):
        found = f"one of {parameter.dtype}"
    elif parameter.ndim < least_axes:
        found = f"one of shape {tuple(parameter.shape)}"
    if found:
        raise InputError(
            expected=f"a floating parameter {name} of its own" + (" with two axes or more" if least_axes > 1 else ""),
            found=found,
            remedy="leave it out by names=[…]",
        )
