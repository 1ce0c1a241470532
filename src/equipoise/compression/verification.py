"""Agreement of two models: predictions and margins on the data, on a holdout, and the radius of exactness."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import jacrev, vmap

from equipoise.compression.data import DataBatches, output_batches, outputs
from equipoise.compression.exact import relative_change
from equipoise.compression.layers import layer
from equipoise.compression.structure import LAYERS
from equipoise.decomposition.path_lifting import path_norm
from equipoise.errors import InputError
from equipoise.graph.capture import Captured
from equipoise.graph.evaluate import piecewise_linear, recorded
from equipoise.graph.piecewise import Rectifier
from equipoise.measure.margins import binary_margins, class_margins
from equipoise.models import copied_model


@dataclass(frozen=True, eq=False)
class KeptChannels:
    """The channels of a layer that are left, and the layers that read them."""

    kept: Int64[Tensor, " kept"]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """Two models on the same examples.

    `output_change` is `‖f' - f‖ / ‖f‖` over all outputs. `changed` counts examples whose predicted class differs, and
    `margin_change` is the interval of `m' - m` over all margins `f_y - f_c` (`y f` for one score), both None without
    classes. Accuracies are None without labels.
    """

    examples: int
    output_change: float
    changed: int | None = None
    margin_change: tuple[float, float] | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """The Clopper–Pearson interval of the probability of the same prediction, for examples drawn independently.

        >>> low, high = Agreement(1000, 0.01, changed=0).interval()
        >>> round(low, 4), high
        (0.9963, 1.0)
        """
        if self.changed is None:
            return None
        from scipy.stats import binomtest  # slow to import, and needed here only

        found = binomtest(self.examples - self.changed, self.examples).proportion_ci(confidence, "exact")
        return float(found.low), float(found.high)


def agreement(before: nn.Module, after: nn.Module, examples: DataBatches, labels: Tensor | None) -> Agreement:
    """Compare two models, from nothing but themselves and the data.

    Args:
        before: the original model.
        after: the compressed one.
        examples: inputs.
        labels: classes, or signs for one score; None for outputs without classes.

    Returns:
        What they agree in.

    >>> model = nn.Linear(2, 3)
    >>> agreement(model, model, DataBatches(torch.randn(5, 2)), torch.tensor([0, 1, 2, 0, 1])).changed
    0
    """
    old, new = outputs(before, examples), outputs(after, examples)
    change = relative_change(old, new)
    if labels is None:
        return Agreement(len(examples), change)
    old, new = scores(old), scores(new)
    targets = classes_of(labels, old)
    margins_before, margins_after = _margins(old, targets), _margins(new, targets)
    difference = margins_after.double() - margins_before.double()
    predicted_before, predicted_after = predictions(old), predictions(new)
    return Agreement(
        len(examples),
        change,
        int((predicted_before != predicted_after).sum()),
        (float(difference.min()), float(difference.max())),
        float((predicted_before == targets).double().mean()),
        float((predicted_after == targets).double().mean()),
    )


@dataclass(frozen=True, eq=False)
class OutputReference:
    """Outputs of the original on some examples, to which those of smaller models are compared."""

    examples: DataBatches
    outputs: Float[Tensor, "n ..."]
    tolerance: float
    keep_predictions: bool

    def accepts(self, model: nn.Module) -> bool:
        """Whether a model, run in the dtype of the outputs, is within the tolerance, and predicts the same classes.

        It is run batch by batch, and no further once the answer is no.
        """
        made = copied_model(model).to(self.outputs.dtype)
        allowed, place = self.tolerance * float(self.outputs.double().norm()), 0
        left = allowed * allowed
        try:
            for after in output_batches(made, self.examples):
                before = self.outputs[place : place + len(after)]
                place += len(after)
                left -= float((after.double() - before.double()).square().sum())
                if not left >= 0 or (self.keep_predictions and not _same_classes(before, after)):
                    return False
        except InputError:
            return False
        return True


def _same_classes(before: Tensor, after: Tensor) -> bool:
    return bool((predictions(scores(before)) == predictions(scores(after))).all())


def scores(outputs: Tensor) -> Float[Tensor, "n classes"]:
    """Outputs as one row of scores an example; raises `InputError` for outputs that are no scores."""
    if outputs.ndim == 1:
        return outputs[:, None]
    if outputs.ndim == 2:
        return outputs
    raise InputError(
        expected="one score, or one a class, for each example",
        found=f"outputs of shape {tuple(outputs.shape)}",
        remedy="pass (X, None): outputs are then compared as they are",
    )


def predictions(scores: Float[Tensor, "n classes"]) -> Int64[Tensor, " n"]:
    """The predicted class; of one score, 1 where it is positive."""
    return (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)


def classes_of(labels: Tensor, scores: Float[Tensor, "n classes"]) -> Int64[Tensor, " n"]:
    """Labels as class indices; raises `InputError` for a wrong number or wrong values of them."""
    flat = labels.reshape(-1).to(scores.device)
    if len(flat) != len(scores):
        raise InputError(
            expected=f"a label for each of {len(scores)} examples",
            found=f"{len(flat)}",
            remedy="pass (X, y) of one length",
        )
    values = flat.double()
    if scores.shape[1] == 1:
        if not bool(((values.abs() == 1) | (values == 0)).all()) or bool((values == 0).any() & (values == -1).any()):
            raise InputError(expected="labels -1 and +1, or 0 and 1", found=_some(values), remedy="map the two classes")
        return (values > 0).long()
    if not bool(((values == values.round()) & (values >= 0) & (values < scores.shape[1])).all()):
        raise InputError(
            expected=f"labels 0 … {scores.shape[1] - 1}", found=_some(values), remedy="pass class indices as y"
        )
    return values.long()


def _some(values: Tensor) -> str:
    return ", ".join(f"{value:g}" for value in values.unique()[:6].tolist())


def _margins(scores: Float[Tensor, "n classes"], targets: Int64[Tensor, " n"]) -> Float[Tensor, " n *others"]:
    """`y f` for one score, `f_y - f_c` for several."""
    return binary_margins(scores, 2 * targets - 1) if scores.shape[1] == 1 else class_margins(scores, targets)


def exactness_radius(captured: Captured, parameters: dict[str, Tensor], inputs: Tensor) -> Float[Tensor, " n"] | None:
    """The Euclidean distance from each example to the nearest kink of a piecewise linear network.

    Within it every neuron keeps its side, so that neurons that are active together at an example stay so, and exact
    moves are exact at every input in the ball. All preactivations are affine there: the distance to the kink of one is
    `|z| / ‖∂z/∂x‖`. None for a network that bends otherwise than by ReLU.

    >>> from equipoise.graph.capture import capture
    >>> model = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).double()
    >>> with torch.no_grad():
    ...     weights = {"0.weight": torch.tensor([[2.0]]).double(), "0.bias": torch.tensor([-1.0]).double()}
    >>> exactness_radius(capture(model, torch.zeros(2, 1).double()), weights, torch.tensor([[0.0], [3.0]]).double())
    tensor([0.5000, 2.5000], dtype=torch.float64)
    """
    kinks = piecewise_linear(captured)
    if kinks is None or not all(isinstance(kink.map, Rectifier) for kink in kinks):
        return None

    def preactivations(example: Tensor) -> Tensor:
        _, found = recorded(captured, kinks, parameters, example[None])
        return torch.cat([each.flatten() for each in found])

    values = vmap(preactivations)(inputs)
    slopes = vmap(jacrev(preactivations))(inputs).flatten(2).norm(dim=2)
    distances = torch.where(slopes > 0, values.abs() / slopes, torch.inf)
    return distances.amin(1)


def widened(base: nn.Module, smaller: nn.Module, kept: Mapping[str, KeptChannels]) -> dict[str, Tensor]:
    """The parameters of the smaller model in the places of the larger one, zero where channels are left out.

    Two factors are multiplied.

    Raises:
        InputError: where a layer has a bias that the larger one has no place for.
    """
    weights = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    read = {reader: each for each in kept.items() for reader in each[1].readers}
    for name in [name for name, module in base.named_modules() if isinstance(module, LAYERS)]:
        module = layer(base, name)
        weight, bias = _product(smaller.get_submodule(name))
        rows = kept[name].kept if name in kept else torch.arange(len(module.weight))
        full = torch.zeros_like(module.weight)
        if name in read:
            writer, channels = read[name]
            count = len(base.get_parameter(f"{writer}.weight"))
            spread = full.view(len(full), count, -1)
            spread[rows[:, None], channels.kept] = weight.reshape(len(rows), len(channels.kept), -1).to(full)
        else:
            full[rows] = weight.reshape(len(rows), *full.shape[1:]).to(full)
        weights[f"{name}.weight"] = full
        if module.bias is not None:
            held = torch.zeros_like(module.bias)
            held[rows] = 0.0 if bias is None else bias.to(held)
            weights[f"{name}.bias"] = held
        elif bias is not None and bool(bias.any()):
            raise InputError(
                expected="the layers of the original", found=f"a bias of {name} that it has not", remedy="see radius()"
            )
    return weights


def _product(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight as a matrix, and the bias, of a layer or of factors of which only the last has one."""
    layers = list(module) if isinstance(module, nn.Sequential) else [module]
    *before, last = (_matrix(each) for each in layers)
    weight, bias = last
    for first, _ in reversed(before):
        weight = weight @ first
    return weight, bias


def _matrix(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    assert isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return module.weight.detach().flatten(1), None if module.bias is None else module.bias.detach()


def path_metric_bound(captured: Captured, weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """An upper bound of `‖Φ(w) - Φ(w')‖₁` over all paths, for weights of the same signs (T10; Gonon et al. 2024).

    With `u` the smaller of each pair of weights in size, `|Φ_π(w) - Φ_π(w')| ≤ (|Φ_π(w)| - |Φ_π(u)|) + (|Φ_π(w')| -
    |Φ_π(u)|)`, and each of the three sums is one pass through the graph. If the signs agree, outputs differ by at most
    `max(‖x‖_∞, 1)` times as much at any input, in the sum of their absolute values.

    Raises:
        InputError: for a weight that changes its sign, and for networks that are not piecewise linear.

    >>> from equipoise.graph.capture import capture
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    >>> one, two = ({"0.weight": torch.tensor([[a]]), "2.weight": torch.tensor([[3.0]])} for a in (1.0, 2.0))
    >>> path_metric_bound(capture(model, torch.ones(2, 1).double()), one, two)
    3.0
    """
    for name, weight in weights.items():
        changed = int((weight * others[name] < 0).sum())
        if changed:
            raise InputError(
                expected="weights that keep their signs, without which the bound says nothing",
                found=f"{changed} of {name} that change theirs",
                remedy="take a smaller tolerance, or recheck on more data",
            )
    least = {
        name: torch.where(weight.abs() < others[name].abs(), weight, others[name]) for name, weight in weights.items()
    }
    norms = [path_norm(captured, each) for each in (weights, others, least)]
    return max(norms[0] - norms[2], 0.0) + max(norms[1] - norms[2], 0.0)
