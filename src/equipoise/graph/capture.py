"""A model as one flat graph of operations on its parameters, buffers and inputs, read by `torch.export`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from equipoise.graph.export import passes
from equipoise.graph.export.passes import placeholders
from equipoise.graph.export.program import (
    Arguments,
    Decompositions,
    Inputs,
    Keywords,
    arguments,
    exported,
    materialised,
    without_cache,
)

Intercept: TypeAlias = Callable[[fx.Node, Arguments], object]
_NONE: Decompositions = {}


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
        """The value of every node in another reading of the graph.

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


def fetched(node: fx.Node, values: Mapping[fx.Node, object]) -> tuple[Arguments, Keywords]:
    """The arguments of a node, the values of other nodes in their places."""
    fetch = lambda argument: values[argument]  # noqa: E731
    return tuple(map_arg(node.args, fetch)), dict(map_arg(node.kwargs, fetch))  # pyright: ignore[reportArgumentType]


class _Interpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, intercept: Intercept | None):
        super().__init__(module)
        self.intercept = intercept

    def run_node(self, n: fx.Node) -> object:
        if self.intercept is not None and n.op == "call_function":
            value = self.intercept(n, self.fetch_args_kwargs_from_env(n)[0])
            if value is not NotImplemented:
                return value
        if n.target is torch.ops.aten.copy.default:
            return copied(*self.fetch_args_kwargs_from_env(n)[0])
        return super().run_node(n)


def copied(target: Tensor, source: Tensor, *_: object) -> Tensor:
    """`aten.copy`, which has no derivative of its own."""
    return source.to(target.dtype).expand_as(target)


def capture(model: nn.Module, example_inputs: Inputs, decompositions: Decompositions = _NONE) -> Captured:
    """Read the computation of `model` on `example_inputs`: a tensor, a sequence of arguments, or a mapping of keywords.

    The first dimension is left dynamic where the model allows it. Operations that are `decompositions` are read as what
    these functions do. Works in the dtype and on the device of the model, `meta` included (inputs then stay on the
    CPU), and changes neither model nor inputs. Raises `CaptureError` with the reason when export refuses.

    >>> captured = capture(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.ones(4, 3))
    >>> [str(node.target) for node in captured.graph.nodes if node.op == "call_function"]
    ['aten.linear.default', 'aten.relu.default']
    >>> captured.parameters
    {'p_0_weight': '0.weight', 'p_0_bias': '0.bias'}
    """
    args, kwargs = without_cache(model, *arguments(example_inputs))
    found = exported(materialised(model), args, kwargs, decompositions)
    program, signature, graph = found.program, found.program.graph_signature, found.program.graph
    passes.inline_regions(program.graph_module)
    passes.strip_guards(graph)
    passes.relax_views(graph)
    passes.give_statistics(graph)
    names = passes.canonical_names(model)
    parameters = passes.targets(signature, InputKind.PARAMETER)
    parameters = passes.merge_tied(graph, {placeholder: names[name] for placeholder, name in parameters.items()})
    passes.drop_mutations(graph, signature)
    passes.drop_plain_arguments(graph)
    graph.lint()
    module = fx.GraphModule(program.graph_module, graph)
    return Captured(
        module=module,
        parameters=parameters,
        buffers=passes.targets(signature, InputKind.BUFFER),
        constants=passes.constants(
            program, {name for name, buffer in model.named_buffers(remove_duplicate=False) if buffer.is_meta}
        ),
        inputs=tuple(passes.input_names(graph, signature)),
        examples=tuple(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)),
        aliases={name: canonical for name, canonical in names.items() if name != canonical},
        mutates_buffers=found.updates_buffers,
        casts=found.casts,
    )
