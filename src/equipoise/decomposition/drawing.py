"""A small network as a picture: its units and edges, and the tree they unroll into, with signs and magnitudes."""

from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from equipoise.decomposition.tree import Leaves, SignTree
from equipoise.decomposition.units import CONSTANT, MAXIMUM, SUM, UnitGraph
from equipoise.errors import InputError, StoreError

Axes: TypeAlias = Any  # of matplotlib, which is an extra

MOST = 400  # leaves that a page can show
_LEGEND = (
    "blue: +   orange: −   filled: activation   hollow: linear   1: feeds the biases   widths and bars: magnitudes"
)
_POSITIVE, _NEGATIVE, _INK, _PAPER = "#2b6cb0", "#c05621", "#22252b", "white"


def draw(graph: UnitGraph, tree: SignTree, leaves: Leaves, path: str | PathLike[str]) -> Path:
    """Left the network, right the tree from its outputs to its leaves; blue is +, orange −, widths are magnitudes.

    The tree's own edges are all of one width: their weights are ±1. Magnitudes are bars at the leaves. The format
    is that of the suffix: SVG, PDF or PNG.

    Raises:
        InputError: without matplotlib and for more than 400 paths.
        StoreError: for a path that cannot be written.
    """
    _require(tree)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, max(4.5, 0.1 * tree.paths)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    _network(left, graph)
    _tree(right, graph, tree, leaves)
    for axes, title in ((left, "f: signs and magnitudes"), (right, f"ρ: {tree.paths} paths, signs only;  μ: leaves")):
        axes.set_title(title, color=_INK, fontsize=11)
        axes.axis("off")
    figure.supxlabel(_LEGEND, color=_INK, fontsize=9)
    target = Path(path)
    try:
        with rc_context({"svg.hashsalt": "equipoise"}):  # the same picture is the same file
            figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise StoreError(
            expected=f"to write {target}", found=str(error).splitlines()[0], remedy="choose a path that ends in .svg"
        ) from None
    return target


def _require(tree: SignTree) -> None:
    if find_spec("matplotlib") is None:
        raise InputError(
            expected="matplotlib, which draws", found="no matplotlib", remedy="pip install 'equipoise[report]'"
        )
    if tree.paths > MOST:
        raise InputError(
            expected=f"at most {MOST} paths to draw", found=f"{tree.paths:,}", remedy="draw a smaller network"
        )


# --- the network ---


def _network(axes: Axes, graph: UnitGraph) -> None:
    used = _used(graph)
    places = _places(graph, used)
    largest = max((abs(weight) for *_, weight in _edges(graph, used)), default=1.0) or 1.0
    for source, unit, weight in _edges(graph, used):
        ends = zip(places[source], places[unit], strict=True)
        axes.plot(*ends, color=_colour(weight), lw=0.3 + 3 * abs(weight) / largest, alpha=0.75, zorder=1)
    for unit in used:
        _dot(axes, places[unit], graph, unit, 240.0)


def _used(graph: UnitGraph) -> list[int]:
    """The units that a path goes through, and all inputs."""
    found, queue = set(range(1, graph.inputs + 1)), list(graph.outputs)
    while queue:
        unit = int(queue.pop())
        if unit not in found or unit in graph.outputs:
            found.add(unit)
            queue += [source for source in graph.sources[_into(graph, unit)] if source not in found]
    return sorted(found)


def _into(graph: UnitGraph, unit: int) -> slice:
    return slice(int(graph.starts[unit]), int(graph.starts[unit + 1]))


def _edges(graph: UnitGraph, used: list[int]) -> list[tuple[int, int, float]]:
    return [
        (int(source), unit, float(weight))
        for unit in used
        for source, weight in zip(graph.sources[_into(graph, unit)], graph.weights[_into(graph, unit)], strict=True)
    ]


def _places(graph: UnitGraph, used: list[int]) -> dict[int, tuple[float, float]]:
    """Each unit one column to the right of the last one that feeds it; the constant below the inputs."""
    column = dict.fromkeys((unit for unit in used if graph.starts[unit] == graph.starts[unit + 1]), 0)
    for unit in used:
        sources = graph.sources[_into(graph, unit)]
        if len(sources):
            column[unit] = 1 + max(column[int(source)] for source in sources)
    places = {}
    for number in sorted(set(column.values())):
        members = sorted((unit for unit in used if column[unit] == number), key=lambda unit: (unit == CONSTANT, unit))
        for row, unit in enumerate(members):
            places[unit] = (float(number), (len(members) - 1) / 2 - row)
    return places


# --- the tree ---


def _tree(axes: Axes, graph: UnitGraph, tree: SignTree, leaves: Leaves) -> None:
    heights = _heights(tree)
    for depth, level in enumerate(tree.levels):
        for node, (unit, parent) in enumerate(zip(level.units, level.parents, strict=True)):
            if depth:
                above = heights[depth - 1][parent]
                axes.plot(
                    [depth - 1, depth], [above, heights[depth][node]], color=_colour(float(level.signs[node])), lw=0.8
                )
            if level.leaves[node] < 0:
                _dot(axes, (float(depth), float(heights[depth][node])), graph, int(unit), 60.0)
            else:
                _leaf(axes, tree, depth, float(heights[depth][node]), leaves, int(level.leaves[node]))


def _leaf(axes: Axes, tree: SignTree, depth: int, height: float, leaves: Leaves, leaf: int) -> None:
    """A dotted line to the common edge, the name of the input, and a bar for the magnitude."""
    source, magnitude = int(leaves.inputs[leaf]), float(leaves.magnitudes[leaf])
    edge, largest = tree.depth + 0.15, float(leaves.magnitudes.max()) or 1.0
    axes.plot([depth, edge], [height, height], color=_INK, lw=0.4, ls=":")
    axes.text(edge + 0.03, height, "1" if source == CONSTANT else f"x{source}", fontsize=5, va="center", color=_INK)
    axes.barh(height, 0.8 * magnitude / largest, left=edge + 0.2, height=0.7, color=_INK, alpha=0.6)


def _heights(tree: SignTree) -> list[np.ndarray]:
    """Leaves one below the other in the order of a walk through the tree, each node midway between its children."""
    children: list[list[list[int]]] = [[[] for _ in level.units] for level in tree.levels]
    for depth, level in enumerate(tree.levels[1:], 1):
        for node, parent in enumerate(level.parents):
            children[depth - 1][parent].append(node)
    heights, next_row = [np.zeros(len(level.units)) for level in tree.levels], 0

    def place(depth: int, node: int) -> float:
        nonlocal next_row
        below = [place(depth + 1, child) for child in children[depth][node]]
        if not below:
            next_row += 1
        height = (below[0] + below[-1]) / 2 if below else -float(next_row)
        heights[depth][node] = height
        return height

    for root in range(tree.outputs):
        place(0, root)
    return heights


def _dot(axes: Axes, place: tuple[float, float], graph: UnitGraph, unit: int, size: float) -> None:
    """Linear units hollow, activations filled, maxima square, inputs by name."""
    leaf = unit == CONSTANT or unit <= graph.inputs
    slope = graph.slopes[unit]
    face = _PAPER if leaf or slope == SUM else _INK
    axes.scatter(*place, s=size, c=face, edgecolors=_INK, marker="s" if slope == MAXIMUM else "o", zorder=2, lw=0.8)
    if leaf:
        axes.text(*place, "1" if unit == CONSTANT else f"x{unit}", ha="center", va="center", fontsize=8, zorder=3)


def _colour(weight: float) -> str:
    return _NEGATIVE if weight < 0 else _POSITIVE
