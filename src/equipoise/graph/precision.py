"""In which floating-point types a graph computes what the symmetry of a law moves.

A gradient identity (T1) holds up to the rounding of the operations between its producers and its consumers. Where the
code of a model asks for less precision than its weights have (a normalisation in float32 inside a float64 model,
autocast inside `forward`), that is what the identity is good to.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from equipoise.graph.constraints import FreeGenerators
from equipoise.graph.labels.signal import Role, Signal


def narrowest(*dtypes: torch.dtype | None) -> torch.dtype | None:
    """The dtype with the largest unit of rounding; None (unknown) and integers are passed over.

    >>> narrowest(torch.float64, None, torch.bfloat16, torch.float32)
    torch.bfloat16
    """
    floating = [dtype for dtype in dtypes if dtype is not None and dtype.is_floating_point]
    return max(floating, key=lambda dtype: torch.finfo(dtype).eps, default=None)


def result_dtype(node: fx.Node) -> torch.dtype | None:
    """The narrowest dtype among the results of a node."""
    results = pytree.tree_leaves(node.meta.get("val"))
    return narrowest(*(value.dtype for value in results if isinstance(value, Tensor)))


def narrow_nodes(graph: fx.Graph, weights: Iterable[str]) -> dict[fx.Node, torch.dtype]:
    """The nodes whose results have less precision than the widest of the placeholders `weights`, with their dtype."""
    found = {node: dtype for node in graph.nodes if (dtype := result_dtype(node)) is not None}
    names = set(weights)
    own = [torch.finfo(dtype).eps for node, dtype in found.items() if node.name in names]
    return {node: dtype for node, dtype in found.items() if own and torch.finfo(dtype).eps > min(own)}


def moved_in(
    solution: FreeGenerators, signals: Mapping[fx.Node, object], narrow: Mapping[fx.Node, torch.dtype]
) -> dict[int, torch.dtype]:
    """By root: the narrowest dtype in which something that its generator moves is computed, of those in `narrow`."""
    found: dict[int, torch.dtype] = {}
    for node, dtype in narrow.items():
        leaves = [leaf for leaf in pytree.tree_leaves(signals.get(node)) if isinstance(leaf, Signal)]
        for role in (role for leaf in leaves for role in leaf.roles):
            for root in _roots(solution, role):
                found[root] = narrowest(found.get(root), dtype) or dtype
    return found


def _roots(solution: FreeGenerators, role: Role) -> list[int]:
    return np.unique(solution.root[role.acting.numpy()]).tolist()
