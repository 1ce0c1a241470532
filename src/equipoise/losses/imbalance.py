"""Cross-entropy for imbalanced classes: logits scaled by the label, scaled by the class, or shifted by the class.

All three are the cross-entropy of `z̃_ic = s_{y_i c} z_ic + t_c`: label-dependent temperatures (LDT) have `s_yc = δ_y`,
class-dependent ones (CDT; Ye et al. 2020) `s_yc = δ_c`, additive logit adjustment (LA; Menon et al. 2021) shifts alone;
CDT and LA together are the vector-scaling loss (Kini et al. 2021). Separable data forget the shifts, while temperatures
change the geometry that training leads to (Behnia, Kini, Vakilian & Thrampoulidis 2023).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.errors import InputError
from equipoise.losses.margin_losses import CrossEntropy, Differential

Json = Mapping[str, list]


class AdjustedCrossEntropy(nn.Module):
    """Mean cross-entropy of `s_{y_i c} z_ic + t_c`: a module for training, and a loss of `eq.flow`.

    As a loss of `eq.flow` it is the cross-entropy of the adjusted margins `z̃_{y_i} - z̃_c`, which take the place of the
    margins in all that a run records and a certificate states.

    Args:
        scale: `s`, a row for each label and a column for each class, positive.
        shift: `t`, one for each class; none if None.

    Raises:
        InputError: for a scale that is not square and positive, and another number of shifts than of classes.

    >>> loss = AdjustedCrossEntropy(torch.tensor([[2.0, 2.0], [1.0, 1.0]]))
    >>> scores, labels = torch.tensor([[1.0, 3.0]]), torch.tensor([0])
    >>> bool(loss(scores, labels) == nn.functional.cross_entropy(2 * scores, labels))
    True
    """

    multiclass = True
    exponential_tail = True

    def __init__(
        self,
        scale: Float[Tensor, "classes classes"],
        shift: Float[Tensor, " classes"] | None = None,
        name: str = "adjusted_cross_entropy",
    ):
        super().__init__()
        given = torch.as_tensor(scale, dtype=torch.float64)
        if given.ndim != 2 or given.shape[0] != given.shape[1] or not bool(((given > 0) & given.isfinite()).all()):
            raise InputError(
                expected="a square matrix of positive scales, a row for each label and a column for each class",
                found=f"shape {tuple(given.shape)}, least {float(given.min()) if given.numel() else math.nan:.3g}",
                remedy="pass torch.ones(classes, classes) for shifts alone",
            )
        added = torch.zeros(len(given)).double() if shift is None else torch.as_tensor(shift, dtype=torch.float64)
        if added.shape != given.shape[:1] or not bool(added.isfinite().all()):
            raise InputError(
                expected=f"{len(given)} finite shifts, one for each class",
                found=f"shape {tuple(added.shape)}",
                remedy="pass shift=None for none",
            )
        self.name = name
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", given)
        self.register_buffer("shift", added)

    def forward(self, scores: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """The mean over the examples."""
        self.require_classes(scores.shape[-1])
        return F.cross_entropy(self.adjusted(scores, target), target)

    def adjusted(self, scores: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, "n classes"]:
        """`s_{y_i c} z_ic + t_c`, of which this is the cross-entropy."""
        return self.scale.to(scores)[target] * scores + self.shift.to(scores)

    def mean(self, scores: Tensor, target: Tensor) -> Tensor:
        """The same, under the name that the losses of margins have."""
        return self(scores, target)

    def require_classes(self, classes: int) -> None:
        """Raises `InputError` unless there are that many classes."""
        if classes != len(self.shift):
            raise InputError(
                expected=f"{len(self.shift)} classes, as the {self.name} loss has",
                found=f"{classes} scores",
                remedy="pass the counts of all the classes that the model scores",
            )

    @property
    def ignores_shift(self) -> bool:
        """Whether a common shift of the scores of an example changes nothing: scales that depend on the label alone."""
        return bool((self.scale == self.scale[:, :1]).all())

    def potential(self, margins: Float[Tensor, "n others"]) -> Float[Tensor, "n others"]:
        """`u` of adjusted margins."""
        return CrossEntropy().potential(margins)

    def differential(self, margins: Float[Tensor, "n others"]) -> Differential:
        """`D` at adjusted margins."""
        return CrossEntropy().differential(margins)

    def log_at_zero(self) -> float:
        """`log log 2`, as of the cross-entropy."""
        return CrossEntropy().log_at_zero()

    def inverse(self, log_loss: float) -> float:
        """`ℓ⁻¹` of the cross-entropy: the adjusted margin over one other class."""
        return CrossEntropy().inverse(log_loss)

    def description(self) -> Json:
        """Scale and shift as lists, for a manifest."""
        return {"scale": self.scale.tolist(), "shift": self.shift.tolist()}


def adjustment_of(loss: object) -> AdjustedCrossEntropy | None:
    """The loss, where it adjusts the scores by label or class; None for any other.

    >>> adjustment_of(CrossEntropy()) is None
    True
    """
    return loss if isinstance(loss, AdjustedCrossEntropy) else None


def label_dependent(counts: Sequence[int], gamma: float = 0.5) -> AdjustedCrossEntropy:
    """Cross-entropy with label-dependent temperatures (LDT): `z̃_ic = δ_{y_i} z_ic`, `δ_y = (n_y / max n)^γ`.

    At `γ = ½` separable data lead to the geometry of balanced classes, however imbalanced they are.

    Args:
        counts: `n_c`, the number of examples of each class.
        gamma: `γ`; zero for the plain cross-entropy.

    Returns:
        The loss.

    Raises:
        InputError: for fewer than two classes, counts below one, and a gamma that is not finite.

    >>> label_dependent([100, 25]).scale
    tensor([[1.0000, 1.0000],
            [0.5000, 0.5000]], dtype=torch.float64)
    """
    delta = _temperatures(counts, gamma)
    return AdjustedCrossEntropy(delta[:, None].expand(-1, len(delta)), name="label_dependent")


def class_dependent(counts: Sequence[int], gamma: float = 0.5) -> AdjustedCrossEntropy:
    """Cross-entropy with class-dependent temperatures (CDT): `z̃_ic = δ_c z_ic`, `δ_c = (n_c / max n)^γ`.

    Args:
        counts: `n_c`, the number of examples of each class.
        gamma: `γ`; zero for the plain cross-entropy.

    Returns:
        The loss.

    Raises:
        InputError: as `label_dependent`.

    >>> class_dependent([100, 25]).scale
    tensor([[1.0000, 0.5000],
            [1.0000, 0.5000]], dtype=torch.float64)
    """
    delta = _temperatures(counts, gamma)
    return AdjustedCrossEntropy(delta.expand(len(delta), -1), name="class_dependent")


def logit_adjustment(counts: Sequence[int], tau: float = 1.0) -> AdjustedCrossEntropy:
    """Cross-entropy with additive logit adjustment (LA): `z̃_ic = z_ic + τ log(n_c / n)`.

    Args:
        counts: `n_c`, the number of examples of each class.
        tau: `τ`; zero for the plain cross-entropy.

    Returns:
        The loss.

    Raises:
        InputError: as `label_dependent`.

    >>> logit_adjustment([1, 1]).shift
    tensor([-0.6931, -0.6931], dtype=torch.float64)
    """
    number = _checked(counts, tau, "tau")
    shift = tau * torch.log(number / number.sum())
    return AdjustedCrossEntropy(torch.ones(len(number), len(number)), shift, name="logit_adjustment")


def _temperatures(counts: Sequence[int], gamma: float) -> Float[Tensor, " classes"]:
    number = _checked(counts, gamma, "gamma")
    return (number / number.max()) ** gamma


def _checked(counts: Sequence[int], power: float, name: str) -> Float[Tensor, " classes"]:
    number = torch.as_tensor(counts, dtype=torch.float64)
    if number.ndim != 1 or len(number) < 2 or not bool((number >= 1).all()):
        raise InputError(
            expected="the number of examples of each of two classes or more, at least one each",
            found=f"{counts!r}",
            remedy="pass torch.bincount(y).tolist()",
        )
    if not math.isfinite(power):
        raise InputError(expected=f"a finite {name}", found=repr(power), remedy=f"leave out {name}=")
    return number
