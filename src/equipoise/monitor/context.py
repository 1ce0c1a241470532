"""The model as training sees it: parameters and gradients by name, its laws, and the layers that follow others.

All of it is read from the model and the shapes of one call, once; again where a user has changed the model.
"""

import dataclasses
import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from equipoise.errors import EquipoiseError, one_line
from equipoise.graph.capture import Captured, Inputs, capture
from equipoise.graph.chain import channel_axis, successions
from equipoise.graph.evaluate import activations
from equipoise.graph.interface import Member
from equipoise.graph.precision import narrowest
from equipoise.laws import Laws, invariances
from equipoise.laws.collection import kink_names
from equipoise.laws.evaluate import DIRECTIONS, LawPlan
from equipoise.laws.law import Law
from equipoise.measure.unfolding import Unfolding
from equipoise.monitor.distributed import Membership, ProcessGroup
from equipoise.monitor.shards import any_sharded, splits
from equipoise.monitor.unwrap import ModelPart, Selection, own_buffers, own_parameters, shell, structure, unwrapped
from equipoise.observers import Probe, TrainingContext

SNAPSHOTS_TO_SETTLE = 10  # through which a neuron must keep its state to be called stable
_NODES = 100_000  # of the graph of autograd, read for their dtypes


@dataclass(frozen=True)
class Example:
    """The arguments of one forward pass by their shapes, and the narrowest dtype that it computed in, if it is known.

    `unread` says why there are none.
    """

    inputs: Inputs | None
    precision: torch.dtype | None = None
    unread: str = ""

    @classmethod
    def of_call(cls, model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> "Example":
        """The example of a call, none of whose arguments is kept."""
        precision = autocast_dtype()
        strange = sorted({kind for leaf in pytree.tree_leaves((args, dict(kwargs))) if (kind := _strange(leaf))})
        if strange:
            reason = f"the model was called with {', '.join(strange)}; pass example_inputs= of plain tensors"
            return cls(None, precision, reason)
        args, kwargs = pytree.tree_map_only(Tensor, hollow, (args, dict(kwargs)))
        if args and kwargs:  # by name, as far as they have one
            signature = inspect.signature(unwrapped(model).forward).parameters
            named = [name for name, each in signature.items() if each.kind in (each.POSITIONAL_OR_KEYWORD,)]
            if len(named) < len(args):
                reason = "the model was called with positional arguments without a name, beside keywords"
                return cls(None, precision, f"{reason}; pass example_inputs=")
            args, kwargs = (), {**dict(zip(named, args, strict=False)), **kwargs}
        return cls(kwargs or args, precision)


def hollow(tensor: Tensor) -> Tensor:
    """Zeros of the same shape that take no memory."""
    return torch.zeros((), dtype=tensor.dtype, device="cpu").expand(tensor.shape)


def _strange(leaf: object) -> str:
    """The kind of a tensor that cannot be replaced by zeros of its shape."""
    if not isinstance(leaf, Tensor):
        return ""
    if leaf.is_nested:
        return "a NestedTensor"
    if leaf.is_quantized:
        return f"a quantised tensor ({leaf.dtype})"
    return "" if leaf.layout is torch.strided else f"a tensor of layout {leaf.layout}"


def autocast_dtype() -> torch.dtype | None:
    """The dtype that autocast casts to here; None where it is off."""
    kinds = [kind for kind in ("cuda", "cpu") if torch.is_autocast_enabled(kind)]
    return narrowest(*(torch.get_autocast_dtype(kind) for kind in kinds))


def computed_in(output: object) -> torch.dtype | None:
    """The narrowest dtype among all results that autograd knows to lead to `output`: that of autocast inside, too.

    >>> x = torch.ones(2, requires_grad=True)
    >>> computed_in({"loss": (2 * x.bfloat16()).float().sum()}), computed_in(x)
    (torch.bfloat16, None)
    """
    todo = [tensor.grad_fn for tensor in _tensors(output) if tensor.grad_fn is not None]
    seen, found = set(todo), None
    while todo and len(seen) < _NODES:
        node = todo.pop()
        found = narrowest(found, *(each.dtype for each in getattr(node, "_input_metadata", ())))
        fresh = {before for before, _ in node.next_functions if before is not None} - seen
        seen |= fresh
        todo += fresh
    return found


def _tensors(output: object) -> Iterator[Tensor]:
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for field in dataclasses.fields(leaf):
                yield from _tensors(getattr(leaf, field.name, None))


@dataclass
class ModelContext:
    """One model in training: its parameters by name, and its laws on an example, or why it has none."""

    model: nn.Module
    example: Example | None
    membership: Membership = field(default_factory=lambda: Membership(ProcessGroup()))
    given: bool = False  # whether the inputs of the example are the user's
    selection: Selection = field(default_factory=Selection)

    def __post_init__(self) -> None:
        self.parameters: dict[str, nn.Parameter] = own_parameters(self.model)  # by the model's own names
        self.revision = 0  # how often the model has been found to be another one
        self._structure = structure(self.model)
        self._readings: dict[tuple[object, ...], Laws | str] = {}
        self.unfit = frozenset[str]()  # laws that were read from the model, and are not those of its training
        self.membership.announce(self.parameters)

    @property
    def group(self) -> ProcessGroup:
        """The processes that watch together, once they have agreed."""
        return self.membership.group

    def see(self, example: Example) -> None:
        """Take the example of a forward pass; the inputs that the user gave come first.

        A model that was to be read before its first forward pass is read again.
        """
        given = self.example
        if given is None and self._readings:
            self._readings.clear()
            self.revision += 1
        own = self.given and given is not None
        self.example = replace(given, precision=example.precision) if own and given else example

    def refresh(self, *, ended: bool = False) -> str:
        """Compare the model, part by part, with the one that was read; the differences in words, empty if none.

        Where the training has ended, the mode of the model is that of what comes next, and is left out.
        """
        now = structure(self.model)
        if ended:
            before = self._structure
            stays = lambda name: name in before and now[name].is_same(before[name]) and not now[name].is_parameter  # noqa: E731
            now = {name: before[name] if stays(name) else part for name, part in now.items()}
        if now.keys() == self._structure.keys() and all(now[name] == part for name, part in self._structure.items()):
            return ""
        differences = _differences(self._structure, now, modes=bool(self._readings))
        if now.keys() != self._structure.keys() or not all(now[name].is_same(self._structure[name]) for name in now):
            self._readings.clear()
            self.unfit = frozenset()
        self._structure, self.parameters = now, own_parameters(self.model)
        self.revision += 1
        return differences

    def weights(self) -> dict[str, Tensor]:
        """The parameters as they are now, without history."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def gradients(self, scale: Tensor | None = None) -> dict[str, Tensor] | None:
        """The gradients as they are now, `scale` divided out; zero where others have one, None where none has."""
        found = {name: parameter.grad for name, parameter in self.parameters.items() if parameter.grad is not None}
        if not found:
            return None
        plain = {name: gradient.to_dense() if gradient.is_sparse else gradient for name, gradient in found.items()}
        if scale is not None:
            plain = {name: gradient / scale.to(gradient) for name, gradient in plain.items()}
        return {
            name: plain[name] if name in plain else torch.zeros_like(parameter)
            for name, parameter in self.parameters.items()
        }

    @property
    def _read(self) -> Laws | str:
        """The laws, or why there are none; read once for each choice of what is trained, and in which mode."""
        key = tuple(part.trained if part.is_parameter else part.shape for part in self._structure.values())
        if key not in self._readings:
            self._readings[key] = self._reading()
        return self._readings[key]

    def _reading(self) -> Laws | str:
        if self.example is None:
            return f"no forward pass of {_called(self.model)} was seen before the first step; pass example_inputs="
        if self.example.inputs is None:
            return self.example.unread
        try:
            return read_laws(self.model, self.example.inputs)
        except EquipoiseError as error:
            return f"{error.found}; {error.remedy}"
        except Exception as error:  # a failure while a model is copied or traced must not stop its training
            return one_line(error)

    @property
    def laws(self) -> Laws | None:
        """The laws, where the model can be read."""
        read = self._read
        return None if isinstance(read, str) else read

    def rests_on_sizes(self, law: Law) -> bool:
        """Whether a law may have been read wrongly, since each process computes with its shards.

        The model is read with whole weights. In tensor parallelism its code between layers sees shards: where it splits
        a weight by sizes of its own, such as a number of heads, these may be those of a shard.
        """
        if not any(splits(weight) > self._gathered_axes for weight in self.parameters.values()):
            return False
        return any(_splits(member, self.parameters[member.parameter].shape) for member in law.interface.members)

    @property
    def _gathered_axes(self) -> int:
        """Along how many axes of the mesh weights are put together before use: `fully_shard` does it for one."""
        return any(base.__name__ == "FSDPModule" for module in self.model.modules() for base in type(module).__mro__)

    def watched(self) -> frozenset[str]:
        """The names of the parameters that are to be watched."""
        return self.selection.of(self.model)

    def training_context(
        self, held: frozenset[str], every: int, earlier: frozenset[str] = frozenset(), sketch: bool = True
    ) -> TrainingContext:
        """The context of the observers of the parameters in `held`: one optimizer's share of the model.

        A law belongs to the first optimizer that holds a parameter of it, so none that `earlier` ones hold is here.
        Wide matrix laws are evaluated through a `sketch`, if that is wanted.
        """
        weights, laws = self.weights(), self.laws
        own = None if laws is None else _own(laws, held, earlier, self.unfit)
        return TrainingContext(
            initial=self.group.gathered(weights),
            matrices=tuple(Unfolding(name) for name, weight in weights.items() if name in held and weight.ndim > 1),
            consecutive=None if laws is None else _consecutive(laws, held) or None,
            laws=own,
            plan=None if own is None else self._plan(own, weights, sketch),
            probe=None if laws is None else _Prober(self),
            window=float(SNAPSHOTS_TO_SETTLE * every),
            online=True,
            absent=self._absent(laws),
        )

    def _plan(self, laws: Laws, weights: dict[str, Tensor], sketch: bool) -> LawPlan:
        plan = LawPlan(laws, DIRECTIONS if sketch else None)
        return replace(plan, processes=self.group) if any_sharded(weights) else plan

    def _absent(self, laws: Laws | None) -> dict[str, str]:
        """By the name of a part of the context, why it is not there."""
        reason = self._read if isinstance(self._read, str) else "no optimizer"
        absent = dict.fromkeys(("laws", "plan", "probe", "consecutive"), reason)
        if laws is not None:
            absent["consecutive"] = "no layer reads another with only activations, dropout or pooling between them"
        return absent | {"kinks": "no data: pass Activity(X)", "examples": "no data: pass Margin((X, y))"}


def _splits(member: Member, shape: torch.Size) -> bool:
    """Whether a member of a law is anything else than all rows, or columns, each by itself or all together."""
    return member.view != tuple(shape) or not member.covers or member.index.numel() != max(member.index.shape)


def _own(laws: Laws, held: frozenset[str], earlier: frozenset[str], unfit: frozenset[str]) -> Laws:
    """The laws in which a parameter of `held` takes part, and none of `earlier`, that are not `unfit`."""
    fit = [law for law in laws if law.name not in unfit]
    own = [law for law in fit if not held.isdisjoint(law.parameters) and earlier.isdisjoint(law.parameters)]
    return Laws(tuple(own), laws.coverage, laws.captured, laws.dropped, laws.options)


def _consecutive(laws: Laws, held: frozenset[str]) -> tuple[tuple[Unfolding, Unfolding], ...]:
    """Pairs of a layer in `held` and the next one, which reads it."""
    assert laws.captured is not None
    found = successions(laws.captured)
    return tuple(
        (Unfolding(lower, bias), Unfolding(upper, reads=True)) for lower, bias, upper in found if lower in held
    )


def read_laws(model: nn.Module, inputs: Inputs) -> Laws:
    """The laws of a model, read from a copy."""
    return invariances(shell(model), inputs)


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Leave the global generators of torch, NumPy and Python as they were, though random numbers are drawn inside."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global one is meant)
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _called(model: nn.Module) -> str:
    return f"{type(model).__name__}, called as a whole,"


def _differences(before: Mapping[str, ModelPart], now: Mapping[str, ModelPart], modes: bool) -> str:
    """The changes that a user made to a model, by the names of its parts; `modes`: also of modules to another mode."""
    both = [name for name in now if name in before]
    replaced = [name for name in both if not now[name].is_same(before[name])]
    modules = [name for name in replaced if not now[name].is_parameter]
    inside = lambda name: any(name.startswith(f"{each}.") or not each for each in modules)  # noqa: E731
    frozen = [name for name in both if before[name].trained and not now[name].trained and name not in replaced]
    unfrozen = [name for name in both if now[name].trained and not before[name].trained and name not in replaced]
    switched = {name for name in both if modes and not now[name].is_parameter and now[name].shape != before[name].shape}
    outermost = [name for name in both if name in switched and (not name or name.rpartition(".")[0] not in switched)]
    changes = {
        "replaced": [name or "the model" for name in replaced if not inside(name)],
        "added": [name for name in now if name not in before and not inside(name)],
        "removed": [name for name in before if name not in now and not inside(name)],
        "frozen": frozen,
        "trained from now on": unfrozen,
        "switched between training and evaluation mode": [name or "the model" for name in outermost],
    }
    return "; ".join(f"{some(names)} {verb}" for verb, names in changes.items() if names)


def some(names: Sequence[str]) -> str:
    """Up to three names, or the first, the last and their number."""
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, …, {names[-1]} ({len(names)})"


@dataclass(frozen=True)
class _Prober:
    """The model in evaluation mode on examples of one's own: its graph is read once for each shape of them."""

    context: ModelContext
    _graphs: dict[torch.Size, Captured] = field(default_factory=dict)

    def __call__(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Probe:
        captured = self._graphs.get(inputs.shape)
        if captured is None:
            captured = self._graphs[inputs.shape] = capture(shell(self.context.model).eval(), hollow(inputs))
        places = _places(captured)
        nodes = [node for node in captured.graph.nodes if node.name in places]
        known = {**own_buffers(self.context.model), **self.context.group.gathered(parameters)}
        with torch.set_grad_enabled(inputs.requires_grad):
            seen = activations(captured, nodes, known, inputs.to(next(iter(known.values())).device))
        output = seen.output if isinstance(seen.output, Tensor) else seen.output[0]
        axes = {node: channel_axis(node.all_input_nodes[0]) for node in nodes}
        by_place = {places[node.name]: z.movedim(axes[node], -1) for node, z in seen.entering.items()}
        return Probe(output, by_place, seen.features)


def _places(captured: Captured) -> dict[str, str]:
    """The node of each kink -> the layer whose activation it is, or the node that it reads."""
    nodes = {node.name: node for node in captured.graph.nodes}
    found = {}
    for name in kink_names(captured):
        source = nodes[name].args[0]
        assert isinstance(source, fx.Node)
        weight = source.args[1] if len(source.args) > 1 else None
        known = captured.parameters if isinstance(weight, fx.Node) else {}
        found[name] = known.get(str(weight), source.name)
    return found
