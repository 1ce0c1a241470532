"""Pairs of matrices of which one reads the outputs of the other: given, read off the graph, or of a `Sequential`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from equipoise.checkpoint.matrices import WeightMatrix
from equipoise.errors import InputError
from equipoise.graph.capture import Inputs, capture
from equipoise.graph.chain import read_chain
from equipoise.measure.alignment import LayerAlignment, alignment

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
Pairs = tuple[tuple[str, str], ...]


def chain_pairs(
    source: object, chain: Sequence[str] | None, example_inputs: Inputs | None, known: Mapping[str, WeightMatrix]
) -> Pairs:
    """Pairs of names, lower layer first: of `chain`; else of the captured graph; else of every `Sequential`.

    Raises:
        InputError: for a name in `chain` that is no matrix of the checkpoint.
        CaptureError: for a model that cannot be captured on `example_inputs`.
    """
    if chain is not None:
        if unknown := [name for name in chain if name not in known]:
            raise InputError(
                expected="names of matrices, lower layer first",
                found=", ".join(unknown),
                remedy="pass names as the table lists them",
            )
        return tuple(pairwise(chain))
    if not isinstance(source, nn.Module):
        return ()
    if example_inputs is not None:
        layers = read_chain(capture(source, example_inputs))
        return tuple(pairwise(layer.weight for layer in layers or ()))
    found = (pair for prefix, module in source.named_modules() for pair in _in_sequence(prefix, module))
    return tuple(pair for pair in found if _compose(*(known.get(name) for name in pair)))


def _in_sequence(prefix: str, module: nn.Module) -> Iterator[tuple[str, str]]:
    """Consecutive weights of a `Sequential` with nothing but norms and weightless modules between them."""
    if not isinstance(module, nn.Sequential):
        return
    below: str | None = None
    for name, child in module.named_children():
        if isinstance(getattr(child, "weight", None), Tensor) and not isinstance(child, _NORMS):
            weight = f"{prefix}.{name}.weight".removeprefix(".")
            if below is not None:
                yield below, weight
            below = weight
        elif any(True for _ in child.parameters()) and not isinstance(child, _NORMS):
            below = None


def _compose(lower: WeightMatrix | None, upper: WeightMatrix | None) -> bool:
    return lower is not None and upper is not None and lower.shape[0] == upper.shape[1]


def aligned(lower: WeightMatrix, upper: WeightMatrix) -> LayerAlignment | None:
    """The alignment of two matrices in float64, by their full SVD; None where they do not compose or are not finite."""
    if not _compose(lower, upper):
        return None
    below, above = (matrix.read().detach().cpu().double() for matrix in (lower, upper))
    return alignment(below, above) if bool(below.isfinite().all() and above.isfinite().all()) else None
