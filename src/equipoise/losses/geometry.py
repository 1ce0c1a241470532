"""The geometry of classifiers and features that cross-entropy leads to under imbalance: predicted, and measured.

With free features and a vanishing ridge, training solves `min ‖Z‖_*` over logits with adjusted margins of one at least
(Thrampoulidis et al. 2022). The candidate is `Z = P diag(1/δ) Y`: all margins are one, and `P` projects along the
direction in which scores can shift without changing a margin: `1` for label-dependent temperatures, `1/δ` for
class-dependent ones (Behnia et al. 2023). `W Wᵀ = (Z Zᵀ)^½` and `Hᵀ H = (Zᵀ Z)^½` follow. That it is the minimum is not
taken on trust: its dual multipliers are computed, and it is `certified` where none is negative.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.errors import InputError
from equipoise.losses.imbalance import AdjustedCrossEntropy


@dataclass(frozen=True)
class ImplicitGeometry:
    """Gram matrices of unit Frobenius norm, and the logits of the mean of each class.

    Attributes:
        classifiers: `W Wᵀ`, of the rows of the last layer.
        features: `M̄ᵀ M̄`, of the mean features of the classes.
        logits: `W M̄`, a column for each class.
        certified: whether dual multipliers prove that a prediction is the minimum; True of a measurement.
    """

    classifiers: Float[Tensor, "classes classes"]
    features: Float[Tensor, "classes classes"]
    logits: Float[Tensor, "classes classes"]
    certified: bool = True

    def cosines(self, other: "ImplicitGeometry") -> dict[str, float]:
        """Cosines between these matrices and those of another geometry: 1 where they agree up to scale."""
        names = ("classifiers", "features", "logits")
        return {name: float((getattr(self, name) * getattr(other, name)).sum()) for name in names}


def predicted_geometry(loss: AdjustedCrossEntropy | None, counts: Sequence[int]) -> ImplicitGeometry:
    """The geometry that a loss leads to with free features, as the ridge vanishes.

    Args:
        loss: of `label_dependent`, `class_dependent` or `logit_adjustment`; None for the plain cross-entropy.
        counts: the number of examples of each class.

    Returns:
        The geometry, with `certified` False where the multipliers do not prove it.

    Raises:
        InputError: for a scale that depends on label and class at once, and another number of classes.

    >>> from equipoise.losses import label_dependent
    >>> simplex = predicted_geometry(label_dependent([50, 50, 2]), [50, 50, 2]).classifiers
    >>> bool(torch.allclose(simplex / simplex[0, 0], 1.5 * torch.eye(3).double() - 0.5))
    True
    """
    number = torch.as_tensor(counts, dtype=torch.float64)
    classes = len(number)
    scale = torch.ones(classes, classes).double() if loss is None else loss.scale.cpu()
    if len(scale) != classes:
        raise InputError(
            expected=f"counts of {len(scale)} classes", found=f"{classes}", remedy="pass those of all classes"
        )
    by_label, by_class = bool((scale == scale[:, :1]).all()), bool((scale == scale[:1]).all())
    if not by_label and not by_class:
        raise InputError(
            expected="a scale that depends on the label alone or on the class alone",
            found="one that depends on both",
            remedy="pass label_dependent(counts) or class_dependent(counts)",
        )
    delta = scale.diagonal()
    free = torch.ones_like(delta) if by_label else 1 / delta
    free = free / free.norm()
    mean = (torch.eye(classes).double() - torch.outer(free, free)) / delta  # Z, a column for each class
    values, vectors = torch.linalg.eigh((mean * number) @ mean.T)
    root = values[1:].sqrt()
    span = vectors[:, 1:]  # the free direction is the null space
    classifiers, inverse = (span * root) @ span.T, (span / root) @ span.T
    multipliers = inverse @ mean  # U Vᵀ, a column for each class: off the diagonal it must not be positive
    outside = multipliers[~torch.eye(classes, dtype=torch.bool)]
    certified = bool((outside <= 1e-12 * multipliers.abs().max()).all())
    return _unit(classifiers, mean.T @ inverse @ mean, mean, certified)


def measured_geometry(
    weight: Float[Tensor, "classes width"], features: Float[Tensor, "n width"], labels: Int[Tensor, " n"]
) -> ImplicitGeometry:
    """The geometry of a trained last layer and the features that it reads.

    Args:
        weight: of the last layer.
        features: one row an example.
        labels: class indices; each class must occur.

    Returns:
        The geometry.

    Raises:
        InputError: for a class without examples, and shapes that do not match.

    >>> corners = torch.eye(2)
    >>> measured_geometry(corners, corners, torch.tensor([0, 1])).logits
    tensor([[0.7071, 0.0000],
            [0.0000, 0.7071]], dtype=torch.float64)
    """
    W, H = weight.detach().double(), features.detach().double()
    counts = torch.bincount(labels, minlength=len(W)) if len(labels) else torch.zeros(len(W))
    if len(labels) != len(H) or H.ndim != 2 or H.shape[1] != W.shape[1] or len(counts) != len(W) or not counts.all():
        raise InputError(
            expected="a row of features and a label for each example, and examples of each class of the weight",
            found=f"weight {tuple(W.shape)}, features {tuple(H.shape)}, counts {counts.tolist()}",
            remedy="pass the inputs of the last layer, flattened",
        )
    means = torch.stack([H[labels == place].mean(0) for place in range(len(W))])
    return _unit(W @ W.T, means @ means.T, W @ means.T, True)


def _unit(classifiers: Tensor, features: Tensor, logits: Tensor, certified: bool) -> ImplicitGeometry:
    return ImplicitGeometry(
        classifiers / classifiers.norm(), features / features.norm(), logits / logits.norm(), certified
    )
