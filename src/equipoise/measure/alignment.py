"""Alignment of the output directions of a layer with the input directions of the next one, and of neurons with data."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from equipoise import linalg
from equipoise.errors import InputError
from equipoise.measure.unfolding import read, written


@dataclass(frozen=True)
class LayerAlignment:
    """Alignment of consecutive layers: `cosine = |⟨v_{k+1}, u_k⟩|`, its `sine`, and the top-`r` principal angles.

    The sine is the norm of the rejected component `v - u⟨u, v⟩`, so `sine²` is `1 - cosine²` without the subtraction
    and keeps its digits where the cosine has rounded to 1. Angles are in radians, ascending.
    """

    cosine: float
    sine: float
    angles: Float[Tensor, " r"]


def alignment(
    lower: Float[Tensor, "d inputs *lower_taps"],
    upper: Float[Tensor, "out _ *upper_taps"],
    r: int = 1,
    *,
    bias: Float[Tensor, " _"] | None = None,
) -> LayerAlignment:
    """Alignment of the layer `lower` (`W_k`) with the next one, `upper` (`W_{k+1}`), as in `upper @ lower` (T3.2).

    `u_k` is the top left singular vector of `lower` (with `bias`, of `[W_k b_k]`) and `v_{k+1}` the top right one of
    `upper`. Convolution kernels are taken as `d × (inputs·taps)` below and `(out·taps) × d` above. The angles are those
    between the top-`r` left and right singular spaces; directions whose singular value is at rounding level
    (`max(rows, columns) · eps · σ_1`) do not count, so there may be fewer than `r`.

    A zero matrix has no directions: cosine 0 and sine 1, by convention. Where `σ_1 = σ_2` the top vector, and hence the
    figure, is arbitrary. Float32 or float64. Raises `InputError` for NaN or infinite entries, shapes that do not
    compose, and `r < 1`.

    >>> u = torch.tensor([0.6, 0.8], dtype=torch.float64)
    >>> found = alignment(torch.outer(u, torch.ones(3, dtype=torch.float64)), 5 * u[None])
    >>> round(found.cosine, 12), found.sine < 1e-15
    (1.0, True)
    """
    _require_composable(lower, upper, bias)
    return compare(linalg.leading_triplets(written(lower, bias), r), linalg.leading_triplets(read(upper), r))


def compare(lower: linalg.Triplets, upper: linalg.Triplets) -> LayerAlignment:
    """`alignment` from triplets that are already at hand: left vectors of `lower`, right ones of `upper`.

    The angles are between the spaces of all triplets given: pass `triplets.top(r)` for those of the leading ones.

    >>> turned = torch.tensor([[0.6], [0.8]])
    >>> flat = linalg.Triplets(torch.eye(2)[:, :1], torch.ones(1), torch.ones(1, 1))
    >>> found = compare(flat, linalg.Triplets(torch.ones(1, 1), torch.ones(1), turned))
    >>> round(found.cosine, 6), round(found.sine, 6)
    (0.6, 0.8)
    """
    u, v = lower.left[:, _significant(lower)], upper.right[:, _significant(upper)]
    if u.shape[1] == 0 or v.shape[1] == 0:
        return LayerAlignment(0.0, 1.0, u.new_zeros(0))
    ((cosine, sine),) = cosines_and_sines([(u[:, 0], v[:, 0])])
    return LayerAlignment(cosine, sine, linalg.principal_angles(u, v))


def cosines_and_sines(pairs: Sequence[tuple[Float[Tensor, " _"], Float[Tensor, " _"]]]) -> list[tuple[float, float]]:
    """`|⟨u, v⟩|` and `‖v - ⟨u, v⟩ u‖` of each pair of unit vectors, not above 1.

    >>> cosines_and_sines([(torch.tensor([1.0, 0.0]), torch.tensor([0.0, -1.0]))])
    [(0.0, 1.0)]
    """
    figures = []
    for u, v in pairs:
        cosine = (u * v).sum(0, keepdim=True)
        figures += [cosine, torch.linalg.vector_norm(v - cosine * u, dim=0, keepdim=True)]
    parts = [min(abs(figure), 1.0) for figure in torch.cat(figures).tolist()] if figures else []
    return list(zip(parts[0::2], parts[1::2], strict=True))


@dataclass(frozen=True)
class NeuronAlignment:
    """Each neuron beside the examples that it is on for (Min, Mallada & Vidal 2024).

    Attributes:
        cosines: `|cos(w_j, Σ_{i on} y_i x_i)|`; 0 where that sum, or the neuron, is zero.
        positive: on for every positive example, and for no negative one.
        negative: on for every negative example, and for no positive one.
        off: off for every example.
    """

    cosines: Float[Tensor, " neurons"]
    positive: Bool[Tensor, " neurons"]
    negative: Bool[Tensor, " neurons"]
    off: Bool[Tensor, " neurons"]

    @property
    def aligned(self) -> Bool[Tensor, " neurons"]:
        """On for exactly one class, or off for every example: the cones that small neurons turn into."""
        return self.positive | self.negative | self.off

    @property
    def aligned_share(self) -> float:
        """The share of these neurons."""
        return float(self.aligned.double().mean())


def neuron_alignment(
    weight: Float[Tensor, "neurons d"],
    inputs: Float[Tensor, "n _"],
    labels: Float[Tensor, " _"],
    bias: Float[Tensor, " neurons"] | None = None,
) -> NeuronAlignment:
    """The alignment of the neurons of a ReLU layer with what they read (Min, Mallada & Vidal 2024).

    From a small start each neuron first turns, at constant norm, towards `± Σ_{i: ⟨w_j, x_i⟩ > 0} y_i x_i`, the sign
    that of its outgoing weight, while the loss hardly moves. Where examples of one class have positive inner products
    and those of different classes negative ones, it ends on for exactly one class, or off.

    Args:
        weight: a row for each neuron.
        inputs: what the layer reads, a row for each example.
        labels: in {-1, +1}.
        bias: of the neurons; it decides with the weight what a neuron is on for, and is no part of its direction.

    Returns:
        Cosines and cones.

    Raises:
        InputError: for labels other than -1 and +1, and shapes that do not fit.

    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    >>> found = neuron_alignment(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), x, torch.tensor([1.0, -1.0]))
    >>> found.positive.tolist(), found.negative.tolist(), found.cosines.tolist()[0]
    ([True, False], [False, True], 1.0)
    """
    if weight.shape[1] != inputs.shape[1] or labels.shape != inputs.shape[:1] or not (labels.abs() == 1).all():
        raise InputError(
            expected=f"inputs of {weight.shape[1]} numbers and one label in {{-1, +1}} for each",
            found=f"inputs of shape {tuple(inputs.shape)}, labels of shape {tuple(labels.shape)}",
            remedy="pass what the layer reads, a row for each example",
        )
    on = inputs @ weight.T + (0.0 if bias is None else bias) > 0
    sums = (on.to(inputs) * labels.to(inputs)[:, None]).T @ inputs
    lengths = torch.linalg.vector_norm(weight, dim=1) * torch.linalg.vector_norm(sums, dim=1)
    tiny = torch.finfo(lengths.dtype).tiny
    cosines = ((weight * sums).sum(1).abs() / lengths.clamp(min=tiny)).clamp(max=1)
    above = labels > 0
    return NeuronAlignment(cosines, (on == above[:, None]).all(0), (on != above[:, None]).all(0), ~on.any(0))


def _significant(triplets: linalg.Triplets) -> Tensor:
    size = max(triplets.left.shape[0], triplets.right.shape[0])
    return triplets.values > size * torch.finfo(triplets.values.dtype).eps * triplets.values[0]


def _require_composable(lower: Tensor, upper: Tensor, bias: Tensor | None) -> None:
    if upper.shape[1] != lower.shape[0]:
        raise InputError(
            expected=f"an upper layer that reads the {lower.shape[0]} outputs of the lower one",
            found=f"shapes {tuple(lower.shape)} and {tuple(upper.shape)}",
            remedy="pass weights as (out, in, *taps), lower layer first",
        )
    if bias is not None and bias.shape != lower.shape[:1]:
        raise InputError(
            expected=f"a bias of the lower layer, of shape {tuple(lower.shape[:1])}",
            found=f"shape {tuple(bias.shape)}",
            remedy="pass the bias that is added to lower @ x",
        )
