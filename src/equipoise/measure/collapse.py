"""Collapse of features onto their class means: NC1–NC3, variation within clusters, nearest centres, effective depth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.errors import InputError
from equipoise.modes import default_modes


@dataclass(frozen=True)
class NeuralCollapse:
    """The figures of Papyan, Han & Donoho (2020) for the features of one layer; all are zero at full collapse.

    Attributes:
        within: NC1, `tr(Σ_W Σ_B⁺) / K`; infinite where all class means coincide and features do not.
        equinorm: NC2, the coefficient of variation of `‖μ_c - μ_G‖` over the classes.
        equiangle: NC2, the standard deviation of the cosines between centred class means.
        simplex: NC2, the mean of `|cos + 1/(K - 1)|`: how far these cosines are from those of a simplex.
        self_duality: NC3, `‖Wᵀ/‖W‖_F - M/‖M‖_F‖_F` with `M` the centred class means; None without `W`.
    """

    within: float
    equinorm: float
    equiangle: float
    simplex: float
    self_duality: float | None = None


@dataclass(frozen=True)
class ClusterVariation:
    """The sum of squares of features about their overall mean, split into that within classes and that between.

    Attributes:
        within: `Σ_i ‖h_i - h̄_{c(i)}‖²`.
        between: `Σ_c n_c ‖h̄_c - h̄‖²`.
    """

    within: float
    between: float

    @property
    def share(self) -> float:
        """`within / (within + between)`, in [0, 1]; 0 for features that are all the same."""
        total = self.within + self.between
        return self.within / total if total > 0 else 0.0


def neural_collapse(
    features: Float[Tensor, " n *feature"],
    labels: Int[Tensor, " _"],
    weight: Float[Tensor, "classes _"] | None = None,
) -> NeuralCollapse:
    """Neural collapse of the features of one layer (Papyan, Han & Donoho 2020).

    With class means `μ_c`, `μ_G` the mean of these, `Σ_W` the mean of `(h - μ_c)(h - μ_c)ᵀ` over all examples and `Σ_B`
    the mean of `(μ_c - μ_G)(μ_c - μ_G)ᵀ` over the classes: NC1 is `tr(Σ_W Σ_B⁺)/K`. `Σ_B⁺` ignores variation outside
    the span of the centred means; `cluster_variation` counts that too. An orthogonal frame, to which the features of a
    ReLU layer collapse, is a simplex once it is centred.

    Args:
        features: one row an example; positions and channels are flattened.
        labels: class indices; each class that occurs counts.
        weight: of the classifier that reads the features, a row for each class in ascending order, for NC3.

    Returns:
        The figures, each 0 at full collapse.

    Raises:
        InputError: for fewer than two classes, another number of labels than of rows, and features with NaN.

    >>> corners = torch.eye(3, dtype=torch.float64)
    >>> neural_collapse(corners.repeat(2, 1), torch.arange(3).repeat(2), weight=corners - 1 / 3).self_duality < 1e-15
    True
    """
    groups = _Groups.of(features, labels)
    centred = (groups.means - groups.means.mean(0)).T
    span, values, _ = torch.linalg.svd(centred, full_matrices=False)
    significant = values > max(centred.shape) * torch.finfo(values.dtype).eps * values[0]
    inside = groups.deviations @ span[:, significant]
    # Σ_B = M Mᵀ/K has eigenvalues σ²/K: the K of `tr(…)/K` goes
    within = float((inside.square().mean(0) / values[significant].square()).sum())
    if not significant.any() or values[0] == 0:
        within = math.inf if bool((groups.deviations != 0).any()) else 0.0
    norms = torch.linalg.vector_norm(centred, dim=0)
    directions = centred / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    above = torch.triu_indices(len(norms), len(norms), 1)
    cosines = (directions.T @ directions)[above[0], above[1]]
    return NeuralCollapse(
        within,
        float(norms.std(correction=0) / norms.mean()) if norms.mean() > 0 else 0.0,
        float(cosines.std(correction=0)),
        float((cosines + 1 / (len(norms) - 1)).abs().mean()),
        None if weight is None else _self_duality(weight.double(), centred),
    )


def cluster_variation(features: Float[Tensor, " n *feature"], labels: Int[Tensor, " _"]) -> ClusterVariation:
    """The variation of features within their classes, and between these (Zangrando et al. 2024).

    Args:
        features: one row an example; positions and channels are flattened.
        labels: class indices, or those of any clusters.

    Returns:
        Both sums of squares, and the share of the first.

    Raises:
        InputError: as `neural_collapse` does.

    >>> points = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    >>> cluster_variation(points, torch.tensor([0, 0, 1, 1]))
    ClusterVariation(within=4.0, between=100.0)
    """
    groups = _Groups.of(features, labels)
    mean = (groups.counts[:, None] * groups.means).sum(0) / groups.counts.sum()
    between = groups.counts[:, None] * (groups.means - mean).square()
    return ClusterVariation(float(groups.deviations.square().sum()), float(between.sum()))


def centre_mismatch(
    features: Float[Tensor, " n *feature"],
    labels: Int[Tensor, " _"],
    test: tuple[Float[Tensor, " m *_"], Int[Tensor, " m"]] | None = None,
) -> float:
    """The share of examples that are not nearest to the mean of their own class (Galanti et al. 2022; NC4).

    Args:
        features: one row an example; positions and channels are flattened.
        labels: class indices, or the classes that a network predicts.
        test: features and labels of other examples, to be compared with the centres of the first ones.

    Returns:
        A share in [0, 1]. A tie with another centre counts as a mismatch unless the own class has the lower index.

    Raises:
        InputError: as `neural_collapse` does.

    >>> centre_mismatch(torch.tensor([[0.0], [1.0], [5.0], [0.5]]), torch.tensor([0, 0, 1, 1]))
    0.25
    """
    groups = _Groups.of(features, labels)
    asked, truth = (features, labels) if test is None else test
    distances = torch.cdist(asked.flatten(1).double(), groups.means, compute_mode="donot_use_mm_for_euclid_dist")
    return float((groups.classes[distances.argmin(1)] != truth.to(groups.classes)).double().mean())


@default_modes()
def effective_depth(mismatches: Sequence[float], epsilon: float = 0.01) -> int:
    """The first layer whose nearest-class-centre mismatch is at most `ε` (Galanti et al. 2022).

    Args:
        mismatches: `centre_mismatch` of the output of layer 1, 2, …, L.
        epsilon: the mismatch that is allowed.

    Returns:
        A layer, counted from 1; `L` where there is none, as in the paper.

    Raises:
        InputError: for no layers.

    >>> effective_depth([0.4, 0.02, 0.005, 0.0])
    3
    """
    if not mismatches:
        raise InputError(expected="the mismatch of one layer or more", found="none", remedy="pass one figure a layer")
    if not 0 <= epsilon < 1:
        raise InputError(expected="epsilon from 0 to below 1", found=repr(epsilon), remedy="pass epsilon=0.01")
    small = [layer for layer, mismatch in enumerate(mismatches, 1) if mismatch <= epsilon]
    return min(small, default=len(mismatches))


def _self_duality(weight: Tensor, centred: Tensor) -> float:
    if weight.T.shape != centred.shape:
        raise InputError(
            expected=f"a classifier of shape {tuple(centred.T.shape)}, a row for each class",
            found=f"shape {tuple(weight.shape)}",
            remedy="pass the weight of the layer that reads these features",
        )
    scale = lambda matrix: matrix / torch.linalg.matrix_norm(matrix).clamp(min=torch.finfo(matrix.dtype).tiny)  # noqa: E731
    return float(torch.linalg.matrix_norm(scale(weight.T) - scale(centred)))


@dataclass(frozen=True)
class _Groups:
    """Features by class: the classes in ascending order, their sizes and means, and each example's deviation."""

    classes: Tensor
    counts: Tensor
    means: Tensor
    deviations: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor) -> "_Groups":
        rows = features.flatten(1).double()
        if labels.shape != rows.shape[:1] or not torch.isfinite(rows).all():
            raise InputError(
                expected="finite features and one label for each row of them",
                found=f"features of shape {tuple(features.shape)} with {int((~torch.isfinite(rows)).sum())} entries "
                f"not finite, labels of shape {tuple(labels.shape)}",
                remedy="pass features as (n, ...) and labels as (n,)",
            )
        classes, of = torch.unique(labels.to(rows.device), return_inverse=True)
        if len(classes) < 2:
            raise InputError(
                expected="examples of two classes or more",
                found=f"{len(classes)} in {len(rows)} examples",
                remedy="add examples of another class",
            )
        counts = torch.bincount(of).to(rows)
        sums = rows.new_zeros(len(classes), rows.shape[1]).index_add(0, of, rows)
        means = sums / counts[:, None]
        return cls(classes, counts, means, rows - means[of])
