"""Directions that no reader sees: a softmax ignores a common shift of its scores, a LayerNorm the mean of its input.

The walk goes backwards. For every tensor it keeps *shift groups*: a label for each element, `SEEN` for elements that
may not be moved. Adding any constant to all elements of one group changes no output. A parameter that only writes into
such groups has a law that is linear in the weights: its sum over a group is constant (docs/theory.md, T1).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from equipoise.graph.interface import Member
from equipoise.graph.labels.shift_groups import (
    LARGEST,
    SEEN,
    Groups,
    Rows,
    along,
    chosen,
    common,
    contracted,
    dense,
    factor,
    pull,
)
from equipoise.graph.labels.signal import Signal
from equipoise.graph.operations import LINEAR, MOVING
from equipoise.graph.ops.movement import COPYING, DROPPING, KEEPING
from equipoise.graph.ops.pointwise import SHAPE_ONLY
from equipoise.graph.precision import narrow_nodes, narrowest
from equipoise.graph.propagate import SymmetryPropagation, operation_name

Sources = Iterator[tuple[fx.Node, Groups | Rows | None]]


def find_shifts(walk: SymmetryPropagation, *, softmax: bool = False) -> list[Member]:
    """Members of shift laws: `index` holds one row of positions for each group.

    `softmax` says that the loss takes the softmax of the output over its last axis.

    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False))
    >>> [(m.parameter, m.index.shape) for m in find_shifts(SymmetryPropagation(capture(model, torch.ones(2, 3))))]
    [('0.weight', torch.Size([1, 1, 4])), ('0.bias', torch.Size([1, 1, 4]))]
    """
    seen: dict[fx.Node, dict[fx.Node, Groups | Rows | None]] = {}
    outputs = walk.captured.output
    if softmax:
        for node in outputs:
            seen.setdefault(node, {})[walk.captured.graph.output_node()] = along(_shape(walk, node), [-1])
    found: dict[str, list[Member]] = {}
    narrow = narrow_nodes(walk.captured.graph, walk.captured.parameters)
    below: dict[fx.Node, torch.dtype | None] = {}  # the narrowest dtype from a node down to what ignores its shift
    for node in reversed(walk.captured.graph.nodes):
        name, shape = walk.captured.parameters.get(node.name), _shape(walk, node)
        uses = [seen.get(node, {}).get(reader) for reader in _readers(node, walk)]
        below[node] = narrowest(narrow.get(node), *(below.get(reader) for reader in seen.get(node, ())))
        if name is not None and name not in walk.frozen and uses:
            members = _members(name, shape, common(uses, shape))
            found[name] = [replace(member, precision=below[node]) for member in members]
        elif node.op == "call_function" and operation_name(node.target) not in _SPLITTING:
            _note(node, walk, uses)
            for source, groups in _sources(node, walk, common(uses, shape)):
                seen.setdefault(source, {})[node] = groups if _reads(node, source) <= 1 else None
    return [member for name in walk.captured.parameters.values() for member in found.get(name, ())]


def _note(node: fx.Node, walk: SymmetryPropagation, uses: Sequence[Groups | Rows | None]) -> None:
    """Shifts that most readers ignore and a linear map could take back; and those that stop at a linear operation."""
    readers, name = list(_readers(node, walk)), operation_name(node.target)
    ignored = [use is not None for use in uses]
    seeing = [reader for reader, own in zip(readers, ignored, strict=False) if not own]
    writes = name in _PRODUCTS or name.startswith(("conv", "embedding"))
    if writes and any(ignored) and seeing and all(_compensates(node, reader, walk) for reader in seeing):
        walk.unshifted.add(node.name)
    if (
        uses
        and all(ignored)
        and name in LINEAR | MOVING
        and name not in _FOLLOWED
        and _touched(common(uses, _shape(walk, node)))
    ):
        walk.unshifted.add(node.name)


def _touched(groups: Groups | Rows | None) -> bool:
    labels = groups.labels if isinstance(groups, Rows) else groups
    return labels is not None and bool((labels >= 0).any())


def _compensates(node: fx.Node, reader: fx.Node, walk: SymmetryPropagation) -> bool:
    """Whether a reader is a linear map by a trained weight, which could undo what is done to what it reads."""
    if operation_name(reader.target) in (*_ORDERED, *_TURNING):
        readers = list(_readers(reader, walk))
        return bool(readers) and all(_compensates(reader, each, walk) for each in readers)
    linear = operation_name(reader.target) in _PRODUCTS or operation_name(reader.target).startswith("conv")
    others: list[Signal] = [walk.signals[each] for each in reader.all_input_nodes if each is not node]
    return linear and any(isinstance(each, Signal) and each.weights and each.roles for each in others)


def _readers(node: fx.Node, walk: SymmetryPropagation) -> Iterator[fx.Node]:
    """The nodes that read a value and pass a gradient on; of an operation with several results, each of these."""
    for user in node.users:
        name = operation_name(user.target)
        if name in _SPLITTING:
            yield from user.users
        elif name not in SHAPE_ONLY and (name != "detach" or walk.through_detach):
            yield user


def _reads(node: fx.Node, source: fx.Node) -> int:
    """How many arguments of a node another one is."""
    found: list[fx.Node] = []
    map_arg((node.args, node.kwargs), lambda argument: found.append(argument))  # pyright: ignore[reportArgumentType]
    return found.count(source)


def _shape(walk: SymmetryPropagation, node: fx.Node) -> tuple[int, ...]:
    """The shape of a value, or of the first of several."""
    signal = walk.signals[node]
    signal = signal[0] if isinstance(signal, (tuple, list)) and signal else signal
    return signal.shape if isinstance(signal, Signal) else ()


def _members(name: str, shape: tuple[int, ...], groups: Groups | Rows | None) -> Iterable[Member]:
    if isinstance(groups, Rows):
        rows = groups.on(shape) or groups
        yield from (Member(name, rows.view, rows.axes, index, 1.0) for index in _indices(rows.labels.reshape(-1)))
    elif groups is not None:
        axes = tuple(range(len(shape)))
        yield from (Member(name, shape, axes, index, 1.0) for index in _indices(groups.reshape(-1)))


def _indices(labels: Tensor) -> Iterable[Tensor]:
    """Groups of equal size together: `(groups, 1, size)` positions."""
    moving = torch.nonzero(labels >= 0)[:, 0]
    _, inverse, counts = torch.unique(labels[moving], return_inverse=True, return_counts=True)
    size_of = counts[inverse]
    for size in torch.unique(counts).tolist():
        mine = size_of == size
        order = torch.argsort(inverse[mine], stable=True)
        yield moving[mine][order].reshape(-1, 1, size)


# Operations ---------------------------------------------------------------------------------------------------------


def _sources(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows | None) -> Sources:
    """Groups of the inputs of an operation: what it ignores by itself, or what the readers of its output ignore."""
    name = operation_name(node.target)
    if groups is None and name in (*DROPPING, *_PICKING, "getitem"):
        groups = torch.full((), SEEN).expand(_shape(walk, node))  # what is read here is seen, what is left out is not
    ignored = list(_IGNORING[name](node, walk)) if name in _IGNORING else []
    yield from ignored
    if groups is not None:
        for names, through in _THROUGH:
            if name in names and (not ignored or through is _affine):
                try:
                    found = list(through(node, walk, groups))
                except (RuntimeError, ValueError, IndexError):  # an unknown form, or a batch that must not be BATCH
                    found = [(source, None) for source in node.all_input_nodes]
                yield from found


def _inputs(node: fx.Node, count: int = 2) -> Iterator[fx.Node]:
    return (argument for argument in node.args[:count] if isinstance(argument, fx.Node))


# What an operation ignores by itself ----------------------------------------------------------------------------------


def _centring(node: fx.Node, walk: SymmetryPropagation) -> Sources:
    """`x - mean(x)` or `x - max(x)`, written by hand: both nodes together ignore a shift."""
    centre = node if operation_name(node.target) in _CENTRES else _undetached(node.args[1])
    if not isinstance(centre, fx.Node) or operation_name(centre.target) not in _CENTRES or len(centre.args) < 3:
        return
    source, dims, keep = centre.args[:3]
    readers = [reader for user in centre.users for reader in _detached_readers(user, walk)]
    centred = [user for user in readers if operation_name(user.target) == "sub" and user.args[0] is source]
    if keep and len(centred) == len(readers):
        yield source, along(_shape(walk, source), dims)  # pyright: ignore[reportArgumentType, reportReturnType]


_CENTRES = ("mean", "amax", "amin")


def _undetached(node: Any) -> Any:
    is_detach = isinstance(node, fx.Node) and operation_name(node.target) == "detach"
    return node.args[0] if is_detach else node


def _detached_readers(node: fx.Node, walk: SymmetryPropagation) -> list[fx.Node]:
    """The readers of a `detach`, where the walk looks through it; any other node itself."""
    through = walk.through_detach and operation_name(node.target) == "detach"
    return list(node.users) if through else [node]


def _over(dims: Callable[[fx.Node, int], Any]) -> Callable[[fx.Node, SymmetryPropagation], Sources]:
    """Whatever ignores a common shift of the first argument over some axes of it, given as `dims(node, ndim)`."""

    def rule(node: fx.Node, walk: SymmetryPropagation) -> Sources:
        source = next(_inputs(node))
        shape = _shape(walk, source)
        axes = dims(node, len(shape))
        if axes is not None:
            yield source, along(shape, axes)

    return rule


def _reduced(node: fx.Node, ndim: int) -> Sequence[int]:
    """The axes of a variance; all, if none are named."""
    dims: Any = node.args[1] if len(node.args) > 1 else None
    if isinstance(dims, bool) or (not dims and dims != 0):
        return range(ndim)
    return [dims] if isinstance(dims, int) else dims


def _group_norm(node: fx.Node, walk: SymmetryPropagation) -> Sources:
    source, count = node.args[:2]
    shape = _shape(walk, source)  # pyright: ignore[reportArgumentType]
    parted = (shape[0], count, shape[1] // count, *shape[2:])  # pyright: ignore[reportOperatorIssue]
    yield source, along(parted, range(2, len(parted))).reshape(shape)  # pyright: ignore[reportArgumentType, reportReturnType]


def _attention(node: fx.Node, walk: SymmetryPropagation) -> Sources:
    """A shift of all keys alike shifts every score of a query alike; so does one of its row of the mask."""
    key, mask = node.args[1], node.args[3] if len(node.args) > 3 else None
    yield key, along(_shape(walk, key), [-2])  # pyright: ignore[reportArgumentType, reportReturnType]
    if isinstance(mask, fx.Node) and _shape(walk, mask)[-1] == _shape(walk, key)[-2]:  # pyright: ignore[reportArgumentType]
        yield mask, along(_shape(walk, mask), [-1])


def _own_statistics(node: fx.Node, axes: Sequence[int]) -> Sequence[int] | None:
    return axes if node.args[5] else None


_IGNORING: dict[str, Callable[[fx.Node, SymmetryPropagation], Sources]] = {
    **dict.fromkeys((*_CENTRES, "sub"), _centring),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), _over(lambda node, ndim: [node.args[1]])),
    **dict.fromkeys(("var", "std"), _over(_reduced)),
    "layer_norm": _over(lambda node, ndim: range(-len(node.args[1]), 0)),  # pyright: ignore[reportArgumentType]
    "native_layer_norm": _over(lambda node, ndim: range(-len(node.args[1]), 0)),  # pyright: ignore[reportArgumentType]
    "group_norm": _group_norm,
    "_native_batch_norm_legit_functional": _over(lambda node, ndim: _own_statistics(node, (0, *range(2, ndim)))),
    "instance_norm": _over(lambda node, ndim: _own_statistics(node, range(2, ndim))),
    "scaled_dot_product_attention": _attention,
    "cross_entropy_loss": _over(lambda node, ndim: [min(1, ndim - 1)]),
}


# What the readers of an operation's result ignore ---------------------------------------------------------------------


def _movement(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    """Element numbers, moved by the operation itself, say where every element comes from."""
    source = next(_inputs(node))
    name, shape = operation_name(node.target), _shape(walk, source)
    if name == "getitem":
        yield from _part(node, source, walk, groups)
    elif isinstance(groups, Rows) and (kept := _rows_moved(node, groups, shape, _shape(walk, node))) is not None:
        yield source, kept
    else:
        labels = dense(groups, _shape(walk, node))
        yield source, None if labels is None else pull(labels, _numbers(node, source, walk), shape)


def _part(node: fx.Node, source: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    """One of several results."""
    if operation_name(source.target) in _SPLITTING:
        whole = next(_inputs(source))
        labels = dense(groups, _shape(walk, node))
        part = _numbers(source, whole, walk)[node.args[1]]
        yield whole, None if labels is None else pull(labels, part, _shape(walk, whole))
    elif node.args[1] == 0:
        yield source, groups


def _rows_moved(node: fx.Node, rows: Rows, before: tuple[int, ...], after: tuple[int, ...]) -> Rows | None:
    """Rows before an operation that only changes the order of axes, or how they are counted."""
    name = operation_name(node.target)
    if name in _ORDERED:
        return rows
    if name not in _TURNING or (rows_after := rows.on(after)) is None:
        return None
    sizes = range(2, 2 + len(before))  # told apart by their sizes
    turned = node.target(torch.empty(tuple(sizes), device="meta"), *node.args[1:], **node.kwargs).shape  # pyright: ignore[reportCallIssue]
    origin = [turned.index(size) for size in sizes]
    labelled = [axis for axis in range(len(before)) if origin[axis] in rows_after.axes]
    order = [rows_after.axes.index(origin[axis]) for axis in labelled]
    return Rows(rows_after.labels.permute(order), tuple(labelled), before)


_TURNING = ("t", "transpose", "permute", "movedim", "swapaxes", "numpy_T", "mT")
_ORDERED = (
    *("view", "_unsafe_view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as"),
    *("clone", "contiguous", "alias", "lift_fresh_copy", "_to_copy", "to", "type_as", "neg", "detach"),
)


def _numbers(node: fx.Node, source: fx.Node, walk: SymmetryPropagation) -> Any:
    """A tensor of numbers, or as many as the operation returns tensors."""
    shape = _shape(walk, source)
    others = [_plain(argument, walk) for argument in node.args[1:]]
    numbers = _all(shape)
    if operation_name(node.target) in ("view", "_unsafe_view", "reshape"):
        return numbers.reshape(_shape(walk, node))
    return node.target(numbers, *others) if operation_name(node.target) not in _SAME else numbers  # pyright: ignore[reportCallIssue]


def _plain(argument: Any, walk: SymmetryPropagation) -> Any:
    """An argument with values in place of nodes; shapes for tensors that have none."""
    value = lambda signal: torch.empty(signal.shape) if signal.value is None else signal.value  # noqa: E731
    held = lambda node: value(walk.signals[node]) if isinstance(walk.signals[node], Signal) else walk.signals[node]  # noqa: E731
    return map_arg(argument, held)


def _sum(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    for source in _inputs(node):
        yield source, _spread(groups, _shape(walk, source), _shape(walk, node))


def _spread(groups: Groups | Rows, shape: tuple[int, ...], onto: tuple[int, ...]) -> Groups | Rows | None:
    """Groups of what is broadcast to a shape."""
    if shape == onto:
        return groups
    labels = dense(groups, onto)
    numbers = _all(shape).expand(onto)
    return None if labels is None else pull(labels, numbers, shape)


def _scaling(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    """A product by element: a factor moves with all that it is multiplied with by the same number."""
    if not isinstance(node.args[1], fx.Node):
        yield next(_inputs(node)), groups
        return
    sources, after = list(_inputs(node)), _shape(walk, node)
    labels, own = dense(groups, after), operation_name(node.target) == "mul"
    if labels is None or len(sources) < 2:
        return
    shapes = [_shape(walk, source) for source in sources]
    terms, output = _broadcast_terms(shapes, len(after))
    factors = contracted(labels, terms, output, shapes)
    for place, source in enumerate(sources if own else sources[:1]):
        other: Signal = walk.signals[sources[1 - place]]
        if other.value is not None and other.value.numel() and bool((other.value == other.value.flatten()[0]).all()):
            yield source, _spread(groups, shapes[place], after)
        else:
            yield source, dense(factors[place], shapes[place])


def _broadcast_terms(shapes: Sequence[Sequence[int]], ndim: int) -> tuple[list[str], str]:
    """Letters for the axes of tensors that are broadcast against each other; an axis of size one has its own."""
    output, spare = _LETTERS[:ndim], iter(_LETTERS[ndim:])
    wide = [
        max((shape[axis - ndim] for shape in shapes if len(shape) >= ndim - axis), default=1) for axis in range(ndim)
    ]
    terms = []
    for shape in shapes:
        axes = range(ndim - len(shape), ndim)
        terms.append("".join(output[a] if shape[a - ndim] == wide[a] else next(spare) for a in axes))
    return terms, output


_LETTERS = "".join(chr(ord("A") + place) for place in range(26)) + "".join(chr(ord("a") + place) for place in range(26))


def _masking(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    """Minus infinity, and any number that a softmax takes for it, stays what it is under any shift."""
    shown, hidden = (0, 2) if operation_name(node.target) == "masked_fill" else (1, 2)
    for source, filling in ((node.args[shown], node.args[hidden]), (node.args[hidden], node.args[shown])):
        if isinstance(source, fx.Node) and _hides(filling, walk):
            yield source, _spread(groups, _shape(walk, source), _shape(walk, node))


def _hides(filling: Any, walk: SymmetryPropagation) -> bool:
    value = walk.signals[filling].value if isinstance(filling, fx.Node) else torch.tensor(filling)
    return value is not None and value.numel() > 0 and bool((value <= _HIDDEN).all())


_HIDDEN = -1e4  # exp of it is zero


def _contraction(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    """Matrix products in any spelling: rows of a factor may be shifted where every row of the result allows it."""
    factors, bias = _factors(node)
    shapes = [_shape(walk, factor) for factor in factors]
    terms, output, after = _terms(node, shapes, _shape(walk, node))
    labels = dense(groups, _shape(walk, node))
    if labels is None:
        return
    yield from zip(factors, contracted(labels.reshape(after), terms, output, shapes), strict=True)
    if bias is not None:
        yield bias, _spread(labels, _shape(walk, bias), _shape(walk, node))


def _factors(node: fx.Node) -> tuple[list[fx.Node], fx.Node | None]:
    """The factors of a product, and what is added to it."""
    name, args = operation_name(node.target), list(node.args)
    if name == "einsum":
        return list(args[1]), None  # pyright: ignore[reportArgumentType]
    if name in ("addmm", "baddbmm", "addmv", "addbmm"):
        return args[1:3], args[0]  # pyright: ignore[reportReturnType]
    count = 3 if name == "bilinear" else 2
    bias = args[count] if len(args) > count and name != "tensordot" else None
    return args[:count], bias  # pyright: ignore[reportReturnType]


def _terms(
    node: fx.Node, shapes: Sequence[tuple[int, ...]], after: tuple[int, ...]
) -> tuple[list[str], str, tuple[int, ...]]:
    """A product as an `einsum`: terms, output, and the shape of this."""
    name = operation_name(node.target)
    if name == "einsum":
        return (*_spelled(str(node.args[0]), shapes), after)
    if name == "tensordot":
        return (*_dotted(shapes, *node.args[2:4]), after)  # pyright: ignore[reportArgumentType]
    if name == "linear":
        lead = _LETTERS[: len(shapes[0]) - 1]
        return [lead + "z", "yz"[2 - len(shapes[1]) :]], lead + ("y" if len(shapes[1]) == 2 else ""), after
    if name == "bilinear":
        lead = _LETTERS[: len(shapes[0]) - 1]
        return [lead + "z", lead + "y", "xzy"], lead + "x", after
    left, right = shapes
    rows, columns = ("x" if len(left) > 1 else ""), ("y" if len(right) > 1 else "")
    ndim = max(len(left), len(right), 2) - 2
    (one, other), batch = _broadcast_terms([left[:-2], right[:-2]], ndim)
    return [one + rows + "z", other + "z" + columns], batch + rows + columns, after


def _dotted(shapes: Sequence[tuple[int, ...]], left: Sequence[int], right: Sequence[int]) -> tuple[list[str], str]:
    """A `tensordot` over these axes of its factors."""
    one = list(_LETTERS[: len(shapes[0])])
    other = list(_LETTERS[len(one) : len(one) + len(shapes[1])])
    summed = set()
    for axis, partner in zip(left, right, strict=True):
        other[partner] = one[axis]
        summed.add(one[axis])
    terms = ["".join(one), "".join(other)]
    return terms, "".join(axis for term in terms for axis in term if axis not in summed)


def _spelled(equation: str, shapes: Sequence[tuple[int, ...]]) -> tuple[list[str], str]:
    """The terms of an equation, an ellipsis written out, and its output."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow:
        output = "".join(sorted(axis for axis in set(inputs) - {",", "."} if inputs.count(axis) == 1))
        output = "..." + output if "." in inputs else output
    spare = [letter for letter in _LETTERS if letter not in equation]
    ndims = [len(shape) - len(term) + 3 if "." in term else 0 for term, shape in zip(terms, shapes, strict=True)]
    written = spare[: max(ndims)]
    full = [term.replace("...", "".join(written[len(written) - n :])) for term, n in zip(terms, ndims, strict=True)]
    return full, output.replace("...", "".join(written))


def _convolution(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    """Channels of one group at a time; the weight at each tap by itself."""
    x, weight, *bias = _inputs(node, 3)
    turned = "transpose" in operation_name(node.target)
    count: Any = node.args[6] if len(node.args) > 6 else 1
    after, shape = _shape(walk, node), _shape(walk, weight)
    labels = dense(groups, after)
    if labels is None:
        return
    if len(after) < len(shape):  # one example, without a batch axis
        labels, after = labels[None], (1, *after)
    parted = (after[0], int(count), after[1] // int(count), *after[2:])
    view = (int(count), shape[0] // int(count), *shape[1:])
    places, taps = _LETTERS[: len(after) - 2], _LETTERS[len(after) : 2 * len(after) - 2]
    terms = ["ngi", ("gio" if turned else "goi") + taps]  # where the input is read does not matter
    yield weight, factor(labels.reshape(parted), 1, terms, "ngo" + places, view)
    if (
        len(_shape(walk, x)) == len(shape)
        and not turned
        and not any(_padding(node))
        and bool((labels.flatten(2) == labels.flatten(2)[..., :1]).all())
    ):
        read = _shape(walk, x)  # a shift of all places at once is one of all places that are written
        by_channel = labels.flatten(2)[..., 0].reshape(parted[:3])
        channels = (read[0], view[0], view[2])
        found = dense(factor(by_channel, 0, ["ngi", "goi"], "ngo", channels), (*read[:2], *([1] * len(places))))
        yield x, None if found is None else found.expand(read)
    for column in bias:
        along_channels = (after[1], *([1] * (len(after) - 2)))
        found = _spread(labels, along_channels, after)
        yield column, None if found is None else dense(found, along_channels).reshape(-1)  # pyright: ignore[reportOptionalMemberAccess]


def _padding(node: fx.Node) -> Sequence[Any]:
    padding: Any = node.args[4] if len(node.args) > 4 else 0
    return [padding] if isinstance(padding, (int, str)) else padding


def _affine(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    """The bias of a normalisation."""
    name, after = operation_name(node.target), _shape(walk, node)
    bias = node.args[_BIASES[name]] if len(node.args) > _BIASES[name] else None
    labels = dense(groups, after)
    if not isinstance(bias, fx.Node) or labels is None:
        return
    shape = _shape(walk, bias)
    column = shape if "layer" in name else (shape[0], *([1] * (len(after) - 2)))
    found = _spread(labels, column, after)
    yield bias, None if found is None else found.reshape(shape)  # pyright: ignore[reportAttributeAccessIssue]


_BIASES = {
    **dict.fromkeys(("_native_batch_norm_legit_functional", "instance_norm"), 2),
    "_native_batch_norm_legit_no_training": 2,
    **dict.fromkeys(("layer_norm", "native_layer_norm", "group_norm"), 3),
}


def _embedding(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    """Rows of a table chosen by the data: each by itself, or all of them alike."""
    table, positions = _inputs(node)
    shape, padding = _shape(walk, table), node.args[2] if len(node.args) > 2 else -1
    labels, places = dense(groups, _shape(walk, node)), walk.signals[positions].value
    if labels is None:
        return
    found = chosen(labels, lambda numbers: numbers[:1].expand(labels.shape), shape, [0])
    if found is None and padding == -1 and math.prod(shape) <= LARGEST:  # autograd leaves out the row of the padding
        found = _alike(labels, shape) if places is None else pull(labels, _all(shape)[places], shape)
    yield table, found


def _alike(labels: Groups, shape: tuple[int, ...]) -> Groups | None:
    """Groups of all rows of a table together."""
    alike = pull(labels, _all(shape[1:]).expand(labels.shape), shape[1:])
    return None if alike is None else alike.expand(shape)


def _all(shape: Sequence[int]) -> Tensor:
    return torch.arange(math.prod(shape)).reshape(tuple(shape))


def _bag(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    """Sums or means of rows of a table."""
    table = next(_inputs(node))
    mode, labels = node.args[4] if len(node.args) > 4 else 0, dense(groups, _shape(walk, node))
    if labels is not None and mode in (0, 1):
        shape = _shape(walk, table)
        yield table, chosen(labels, lambda numbers: numbers[:1].expand(labels.shape), shape, [0])


def _picked(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    """Entries at places that are known, or that the data choose along some axes."""
    source = next(_inputs(node))
    shape, labels = _shape(walk, source), dense(groups, _shape(walk, node))
    if labels is None:
        return
    known = all(walk.signals[each].value is not None for each in node.all_input_nodes if each is not source)
    found = None if known and not walk.signals[source].weights else _at_any_place(node, source, walk, labels)
    yield source, pull(labels, _numbers(node, source, walk), shape) if known and found is None else found


def _at_any_place(node: fx.Node, source: fx.Node, walk: SymmetryPropagation, labels: Groups) -> Rows | None:
    """Groups of the entries that an index may pick along its axes, each by itself."""
    name, shape = operation_name(node.target), _shape(walk, source)
    if name == "gather":
        return None
    if name == "index":
        places: Any = node.args[1]
        axes = [axis for axis, place in enumerate(places) if place is not None]
    else:
        axes = [int(node.args[1]) % len(shape)]  # pyright: ignore[reportArgumentType]
        places = [None] * axes[0] + [node.args[2]]
    first = [None if each is None else torch.zeros(_shape(walk, each), dtype=torch.int64) for each in places]
    return chosen(labels, lambda numbers: torch.ops.aten.index(numbers, first), shape, axes)


def _gathered(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    """Sums into places along one axis that the data choose: `index_add`, or `scatter_add` of whole slices."""
    target, source = node.args[0], node.args[3]
    shape, labels = _shape(walk, target), dense(groups, _shape(walk, node))  # pyright: ignore[reportArgumentType]
    axis = int(node.args[1]) % len(shape)  # pyright: ignore[reportArgumentType]
    if labels is None or not isinstance(source, fx.Node) or not _whole_slices(node.args[2], axis, walk):
        return
    yield target, groups  # pyright: ignore[reportReturnType]
    read = _shape(walk, source)
    if all(a == b for other, (a, b) in enumerate(zip(shape, read, strict=True)) if other != axis):
        yield source, dense(_reaching(labels, axis, read), read)


def _reaching(labels: Groups, axis: int, shape: tuple[int, ...]) -> Rows | None:
    """Groups of slices along an axis, each of which may land at any index of it."""
    term = _LETTERS[: labels.ndim]
    return factor(labels, 0, [term.replace(term[axis], "z"), "z" + term[axis]], term, shape)


def _whole_slices(places: Any, axis: int, walk: SymmetryPropagation) -> bool:
    """Whether all elements of a slice go to one index."""
    shape = _shape(walk, places)
    if len(shape) == 1:
        return True
    origin = next(_inputs(places), None) if operation_name(places.target) in ("expand", "expand_as") else None
    narrow = _shape(walk, origin) if origin is not None else shape
    return all(size == 1 for other, size in enumerate(narrow) if other != axis + len(narrow) - len(shape))


def _cat(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    sources: Any = node.args[0]
    labels = dense(groups, _shape(walk, node))
    if labels is None:
        return
    shapes = [_shape(walk, source) for source in sources]
    for place, (source, shape) in enumerate(zip(sources, shapes, strict=True)):
        numbers = [torch.full(other, -1) for other in shapes]
        numbers[place] = _all(shape)
        joined: Any = (torch.stack if operation_name(node.target) == "stack" else torch.cat)(numbers, *node.args[1:])  # pyright: ignore[reportArgumentType, reportCallIssue]
        yield source, pull(labels, joined, shape)


def _total(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    """A sum or a mean: its groups move with one summand of each."""
    source = next(_inputs(node))
    shape, labels = _shape(walk, source), dense(groups, _shape(walk, node))
    axes = [axis % len(shape) for axis in _reduced(node, len(shape))]
    if labels is not None and not node.kwargs:
        kept = labels.reshape([1 if axis in axes else size for axis, size in enumerate(shape)])
        summand = _all([size if axis in axes else 1 for axis, size in enumerate(shape)])
        yield source, torch.where(kept >= 0, kept * summand.numel() + summand, kept)


def _padded(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    """A constant around, which does not move."""
    source, labels = next(_inputs(node)), dense(groups, _shape(walk, node))
    mode = node.args[2] if operation_name(node.target) == "pad" and len(node.args) > 2 else "constant"
    if labels is not None and mode == "constant":
        shape, width = _shape(walk, source), tuple(node.args)[1]
        yield source, pull(labels, torch.constant_pad_nd(_all(shape), width, -1), shape)  # pyright: ignore[reportArgumentType]


def _idle(node: fx.Node, walk: SymmetryPropagation, groups: Groups | Rows) -> Sources:
    """Dropout that is off."""
    if not node.args[2] or node.args[1] == 0:
        yield next(_inputs(node)), groups


_PRODUCTS = ("linear", "matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "addmv", "einsum", "tensordot", "bilinear")
_SPLITTING = ("split", "chunk", "split_with_sizes", "unbind", "tensor_split", "unsafe_split")
_PICKING = ("index", "index_select", "gather")
_SAME = ("_to_copy", "to", "type_as", "clone", "contiguous", "alias", "neg", "detach")
_Through = Callable[[fx.Node, SymmetryPropagation, Groups | Rows], Sources]
_THROUGH: list[tuple[tuple[str, ...], _Through]] = [
    ((*KEEPING, *DROPPING, *COPYING, *_SAME, "getitem"), _movement),
    (("add", "sub"), _sum),
    (("mul", "div"), _scaling),
    (("masked_fill", "where"), _masking),
    (_PRODUCTS, _contraction),
    (("embedding",), _embedding),
    (("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"), _bag),
    (_PICKING, _picked),
    (("index_add", "scatter_add"), _gathered),
    (tuple(f"conv{turn}{n}d" for n in (1, 2, 3) for turn in ("", "_transpose")), _convolution),
    (("cat", "stack"), _cat),
    (("sum", "mean"), _total),
    (("constant_pad_nd", "pad"), _padded),
    (("dropout", "feature_dropout"), _idle),
    (tuple(_BIASES), _affine),
]
_FOLLOWED = frozenset(name for names, _ in _THROUGH for name in names)
