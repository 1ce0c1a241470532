"""A model without what training has wrapped around it: its own names, and a copy of what it computes."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from equipoise.errors import InputError

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

_COMPUTING_HOOKS = {  # and the flags of each
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
}
_OBSERVING = (
    "equipoise.",
    "torch.distributed",
    "torch.utils.tensorboard",
    "lightning",
    "accelerate",
    "wandb",
    "mlflow",
)

_HEAP = 1 << 9  # of a type: made by a class statement
_LITTLE = 1 << 20  # elements

_OF_TRAINING = ("_compiled_call_impl", "_trainer", "_fabric")  # attributes that a copy must not drag along


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, data parallelism, weight averaging and checkpointing.

    >>> inner = nn.Linear(2, 1)
    >>> unwrapped(nn.DataParallel(inner)) is inner
    True
    """
    if isinstance(module, torch.jit.ScriptModule):
        return module
    while (inner := module._modules.get(_INNER.get(_plain_class(type(module)).__name__, ""))) is not None:
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
    """Named buffers, wrappers removed."""
    return dict(_named(model, "_buffers"))


def _named(module: nn.Module, kind: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    module = unwrapped(module)
    for name, tensor in getattr(module, kind).items():
        if tensor is not None:
            yield prefix + name, tensor
    for name, child in module._modules.items():
        if child is not None:
            yield from _named(child, kind, f"{prefix}{name}.")


@dataclass(frozen=True, eq=False)
class ModelPart:
    """A module or a parameter of a model at one time, to be compared with what is in its place later."""

    it: nn.Module | nn.Parameter
    trained: bool = False
    shape: tuple[object, ...] = ()  # and the dtype; of a module, whether it is in training mode

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter, or else a module."""
        return isinstance(self.it, Tensor)

    def is_same(self, other: "ModelPart") -> bool:
        """Whether it is the very same object, however changed."""
        return self.it is other.it

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ModelPart)
            and self.it is other.it
            and (self.trained, self.shape) == (other.trained, other.shape)
        )

    def __hash__(self) -> int:
        return hash((id(self.it), self.trained, self.shape))


def structure(model: nn.Module) -> dict[str, ModelPart]:
    """Every module and parameter by the model's own names.

    >>> list(structure(nn.Sequential(nn.Linear(2, 1, bias=False))))
    ['', '0', '0.weight']
    """
    return dict(_parts(model, ""))


def _parts(module: nn.Module, prefix: str) -> Iterator[tuple[str, ModelPart]]:
    module = unwrapped(module)
    yield prefix.removesuffix("."), ModelPart(module, shape=(module.training,))
    for name, parameter in module._parameters.items():
        if parameter is not None:
            shape = () if is_lazy(parameter) else (parameter.dtype, *parameter.shape)
            yield prefix + name, ModelPart(parameter, parameter.requires_grad, shape)
    for name, child in module._modules.items():
        if child is not None:
            yield from _parts(child, f"{prefix}{name}.")


@dataclass(frozen=True)
class Selection:
    """The parameters of a model to watch: those that a pattern names, in modules of some types; all, by default.

    Attributes:
        names: glob patterns on the model's own names of parameters, one of which must match.
        types: classes of modules; a parameter must belong to one of them directly.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    >>> sorted(Selection(names=["*.weight"], types=[nn.Linear]).of(model))
    ['0.weight', '2.weight']
    """

    names: Sequence[str] | None = None
    types: Sequence[type[nn.Module]] | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self.names is None and self.types is None

    def of(self, model: nn.Module) -> frozenset[str]:
        """The names of the selected parameters; a tied one is selected by any of its names, and goes by the first."""
        chosen = {id(parameter) for module, name, parameter in _owned(model, "") if self._has(module, name)}
        return frozenset(name for name, parameter in own_parameters(model).items() if id(parameter) in chosen)

    def _has(self, module: nn.Module, name: str) -> bool:
        named = self.names is None or any(fnmatchcase(name, pattern) for pattern in self.names)
        return named and (self.types is None or isinstance(module, tuple(self.types)))

    def __str__(self) -> str:
        types = None if self.types is None else [kind.__name__ for kind in self.types]
        given = {"names": None if self.names is None else list(self.names), "types": types}
        return ", ".join(f"{key}={value}" for key, value in given.items() if value is not None)


def _owned(module: nn.Module, prefix: str) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Each parameter with its name and the module that it belongs to."""
    module = unwrapped(module)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield module, prefix + name, parameter
    for name, child in module._modules.items():
        if child is not None:
            yield from _owned(child, f"{prefix}{name}.")


def shell(model: nn.Module) -> nn.Module:
    """A copy for reading: what the model computes, without its weights, wrappers, shards and compiled code.

    Parameters become zeros on the CPU that take no memory; buffers, tensors and arrays in attributes or nested
    containers keep their values, since a law may depend on them. No copying code of the model's own runs, and functions
    that close over the model are made to close over the copy.

    >>> copy = shell(nn.DataParallel(nn.Linear(2, 1)))
    >>> copy.weight.shape, copy.weight.untyped_storage().nbytes()
    (torch.Size([1, 2]), 4)
    """
    return _Copy(model).module(model)


class _Copy:
    """One copy of a model under way: what has been copied, by the `id` of the original."""

    def __init__(self, model: nn.Module):
        self.memo: dict[int, Any] = {}
        self.kept: list[object] = []  # whose ids must not be taken by others meanwhile
        hollow: dict[object, nn.Parameter] = {}
        for _, parameter in _named(model, "_parameters"):
            twin = hollow.setdefault(_storage(parameter), _hollow(parameter))
            self.memo[id(parameter)] = twin

    def module(self, module: nn.Module) -> nn.Module:
        """A submodule, unwrapped."""
        inner = unwrapped(module)
        if id(inner) in self.memo:
            return self.memo[id(inner)]
        if isinstance(inner, torch.jit.ScriptModule):
            raise InputError(
                expected="a model written in Python", found="a ScriptModule", remedy="watch the model it was made from"
            )
        twin = self.memo[id(inner)] = self.memo[id(module)] = object.__new__(_plain_class(type(inner)))
        children = inner._modules.items()
        twin.__dict__["_modules"] = {name: None if each is None else self.module(each) for name, each in children}
        for name, value in inner.__dict__.items():
            if name not in (*_HOOKS, "_modules") and not name.startswith("__composable_api_state"):
                twin.__dict__[name] = None if name in _OF_TRAINING else self.value(value)
        twin.__dict__.update({name: OrderedDict() for name in _HOOKS if name in inner.__dict__})
        for name, flags in _COMPUTING_HOOKS.items():
            self._hooks(inner, twin, name, flags)
        return twin

    def _hooks(self, module: nn.Module, twin: nn.Module, name: str, flags: tuple[str, ...]) -> None:
        """The hooks that may take part in what a module computes, as those of weight norm do."""
        for key, hook in module.__dict__.get(name, {}).items():
            if not _observes(hook):
                twin.__dict__[name][key] = _Hook(self.value(hook))
                for flag in flags:
                    if key in module.__dict__.get(flag, {}):
                        twin.__dict__[flag][key] = True

    def value(self, value: Any) -> Any:
        """A copy of the value of an attribute."""
        if id(value) in self.memo:
            return self.memo[id(value)]
        self.kept.append(value)
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, Tensor):
            twin = self.memo[id(value)] = _valued(value)
            return twin
        if isinstance(value, torch.Generator):
            twin = self.memo[id(value)] = value.clone_state()
            return twin
        kind = type(value)
        if kind in (dict, OrderedDict):
            twin = self.memo[id(value)] = kind()
            twin.update((self.value(key), self.value(item)) for key, item in value.items())
            return twin
        if kind is list:
            twin = self.memo[id(value)] = []
            twin.extend(self.value(item) for item in value)
            return twin
        if kind in (tuple, set, frozenset):
            return kind(self.value(item) for item in value)
        if kind is FunctionType:
            return self._function(value)
        if kind is MethodType:
            return MethodType(self.value(value.__func__), self.value(value.__self__))
        if kind is partial:
            return partial(self.value(value.func), *self.value(value.args), **self.value(value.keywords))
        if _is_plain(kind):
            twin = self.memo[id(value)] = object.__new__(kind)
            twin.__dict__.update((name, self.value(item)) for name, item in value.__dict__.items())
            return twin
        try:
            return copy.deepcopy(value, self.memo)
        except Exception:  # a lock, a file, a stream: as it is
            return value

    def _function(self, function: FunctionType) -> FunctionType:
        """One that closes over copies, and sees copies of the containers that it knows by global names."""
        cells = function.__closure__ or ()
        known = function.__globals__
        seen = {name: known[name] for name in function.__code__.co_names if type(known.get(name)) in (dict, list, set)}
        if not cells and not seen:
            return function
        code, name, defaults = function.__code__, function.__name__, function.__defaults__
        scope = {**known, **{each: self.value(container) for each, container in seen.items()}} if seen else known
        fresh = tuple(CellType() for _ in cells)
        twin = self.memo[id(function)] = FunctionType(code, scope, name, defaults, fresh)
        twin.__kwdefaults__, twin.__qualname__ = function.__kwdefaults__, function.__qualname__
        twin.__dict__.update(function.__dict__)
        for old, new in zip(cells, fresh, strict=True):
            with suppress(ValueError):  # an empty cell
                new.cell_contents = self.value(old.cell_contents)
        return twin


class _Hook:
    """A copied hook; one that fails, as those that read values do, is taken for one that only observes."""

    def __init__(self, hook: Callable[..., object]):
        self.hook = hook

    def __call__(self, *args: object, **kwargs: object) -> object:
        try:
            return self.hook(*args, **kwargs)
        except Exception:
            return None


def _observes(hook: object) -> bool:
    """Whether a hook is known not to be part of what the model computes."""
    origin = getattr(hook, "__func__", hook)
    named = getattr(origin, "__module__", None) or type(hook).__module__
    return named.startswith(_OBSERVING)


def _is_plain(kind: type) -> bool:
    """Whether the state of an object is its `__dict__`, and nothing of its own runs when it is made."""
    return (
        not issubclass(kind, (type, ModuleType))
        and bool(kind.__flags__ & _HEAP)
        and hasattr(kind, "__dict__")
        and kind.__new__ is object.__new__
        and kind.__reduce__ is object.__reduce__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and getattr(kind, "__getstate__", None) is object.__getstate__
        and not hasattr(kind, "__setstate__")
        and not any("__slots__" in base.__dict__ for base in kind.__mro__[:-1])
    )


def _storage(parameter: Tensor) -> object:
    """A key that is equal for two parameters that are one."""
    if type(parameter) not in (Tensor, nn.Parameter) or parameter.is_meta or not parameter.numel():
        return id(parameter)
    return parameter.data_ptr(), parameter.shape, parameter.stride(), parameter.requires_grad


def _hollow(parameter: Tensor) -> nn.Parameter:
    """Zeros of the same shape that take no memory."""
    zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
    return nn.Parameter(zeros, parameter.requires_grad)


def _valued(tensor: Tensor) -> Tensor:
    """A constant on the CPU; a large one is shared, since nothing that export runs writes to it."""
    plain: Any = tensor.detach()
    if hasattr(plain, "full_tensor"):
        plain = plain.full_tensor()
    if plain.device.type not in ("cpu", "meta"):
        plain = plain.cpu()
    elif plain.is_meta or plain.numel() <= _LITTLE:
        plain = plain.clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(plain, tensor.requires_grad)
    return plain.requires_grad_() if tensor.requires_grad and tensor.is_leaf else plain


def _plain_class(kind: type) -> type:
    """The class before `fully_shard` put its own in front."""
    return next(base for base in kind.__mro__ if "FSDP" not in base.__name__)
