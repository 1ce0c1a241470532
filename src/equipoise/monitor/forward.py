"""What one forward pass shows: the shapes of its arguments, and the dtypes that its operations computed in."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from equipoise.graph.capture import Inputs
from equipoise.graph.precision import narrowest
from equipoise.monitor.unwrap import unwrapped

_NODES = 100_000  # of the graph of autograd, looked at for their dtypes


@dataclass(frozen=True)
class Example:
    """The arguments of one forward pass by their shapes, and the narrowest dtype that it computed in, if it is known.

    `unread` says why there are none.
    """

    inputs: Inputs | None
    precision: torch.dtype | None = None
    unread: str = ""

    @classmethod
    def of_call(cls, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Example":
        """Of the arguments of a call, none of which is kept."""
        precision = _autocast()
        strange = sorted({reason for leaf in pytree.tree_leaves((args, dict(kwargs))) if (reason := _strange(leaf))})
        if strange:
            said = f"the model was called with {', '.join(strange)}; pass example_inputs= of plain tensors"
            return cls(None, precision, said)
        args, kwargs = pytree.tree_map_only(Tensor, hollow, (args, dict(kwargs)))
        if args and kwargs:  # by name, as far as they have one
            signature = inspect.signature(unwrapped(model).forward).parameters
            named = [name for name, each in signature.items() if each.kind in (each.POSITIONAL_OR_KEYWORD,)]
            if len(named) < len(args):
                said = "the model was called with positional arguments without a name, beside keywords"
                return cls(None, precision, f"{said}; pass example_inputs=")
            args, kwargs = (), {**dict(zip(named, args, strict=False)), **kwargs}
        return cls(kwargs or args, precision)


def hollow(tensor: Tensor) -> Tensor:
    """Zeros of the same shape that take no memory."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


def _strange(leaf: Any) -> str:
    """What kind of tensor it is that cannot be replaced by zeros of its shape."""
    if not isinstance(leaf, Tensor):
        return ""
    if leaf.is_nested:
        return "a NestedTensor"
    if leaf.is_quantized:
        return f"a quantised tensor ({leaf.dtype})"
    return "" if leaf.layout is torch.strided else f"a tensor of layout {leaf.layout}"


def _autocast() -> torch.dtype | None:
    kinds = [kind for kind in ("cuda", "cpu") if torch.is_autocast_enabled(kind)]
    return narrowest(*(torch.get_autocast_dtype(kind) for kind in kinds))


def computed_in(output: Any) -> torch.dtype | None:
    """The narrowest dtype among all results that autograd knows to lead to `output`: that of autocast inside, too.

    >>> x = torch.ones(2, requires_grad=True)
    >>> computed_in({"loss": (2 * x.bfloat16()).float().sum()}), computed_in(x)
    (torch.bfloat16, None)
    """
    todo = [tensor.grad_fn for tensor in _tensors(output) if tensor.grad_fn is not None]
    seen, found = set(todo), None
    while todo and len(seen) < _NODES:
        node: Any = todo.pop()
        found = narrowest(found, *(each.dtype for each in getattr(node, "_input_metadata", ())))
        fresh = {before for before, _ in node.next_functions if before is not None} - seen
        seen |= fresh
        todo += fresh
    return found


def _tensors(output: Any) -> Iterator[Tensor]:
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for field in dataclasses.fields(leaf):
                yield from _tensors(getattr(leaf, field.name, None))


class ForwardRecord:
    """Hooks on a model's `forward` that tell of one call with gradients, and go; copies of the model get inert ones.

    `tell` is given each call seen until then: an `Example` of its arguments, and what it computed in once it has ended.
    """

    def __init__(self, model: nn.Module, tell: Callable[[Example], None]):
        self.tell, self.example = tell, Example(None)
        self.handles: list[Any] = []
        try:
            self.handles.append(model.register_forward_pre_hook(self.before, with_kwargs=True))
            self.handles.append(model.register_forward_hook(self.after))
        except Exception as error:  # a ScriptModule knows no keywords
            self.remove()
            tell(Example(None, unread=f"the calls of a {type(model).__name__} cannot be seen ({type(error).__name__})"))

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    @property
    def before(self) -> "_Inert":
        """Before the call."""
        return _Inert(self._before)

    @property
    def after(self) -> "_Inert":
        """After the call."""
        return _Inert(self._after)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self.example = Example.of_call(module, args, kwargs)
        except Exception as error:  # whatever the arguments are, the training goes on
            said = (
                f"the arguments of the model could not be read ({type(error).__name__}: {error}); pass example_inputs="
            )
            self.example = Example(None, unread=said)
        self.tell(self.example)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        try:
            if not torch.is_grad_enabled():
                return
            self.remove()
            precision = narrowest(self.example.precision, computed_in(output))
            self.tell(dataclasses.replace(self.example, precision=precision))
        except Exception:  # unknown then: judged by the dtypes of the weights
            return


class _Inert:
    """A hook that copies and pickles as one that does nothing."""

    def __init__(self, hook: Callable[..., None]):
        self.hook = hook

    def __call__(self, *args: Any) -> None:
        self.hook(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert, ()


def _inert() -> Callable[..., None]:
    return _ignore


def _ignore(*args: Any) -> None:
    return None
