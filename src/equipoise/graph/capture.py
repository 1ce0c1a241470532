"""A model as one flat graph of operations on its parameters, buffers and inputs, read by `torch.export`."""

import copy
import inspect
import io
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from equipoise.errors import CaptureError, InputError, one_line

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
Intercept = Callable[[fx.Node, tuple[Any, ...]], Any]
Decompositions = Mapping[Any, Callable[..., Any]]  # by the overload of an operation

_NONE: Decompositions = {}
_GUARDS = frozenset({"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size"})


@dataclass(frozen=True)
class Captured:
    """The computation of a model: a functional `torch.fx` graph whose placeholders are parameters, buffers and inputs.

    Nothing is updated in place; tied parameters have one placeholder and one canonical name (the first under which
    the model lists them); guards are stripped. The batch dimension stays free where the model allows it.
    """

    module: fx.GraphModule
    parameters: dict[str, str]  # placeholder -> canonical parameter name, in order of first use
    buffers: dict[str, str]  # placeholder -> buffer name
    constants: dict[str, Tensor]  # placeholder -> value, for buffers and for tensors the model closes over
    inputs: tuple[str, ...]  # placeholders of the tensor inputs, in order
    examples: tuple[Tensor, ...]  # the inputs the model was captured with
    aliases: dict[str, str]  # every other name of a tied parameter -> its canonical name
    mutates_buffers: bool  # running the model updates its buffers (BatchNorm in training)
    casts: frozenset[torch.dtype] = frozenset()  # floating dtypes that the code asks for, even where nothing changes

    @property
    def graph(self) -> fx.Graph:
        """The operations in execution order."""
        return self.module.graph

    @property
    def output(self) -> tuple[fx.Node, ...]:
        """The nodes that the model returns, flattened; updates of buffers are not among them."""
        return tuple(node for node in pytree.tree_leaves(self.graph.output_node().args[0]) if isinstance(node, fx.Node))

    def run(self, parameters: Mapping[str, Tensor], *inputs: Tensor, intercept: Intercept | None = None) -> Any:
        """The model's output at `parameters` (canonical name -> tensor); one tensor, or a tuple if it returns several.

        `intercept(node, args)` may give the value of an operation in its place, or `NotImplemented`. A buffer of the
        same name in `parameters` takes precedence over the captured one.

        >>> captured = capture(nn.Linear(2, 1, bias=False), torch.ones(3, 2))
        >>> captured.run({"weight": torch.ones(1, 2)}, torch.ones(5, 2)).shape
        torch.Size([5, 1])
        """
        known = dict(zip(self.inputs, inputs, strict=True))
        known |= {placeholder: parameters[name] for placeholder, name in self.parameters.items()}
        known |= {
            placeholder: parameters.get(self.buffers.get(placeholder, ""), value)
            for placeholder, value in self.constants.items()
        }
        values = _Interpreter(self.module, intercept).run(*(known[node.name] for node in placeholders(self.graph)))
        outputs = tuple(value for value in values if isinstance(value, Tensor))
        return outputs[0] if len(outputs) == 1 else outputs

    def read(self, placeholder: Callable[[fx.Node], Any], call: Callable[..., Any]) -> dict[fx.Node, Any]:
        """What every node stands for in another reading of the graph.

        That of a placeholder is `placeholder(node)`, of an operation `call(node, args, kwargs)` from what it reads.

        >>> captured = capture(nn.Sequential(nn.Linear(2, 1), nn.ReLU()), torch.ones(3, 2))
        >>> depth = captured.read(lambda node: 0, lambda node, args, kwargs: 1 + max(args))
        >>> [depth[node] for node in captured.output]
        [2]
        """
        values: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                values[node] = placeholder(node)
            elif node.op == "call_function":
                values[node] = call(node, *fetched(node, values))
        return values


def fetched(node: fx.Node, values: Mapping[fx.Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a node, the values of other nodes in their places."""
    fetch = lambda argument: values[argument]  # noqa: E731
    return tuple(map_arg(node.args, fetch)), dict(map_arg(node.kwargs, fetch))  # pyright: ignore[reportArgumentType]


class _Interpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, intercept: Intercept | None):
        super().__init__(module)
        self.intercept = intercept

    def run_node(self, n: fx.Node) -> Any:
        if self.intercept is not None and n.op == "call_function":
            value = self.intercept(n, self.fetch_args_kwargs_from_env(n)[0])
            if value is not NotImplemented:
                return value
        if n.target is torch.ops.aten.copy.default:
            return copied(*self.fetch_args_kwargs_from_env(n)[0])
        return super().run_node(n)


def copied(target: Tensor, source: Tensor, *_: Any) -> Tensor:
    """`aten.copy`, which has no derivative of its own."""
    return source.to(target.dtype).expand_as(target)


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    """The placeholders of a graph, in order."""
    return list(graph.find_nodes(op="placeholder"))


def capture(model: nn.Module, example_inputs: Inputs, in_other_words: Decompositions = _NONE) -> Captured:
    """Read the computation of `model` on `example_inputs`: a tensor, a sequence of arguments, or a mapping of keywords.

    The first dimension is left dynamic where the model allows it. Operations that are `in_other_words` are read as what
    these functions do. Works in the dtype and on the device of the model, `meta` included (inputs then stay on the
    CPU), and changes neither model nor inputs. Raises `CaptureError` with the reason when export refuses.

    >>> captured = capture(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.ones(4, 3))
    >>> [str(node.target) for node in captured.graph.nodes if node.op == "call_function"]
    ['aten.linear.default', 'aten.relu.default']
    >>> captured.parameters
    {'p_0_weight': '0.weight', 'p_0_bias': '0.bias'}
    """
    args, kwargs = _without_cache(model, *_arguments(example_inputs))
    program, casts = _export(_materialised(model), args, kwargs, in_other_words)
    signature, graph = program.graph_signature, program.graph
    _inline_regions(program.graph_module)
    _strip_guards(graph)
    _relax_views(graph)
    _give_statistics(graph)
    names = _canonical_names(model)
    parameters = _targets(signature, InputKind.PARAMETER)
    parameters = _merge_tied(graph, {placeholder: names[name] for placeholder, name in parameters.items()})
    mutates = _drop_mutations(graph, signature)
    _drop_plain_arguments(graph)
    graph.lint()
    module = fx.GraphModule(program.graph_module, graph)
    return Captured(
        module=module,
        parameters=parameters,
        buffers=_targets(signature, InputKind.BUFFER),
        constants=_constants(
            program, {name for name, buffer in model.named_buffers(remove_duplicate=False) if buffer.is_meta}
        ),
        inputs=tuple(_input_names(graph, signature)),
        examples=tuple(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)),
        aliases={name: canonical for name, canonical in names.items() if name != canonical},
        mutates_buffers=mutates,
        casts=casts,
    )


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments."""
    if not isinstance(example_inputs, (Tensor, Sequence, Mapping)) or _batch((example_inputs,), {}) == 0:
        raise InputError(
            expected="a tensor, a sequence of arguments or a mapping of keywords, of at least one example",
            found=f"shape {tuple(example_inputs.shape)}"
            if isinstance(example_inputs, Tensor)
            else repr(example_inputs),
            remedy="pass inputs that the model accepts, such as two examples of the data",
        )
    keywords = isinstance(example_inputs, Mapping)
    args = () if keywords else (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    filled = lambda leaf: torch.zeros(leaf.shape, dtype=leaf.dtype) if leaf.is_meta else leaf  # noqa: E731
    return pytree.tree_map_only(Tensor, filled, (args, dict(example_inputs) if keywords else {}))


def _without_cache(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for a model that does not return its keys and values: `use_cache=False` where it takes that."""
    parameters = inspect.signature(model.forward).parameters
    if "use_cache" not in parameters or "use_cache" in kwargs or list(parameters).index("use_cache") < len(args):
        return args, kwargs
    return (), {**dict(zip(parameters, args, strict=False)), **kwargs, "use_cache": False}


@contextmanager
def _caches_off(model: nn.Module) -> Iterator[None]:
    """The same for what the configurations of its parts ask for."""
    configurations: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    found = {id(each): each for each in configurations if getattr(each, "use_cache", None)}
    for configuration in found.values():
        configuration.use_cache = False
    try:
        yield
    finally:
        for configuration in found.values():
            configuration.use_cache = True


def _materialised(model: nn.Module) -> nn.Module:
    """A model on `meta` as one on the CPU whose weights take no memory: export mixes the two devices badly."""
    tensors = [*model.parameters(), *model.buffers()]
    if not any(tensor.is_meta for tensor in tensors):
        return model
    stand_in = {id(tensor): _hollow(tensor) for tensor in tensors if tensor.is_meta}
    return copy.deepcopy(model, memo=stand_in)


def _hollow(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(torch.zeros((), dtype=tensor.dtype).expand(tensor.shape), tensor.requires_grad)


Exported = tuple[torch.export.ExportedProgram, frozenset[torch.dtype]]  # and the dtypes that it casts to


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], in_other_words: Decompositions
) -> Exported:
    export, doubled = partial(_exported, model, in_other_words), _doubled(args, kwargs)
    try:
        with _quiet(), _caches_off(model):
            if doubled is not None:
                try:
                    return export(*doubled)
                except Exception:  # the model wants this batch and no other
                    pass
            return export(args, kwargs)
    except Exception as error:
        raise _refusal(model, args, kwargs, error) from error


def _refusal(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> CaptureError:
    """Why a model cannot be read, and what helps: it raises by itself, or decides by values, or else."""
    if (own := _raised(model, args, kwargs)) is not None:
        return CaptureError(
            expected="inputs that the model accepts",
            found=f"{one_line(own)}, raised by the model itself{_place(own)}",
            remedy="pass example inputs with which model(...) runs",
        )
    text = f"{type(error).__name__} {error}"
    if "data-dependent" in text or "DataDependent" in text or "unbacked" in text.lower():
        parts = any("expert" in name for name, _ in model.named_modules())
        experts = parts and hasattr(model, "set_experts_implementation")
        return CaptureError(
            expected="a model whose operations do not depend on the values of tensors",
            found=f"{type(error).__name__}: a decision by such a value{_place(error)}",
            remedy=(
                "call model.set_experts_implementation('batched_mm') first" if experts else "write it as torch.where"
            )
            + ", or state interfaces= by hand",
        )
    if "Cache" in text:
        return CaptureError(
            expected="a model that returns tensors",
            found=f"{one_line(error)[:120]}",
            remedy="pass use_cache=False among the inputs, or set model.config.use_cache = False",
        )
    return CaptureError(
        expected="a model that torch.export can read",
        found=one_line(error) + _place(error),
        remedy="remove what depends on the values of tensors, or state interfaces= by hand",
    )


def _raised(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception | None:
    """What a copy of the model raises on these inputs without any export."""
    if any(parameter.is_meta or parameter.stride() == (0,) * parameter.ndim != () for parameter in model.parameters()):
        return None
    try:
        twin = copy.deepcopy(model)
    except Exception:
        return None
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            twin(*args, **kwargs)
    except Exception as error:
        return error
    return None


def _place(error: Exception) -> str:
    """Where in the model an exception arose: the last line that belongs neither to torch nor to us."""
    ours = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith((*ours, "<"))
    ]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _exported(
    model: nn.Module, in_other_words: Decompositions, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Exported:
    """Without dynamo, which reads fewer models; with it where that leaves the batch fixed, as `len(x)` does."""
    shapes = _dynamic_shapes(model, args, kwargs)
    export = partial(torch.export.export, model, args, kwargs, dynamic_shapes=shapes)
    program = export(strict=False)
    if shapes is not None and _fixed(program, _batch(args, kwargs)):
        with suppress(Exception):  # the model wants this batch and no other
            program = export(strict=True)
    _cut_off(program.graph_module)
    return _decomposed(program, in_other_words), _casts(program.graph_module)


def _decomposed(program: torch.export.ExportedProgram, in_other_words: Decompositions) -> torch.export.ExportedProgram:
    """What torch cannot take apart under autocast, such as einsum, is read as what it is without.

    What strict export knows of its inputs is forgotten: checks of it mix up keywords, and are no part of the model.
    """
    program._guards_code = []
    try:
        return program.run_decompositions(dict(in_other_words))
    except Exception:
        module = program.graph_module
        if not any(str(node.target) == "wrap_with_autocast" for node in module.graph.nodes):
            raise
        _inline_regions(module)
        _strip_guards(module.graph)
        module.recompile()
        return program.run_decompositions(dict(in_other_words))


def _casts(module: fx.GraphModule) -> frozenset[torch.dtype]:
    """The floating dtypes among the arguments of operations, of regions too."""
    bodies = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    arguments = [pytree.tree_leaves((n.args, n.kwargs)) for body in bodies for n in body.graph.nodes if not _guards(n)]
    leaves = (leaf for leaves in arguments for leaf in leaves)
    return frozenset(leaf for leaf in leaves if isinstance(leaf, torch.dtype) and leaf.is_floating_point)


def _fixed(program: torch.export.ExportedProgram, batch: int | None) -> bool:
    """Whether an input has this very batch: a free one is a symbol."""
    own = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in placeholders(program.graph) if node.name in own]
    return any(isinstance(value, Tensor) and value.ndim > 0 and str(value.shape[0]) == str(batch) for value in values)


def _batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    sizes = [leaf.shape[0] for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
    return sizes[0] if sizes else None


def _doubled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A batch of one, doubled: export takes a size of one for a constant."""
    if _batch(args, kwargs) != 1:
        return None
    double = lambda leaf: torch.cat([leaf, leaf]) if leaf.ndim and leaf.shape[0] == 1 else leaf  # noqa: E731
    return pytree.tree_map_only(Tensor, double, (args, kwargs))


def _dynamic_shapes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The batch, left free; export (torch 2.13) cannot do that where something goes into a `**kwargs`."""
    signature = inspect.signature(model.forward)
    if not kwargs.keys() <= signature.parameters.keys():
        return None
    batch = _batch(args, kwargs)

    def dims(leaf: Any) -> dict[int, Any] | None:
        shares = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == batch
        return {0: torch.export.Dim.AUTO} if shares else None

    return pytree.tree_map(dims, dict(signature.bind(*args, **kwargs).arguments))  # what goes into `*args` is a tuple


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch logs, warns of and prints while it traces: a refusal is raised in one line."""
    names = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
    disabled = {logger: logger.disabled for logger in map(logging.getLogger, names)}
    for logger in disabled:
        logger.disabled = True
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # where warnings are errors, none of tracing may end it
        try:
            yield
        finally:
            for logger, before in disabled.items():
                logger.disabled = before


def _inline_regions(module: fx.GraphModule) -> None:
    """Replace `no_grad` and `autocast` regions by their bodies."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and str(node.target).startswith("wrap_with_"):
            _inline(module, node)
    module.graph.eliminate_dead_code()


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    index, target = next(
        (position, str(argument.target))
        for position, argument in enumerate(node.args)
        if isinstance(argument, fx.Node) and argument.op == "get_attr"
    )
    body: Any = getattr(module, target)
    _inline_regions(body)
    known: Any = dict(zip(placeholders(body.graph), node.args[index + 1 :], strict=True))
    with module.graph.inserting_before(node):
        results: Any = module.graph.graph_copy(body.graph, known)
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(node)


def _cut_off(module: fx.GraphModule) -> None:
    """What `no_grad` computes is a constant of the backward pass; decompositions forget that."""
    for body in [part for part in module.modules() if isinstance(part, fx.GraphModule)]:
        for node in [node for node in body.graph.nodes if "set_grad_enabled" in str(node.target)]:
            if node.args[0] is False and _reads_parameters(node):
                for result in list(node.users):
                    with body.graph.inserting_after(result):
                        cut = body.graph.call_function(torch.ops.aten.detach.default, (result,))
                    cut.meta = dict(result.meta)
                    result.replace_all_uses_with(cut, delete_user_cb=lambda user, cut=cut: user is not cut)
        body.recompile()


def _reads_parameters(node: fx.Node) -> bool:
    queue, seen = [node], {node}
    while queue:
        fresh = [source for source in queue.pop().all_input_nodes if source not in seen]
        queue += fresh
        seen.update(fresh)
    return any(node.op == "placeholder" and not node.name.startswith(_NEVER_TRAINED) for node in seen)


_NEVER_TRAINED = ("b_", "c_")  # how export names the placeholders of buffers and constants


def _strip_guards(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if not node.users and _guards(node):
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _guards(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "").split(".")[0] in _GUARDS


def _give_statistics(graph: fx.Graph) -> None:
    """A batch norm without running statistics as one that has them: either takes those of its batch."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten._native_batch_norm_legit.no_stats):
        x, gain, bias, *rest = node.args
        value: Any = x.meta["val"]
        fills = (torch.ops.aten.zeros.default, torch.ops.aten.ones.default)
        with graph.inserting_before(node):
            mean, var = (graph.call_function(fill, ([value.shape[1]],), {"dtype": value.dtype}) for fill in fills)
        node.target = torch.ops.aten._native_batch_norm_legit_functional.default
        node.args = (x, gain, bias, mean, var, *rest)


def _relax_views(graph: fx.Graph) -> None:
    """`reshape` for `view`: another kernel or transform may lay out its result in another way."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter -> the first name of the same storage."""
    first: dict[Any, str] = {}
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key = id(parameter) if parameter.is_meta else (parameter.data_ptr(), parameter.shape, parameter.stride())
        key = key if parameter.numel() else id(parameter)
        names[name] = first.setdefault(key, name)
    return names


def _merge_tied(graph: fx.Graph, names: dict[str, str]) -> dict[str, str]:
    """Give every tied parameter the one placeholder that comes first; returns placeholder -> name by order of use."""
    keeper: dict[str, fx.Node] = {}
    for node in placeholders(graph):
        if (name := names.get(node.name)) is None:
            continue
        if name not in keeper:
            keeper[name] = node
        else:
            node.replace_all_uses_with(keeper[name])
            graph.erase_node(node)
    order = {node: position for position, node in enumerate(graph.nodes)}
    used = sorted(keeper.items(), key=lambda item: min((order[user] for user in item[1].users), default=len(order)))
    return {node.name: name for name, node in used}


def _drop_mutations(graph: fx.Graph, signature: ExportGraphSignature) -> bool:
    """Keep of the outputs only what the model returns; says whether there were updates of buffers."""
    output = graph.output_node()
    values: Any = output.args[0]
    kinds = [spec.kind for spec in signature.output_specs]
    output.args = (tuple(value for value, kind in zip(values, kinds, strict=True) if kind is OutputKind.USER_OUTPUT),)
    graph.eliminate_dead_code()
    return OutputKind.BUFFER_MUTATION in kinds


def _drop_plain_arguments(graph: fx.Graph) -> None:
    """Arguments that are not tensors are already written into the graph."""
    for node in placeholders(graph):
        if not isinstance(node.meta.get("val"), Tensor):
            graph.erase_node(node)


def _targets(signature: ExportGraphSignature, kind: InputKind) -> dict[str, str]:
    return {spec.arg.name: str(spec.target) for spec in signature.input_specs if spec.kind is kind}


def _constants(program: torch.export.ExportedProgram, unknown: Collection[str]) -> dict[str, Tensor]:
    """Buffers and constants by their placeholder; the values of those `unknown` are on the meta device."""
    stored = {**dict(program.named_buffers()), **program.constants}
    kinds = (InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    return {
        spec.arg.name: stored[spec.target].to("meta") if spec.target in unknown else stored[spec.target]
        for spec in program.graph_signature.input_specs
        if spec.kind in kinds and spec.target in stored
    }


def _input_names(graph: fx.Graph, signature: ExportGraphSignature) -> Iterator[str]:
    kinds = {spec.arg.name: spec.kind for spec in signature.input_specs}
    for node in placeholders(graph):
        if kinds[node.name] is InputKind.USER_INPUT:
            yield node.name
