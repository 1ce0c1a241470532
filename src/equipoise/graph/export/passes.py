"""Passes over an exported graph: regions inlined, guards stripped, ties joined, updates of buffers dropped."""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind
from torch.utils import _pytree as pytree

_HALF = frozenset({torch.float16, torch.bfloat16})
_GUARDS = frozenset({"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size"})


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    """The placeholders of a graph, in order."""
    return list(graph.find_nodes(op="placeholder"))


def inline_regions(module: fx.GraphModule) -> None:
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
    inline_regions(body)
    known: Any = dict(zip(placeholders(body.graph), node.args[index + 1 :], strict=True))
    with module.graph.inserting_before(node):
        results: Any = module.graph.graph_copy(body.graph, known)
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(node)


def widen_autocast(module: fx.GraphModule) -> None:
    """Cast to float32 where a model casts to half precision under autocast, as to the dtype of another value there.

    Without autocast, that value is in float32, and no product takes two dtypes.
    """
    for body in [part for part in module.modules() if isinstance(part, fx.GraphModule)]:
        for region in body.graph.nodes:
            if str(region.target) == "wrap_with_autocast":
                (own,) = (str(each.target) for each in region.all_input_nodes if each.op == "get_attr")
                _widen(getattr(body, own))


def _widen(body: fx.GraphModule) -> None:
    wide = lambda leaf: torch.float32 if leaf in _HALF else leaf  # noqa: E731
    for inner in [part for part in body.modules() if isinstance(part, fx.GraphModule)]:
        for node in inner.graph.nodes:
            if not guards(node):
                node.args, node.kwargs = (pytree.tree_map_only(torch.dtype, wide, x) for x in (node.args, node.kwargs))
        inner.recompile()


def cut_off(module: fx.GraphModule) -> None:
    """Mark values computed under `no_grad` as constants of the backward pass; decompositions forget that."""
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


def strip_guards(graph: fx.Graph) -> None:
    """Remove assertions, and what only they read."""
    for node in reversed(list(graph.nodes)):
        if not node.users and guards(node):
            graph.erase_node(node)
    graph.eliminate_dead_code()


def guards(node: fx.Node) -> bool:
    """Whether a node is an assertion."""
    return getattr(node.target, "__name__", "").split(".")[0] in _GUARDS


def give_statistics(graph: fx.Graph) -> None:
    """A batch norm without running statistics as one that has them: either takes those of its batch."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten._native_batch_norm_legit.no_stats):
        x, gain, bias, *rest = node.args
        value: Any = x.meta["val"]
        fills = (torch.ops.aten.zeros.default, torch.ops.aten.ones.default)
        with graph.inserting_before(node):
            mean, var = (graph.call_function(fill, ([value.shape[1]],), {"dtype": value.dtype}) for fill in fills)
        node.target = torch.ops.aten._native_batch_norm_legit_functional.default
        node.args = (x, gain, bias, mean, var, *rest)


def relax_views(graph: fx.Graph) -> None:
    """`reshape` for `view`: another kernel or transform may lay out its result in another way."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter -> the first name of the same storage."""
    first: dict[object, str] = {}
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key = id(parameter) if parameter.is_meta else (parameter.data_ptr(), parameter.shape, parameter.stride())
        key = key if parameter.numel() else id(parameter)
        names[name] = first.setdefault(key, name)
    return names


def merge_tied(graph: fx.Graph, names: dict[str, str]) -> dict[str, str]:
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


def drop_mutations(graph: fx.Graph, signature: ExportGraphSignature) -> None:
    """Keep of the outputs only what the model returns."""
    output = graph.output_node()
    values: Any = output.args[0]
    kinds = [spec.kind for spec in signature.output_specs]
    output.args = (tuple(value for value, kind in zip(values, kinds, strict=True) if kind is OutputKind.USER_OUTPUT),)
    graph.eliminate_dead_code()


def drop_plain_arguments(graph: fx.Graph) -> None:
    """Arguments that are not tensors are already written into the graph."""
    for node in placeholders(graph):
        if not isinstance(node.meta.get("val"), Tensor):
            graph.erase_node(node)


def targets(signature: ExportGraphSignature, kind: InputKind) -> dict[str, str]:
    """The names of the tensors behind the placeholders of one kind."""
    return {spec.arg.name: str(spec.target) for spec in signature.input_specs if spec.kind is kind}


def constants(program: torch.export.ExportedProgram, unknown: Collection[str]) -> dict[str, Tensor]:
    """Buffers and constants by their placeholder; the values of those `unknown` are on the meta device."""
    stored = {**dict(program.named_buffers()), **program.constants}
    kinds = (InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    return {
        spec.arg.name: stored[spec.target].to("meta") if spec.target in unknown else stored[spec.target]
        for spec in program.graph_signature.input_specs
        if spec.kind in kinds and spec.target in stored
    }


def input_names(graph: fx.Graph, signature: ExportGraphSignature) -> Iterator[str]:
    """The placeholders of the inputs of the model, in order."""
    kinds = {spec.arg.name: spec.kind for spec in signature.input_specs}
    for node in placeholders(graph):
        if kinds[node.name] is InputKind.USER_INPUT:
            yield node.name
