"""A model without what training has wrapped around it: its own names, and a copy that shares nothing with it."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_INNER = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "AveragedModel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)

_OF_TRAINING = ("_compiled_call_impl", "_trainer", "_fabric")  # attributes that a copy must not drag along


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, data parallelism, weight averaging and checkpointing.

    >>> inner = nn.Linear(2, 1)
    >>> unwrapped(nn.DataParallel(inner)) is inner
    True
    """
    while (inner := module._modules.get(_INNER.get(type(module).__name__, ""))) is not None:
        module = inner
    return module


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the names that the model itself gives them; tied ones under their first name.

    >>> list(own_parameters(nn.Sequential(nn.DataParallel(nn.Linear(2, 1, bias=False)))))
    ['0.weight']
    """
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, parameter in _named(model, "_parameters"):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            found[name] = parameter
    return found


def own_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers likewise."""
    return dict(_named(model, "_buffers"))


def _named(module: nn.Module, kind: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    module = unwrapped(module)
    for name, tensor in getattr(module, kind).items():
        if tensor is not None:
            yield prefix + name, tensor
    for name, child in module._modules.items():
        if child is not None:
            yield from _named(child, kind, f"{prefix}{name}.")


def shell(model: nn.Module) -> nn.Module:
    """A copy on the meta device without wrappers, hooks, shards or compiled code: what the model computes, no weights.

    >>> copy = shell(nn.DataParallel(nn.Linear(2, 1)))
    >>> copy.weight.device, copy.weight.shape
    (device(type='meta'), torch.Size([1, 2]))
    """
    memo: dict[int, Any] = {}
    for _, parameter in _named(model, "_parameters"):
        hollow = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        memo[id(parameter)] = nn.Parameter(hollow, parameter.requires_grad)
    for _, buffer in _named(model, "_buffers"):
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device="meta")
    return _shell(model, memo)


def _shell(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    inner = unwrapped(module)
    if id(inner) in memo:
        return memo[id(inner)]
    twin = memo[id(inner)] = memo[id(module)] = object.__new__(_plain_class(type(inner)))
    twin.__dict__.update({name: OrderedDict() for name in _HOOKS if name in inner.__dict__})
    children = inner._modules.items()
    twin.__dict__["_modules"] = {name: None if child is None else _shell(child, memo) for name, child in children}
    for name, value in inner.__dict__.items():
        if name not in (*_HOOKS, "_modules") and not name.startswith("__composable_api_state"):
            twin.__dict__[name] = None if name in _OF_TRAINING else copy.deepcopy(value, memo)
    return twin


def _plain_class(kind: type) -> type:
    """The class before `fully_shard` put its own in front."""
    return next(base for base in kind.__mro__ if "FSDP" not in base.__name__)
