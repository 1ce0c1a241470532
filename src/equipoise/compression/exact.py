"""Moves that keep the outputs on the data, to rounding (docs/theory.md, T10): each changes a model in place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from equipoise.compression.cones import positive_factors
from equipoise.compression.data import ChannelRange, DataBatches, PatternHash, visit
from equipoise.compression.layers import (
    add_to_bias,
    columns,
    dense,
    factors,
    layer,
    parameter_count,
    replace,
    rows,
    set_columns,
    set_rows,
)
from equipoise.compression.structure import Hidden, Layer


@dataclass(frozen=True, eq=False)
class Change:
    """The effect of a move: widths or ranks before and after, in words, and which layers it touched.

    `kept` are the channels that are left, where some are taken away; None for another move.
    """

    kind: str
    layers: tuple[str, ...]
    before: int
    after: int
    detail: str
    kept: Int64[Tensor, " kept"] | None = None


def fold_normalisation(model: nn.Module, name: str, norm: str) -> Change | None:
    """Take a batch normalisation in evaluation mode into the layer before it."""
    module, normalisation = layer(model, name), model.get_submodule(norm)
    assert isinstance(normalisation, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    mean, variance = normalisation.running_mean, normalisation.running_var
    if mean is None or variance is None:
        return None
    scale = (variance + normalisation.eps).rsqrt()
    shift = torch.zeros_like(mean)
    if normalisation.affine:
        scale, shift = scale * normalisation.weight.detach(), normalisation.bias.detach()
    if module.bias is None:
        add_to_bias(module, torch.zeros_like(mean))
    written = rows(module) * scale[:, None]
    written[:, -1] += shift - mean * scale
    saved = parameter_count(normalisation)
    set_rows(module, written)
    replace(model, norm, nn.Identity())
    return Change("fold", (name, norm), saved, 0, f"{norm} into {name}")


def collapse(model: nn.Module, run: Sequence[str]) -> Change | None:
    """Replace linear layers that follow each other by their product, or by two factors at its rank; None if no gain."""
    modules = [layer(model, name) for name in run]
    weight, bias = modules[0].weight.detach(), modules[0].bias
    offset = torch.zeros(len(weight)).to(weight) if bias is None else bias.detach()
    for module in modules[1:]:
        weight, offset = module.weight.detach() @ weight, module.weight.detach() @ offset
        offset = offset if module.bias is None else offset + module.bias.detach()
    added = None if all(module.bias is None for module in modules) else offset
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    eps = torch.finfo(weight.dtype).eps * len(modules)
    rank = int((values > eps * max(weight.shape) * values.amax()).sum())
    trained = modules[0].weight.requires_grad
    costs = {"product": weight.numel(), "factors": rank * sum(weight.shape)}
    best = min(costs, key=costs.__getitem__)
    biases = 0 if added is None else len(added)
    if costs[best] + biases >= parameter_count(modules):
        return None
    last = dense(weight, added, trained)
    if best == "factors":
        root = values[:rank].sqrt()
        last = factors(last, left[:, :rank] * root, root[:, None] * right[:rank], added)
    before = min(min(module.weight.shape) for module in modules)
    for name in run[:-1]:
        replace(model, name, nn.Identity())
    replace(model, run[-1], last)
    return Change("collapse", tuple(run), before, rank, f"{' · '.join(run)} to their {best} of rank {rank}")


def linear_runs(model: nn.Module, hidden: Sequence[Hidden]) -> list[tuple[str, ...]]:
    """Runs of linear layers that follow each other directly, each as long as can be."""
    follows = {
        each.writer: each.readers[0]
        for each in hidden
        if each.direct and len(each.readers) == 1 and _both_linear(model, each)
    }
    runs = []
    for start in (name for name in follows if name not in follows.values()):
        run = [start]
        while run[-1] in follows:
            run.append(follows[run[-1]])
        runs.append(tuple(run))
    return runs


def _both_linear(model: nn.Module, hidden: Hidden) -> bool:
    return all(isinstance(model.get_submodule(name), nn.Linear) for name in (hidden.writer, *hidden.readers))


@dataclass(frozen=True)
class ChannelActivity:
    """On all examples, which channels of hidden layers are constant for their readers, and which active together.

    Found in one run of the model. Moves that leave the outputs alone leave it valid for the layers before theirs.
    """

    ranges: Mapping[str, ChannelRange]
    patterns: Mapping[str, PatternHash]

    @classmethod
    def of(cls, model: nn.Module, hidden: Sequence[Hidden], examples: DataBatches) -> "ChannelActivity":
        """Of all hidden layers; patterns of those with one rectifier."""
        ranges = {
            name: ChannelRange(len(layer(model, each.writer).weight), _axis(layer(model, name)))
            for each in hidden
            for name in each.readers
        }
        patterns = {
            each.writer: PatternHash(_axis(layer(model, each.writer))) for each in hidden if each.kind == "rectified"
        }
        if hidden:
            visit(model, examples, ranges, patterns)
        return cls(ranges, patterns)


def merge_coactive(model: nn.Module, hidden: Hidden, activity: ChannelActivity, left: Tensor | None) -> Change | None:
    """Replace neurons that are active on the same examples by `r` or `r + 1`, where `r` is the rank of their readers.

    The new rows are non-negative combinations of the old: they have the pattern of the class. `left` are the channels
    that are there of those whose activity is known; None for all.
    """
    writer = layer(model, hidden.writer)
    written, readers = rows(writer), [layer(model, name) for name in hidden.readers]
    read = [columns(reader, len(written)) for reader in readers]
    joined = torch.cat(read)
    lengths = written.norm(dim=1)
    new_rows, new_columns = [], []
    for members in activity.patterns[hidden.writer].classes(left):
        length = lengths[members]
        unit = torch.where(length[:, None] > 0, written[members] / length.clamp_min(1e-300)[:, None], 0.0)
        generators, weights = positive_factors((joined[:, members] * length).cpu().double().numpy())
        if generators.shape[1] < len(members):
            new_rows.append(torch.from_numpy(weights).to(written) @ unit)
            new_columns.append(torch.from_numpy(generators).to(written))
        else:
            new_rows.append(written[members])
            new_columns.append(joined[:, members])
    merged, width = torch.cat(new_rows), len(written)
    if len(merged) == width:
        return None
    if len(merged) == 0:  # nothing reads the layer: one dead neuron keeps the shapes
        merged, new_columns = torch.zeros_like(written[:1]), [torch.zeros_like(joined[:, :1])]
    set_rows(writer, merged)
    parts = torch.cat(new_columns, 1).split([len(part) for part in read])
    for reader, part in zip(readers, parts, strict=True):
        set_columns(reader, part, width)
    classes = len(new_rows)
    return Change(
        "merge", (hidden.writer, *hidden.readers), width, len(merged), f"{classes} classes of co-active neurons"
    )


def remove_constant(model: nn.Module, hidden: Hidden, activity: ChannelActivity) -> Change | None:
    """Remove channels whose value is the same at all examples and positions; the readers' biases take it over."""
    writer = layer(model, hidden.writer)
    readers = [layer(model, name) for name in hidden.readers]
    width = len(writer.weight)
    ranges = {name: activity.ranges[name] for name in hidden.readers}
    constant = torch.stack([each.high <= each.low for each in ranges.values()]).all(0)
    for name, reader in zip(hidden.readers, readers, strict=True):
        if _pads(reader):  # the border reads zeros in place of the constant
            constant &= ranges[name].low == 0
    if bool(constant.all()):
        constant[0] = False  # a layer without channels is none
    if not bool(constant.any()):
        return None
    kept = ~constant.to(writer.weight.device)
    for name, reader in zip(hidden.readers, readers, strict=True):
        read = columns(reader, width)
        value = ranges[name].low.to(read)
        folded = (read[:, ~kept] @ value[~kept]).reshape(len(reader.weight), -1).sum(1)
        if bool(folded.any()):
            add_to_bias(reader, folded)
        set_columns(reader, read[:, kept], width)
    set_rows(writer, rows(writer)[kept])
    layers = (hidden.writer, *hidden.readers)
    left = torch.nonzero(kept.cpu()).flatten()
    return Change("remove", layers, width, len(left), "channels that are constant on the data", left)


def _pads(reader: Layer) -> bool:
    return not isinstance(reader, nn.Linear) and reader.padding not in (0, (0,), (0, 0), (0, 0, 0), "valid")


def _axis(module: Layer) -> int:
    """The axis of the channels, in what a layer reads and writes."""
    return -1 if isinstance(module, nn.Linear) else 1


def relative_change(before: Tensor, after: Tensor) -> float:
    """`‖f' - f‖ / ‖f‖`, the root mean square over all outputs; 0/0 = 0."""
    old, new = before.detach().double(), after.detach().double()
    difference = float((new - old).norm())
    return difference / float(old.norm()) if difference else 0.0
