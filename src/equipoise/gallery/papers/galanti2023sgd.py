"""SGD and weight decay provably induce a low-rank bias (Galanti, Siegel, Gupte & Poggio 2023): SGD noise never ends.

With weight decay and batches smaller than the data set, SGD does not converge to a stationary point: its steps stay of
the size of the weights. Were the regularised gradient of every single example zero, each layer would be a multiple of
the gradient of each example alone, a matrix of rank one whose rows lie along that example's input: as the inputs of the
first layer are not all parallel, it is zero, and with it the network.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Outcome, Paper, PaperCase
from equipoise.gallery.literature.training import Quantities, Trace, squared, train
from equipoise.networks import mlp
from equipoise.observers import Snapshot


@dataclass(frozen=True)
class EndlessNoise:
    """A two-layer ReLU network wider than the data set is large, square loss, random data."""

    examples: int = 20
    inputs: int = 10
    hidden: int = 60
    batch: int = 4
    lr: float = 0.04
    weight_decay: float = 1e-2
    steps: int = 8000
    every: int = 100


def measure(case: PaperCase[EndlessNoise]) -> Outcome:
    """The least relative step after a tenth of the training, the last one without decay, the noise over its bound."""
    setting = case.setting
    decayed = noise_run(case, setting.weight_decay, "weight decay")
    plain = noise_run(case, 0.0, "no weight decay")
    late = [value for step, value in decayed.series("relative step") if step >= setting.steps / 10]
    figures = [
        Comparison("relative step after a tenth of the training, weight decay", late[0]),
        Comparison("relative step at the end, weight decay", late[-1]),
        Comparison("loss at the end, weight decay", decayed.last("loss")),
        Comparison("loss at the end, no weight decay", plain.last("loss")),
    ]
    curves = [decayed.curve("weight decay", "relative step"), plain.curve("no weight decay", "relative step")]
    over = min(value for _, value in decayed.series("noise over bound"))
    return Outcome((min(late), plain.last("relative step"), over), figures, curves)


def random_data(case: PaperCase[EndlessNoise]) -> tuple[Tensor, Tensor, nn.Sequential]:
    """Gaussian inputs, random labels ±1, and the network."""
    setting, generator = case.setting, case.generator()
    X = torch.randn(setting.examples, setting.inputs, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 2, (setting.examples,), generator=generator) * 2.0 - 1.0
    return X, y.double(), mlp([setting.inputs, setting.hidden, 1], seed=case.seed)


def noise_run(case: PaperCase[EndlessNoise], decay: float, name: str) -> Trace:
    """One training; the size of the last step over that of the weights, and the loss without the penalty."""
    setting = case.setting
    X, y, model = random_data(case)
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.lr, weight_decay=decay)
    before = [parameters_to_vector(model.parameters()).detach().clone()]

    def remember() -> None:
        before[0] = parameters_to_vector(model.parameters()).detach().clone()

    def figures(_: Snapshot) -> dict[str, float]:
        with torch.no_grad():
            weights = parameters_to_vector(model.parameters())
            return {
                "relative step": float((weights - before[0]).norm() / weights.norm()),
                "loss": float(squared(model(X), y)),
            } | ({"noise over bound": noise_over_bound(model, X, y, decay)} if decay > 0 else {})

    return train(
        case,
        model,
        optimizer,
        squared,
        (X, y),
        steps=setting.steps,
        every=setting.every,
        batch=setting.batch,
        observe=[Quantities(figures)],
        after_step=remember,
        name=name,
    )


def noise_over_bound(model: nn.Sequential, X: Tensor, y: Tensor, decay: float) -> float:
    """`Σ_i ‖∇_W ℓ_i + λW‖²` of the first layer over `λ² ‖W‖² (n - λ_max(Σ x̂_i x̂_iᵀ))`, which it is never below.

    `∇_W ℓ_i` is `u x_iᵀ` for some `u`, so that each term is at least `λ² ‖W (I - x̂_i x̂_iᵀ)‖²`.
    """
    first, second = (weight.detach() for weight in model.parameters())
    hidden = X @ first.T
    errors = (torch.relu(hidden) @ second.T)[:, 0] - y
    gradients = torch.einsum("i,ij,ik->ijk", errors, second * (hidden > 0), X)
    noise = (gradients + decay * first).square().sum()
    unit = X / X.norm(dim=1, keepdim=True)
    room = len(X) - torch.linalg.eigvalsh(unit.T @ unit)[-1]
    return float(noise / (decay**2 * first.square().sum() * room))


PAPER = Paper(
    key="galanti2023sgd",
    claim="With weight decay and batches smaller than the data set SGD never comes to rest, whereas without weight "
    "decay it does once it interpolates; only the zero function is stationary for every batch.",
    basis="Read in the abstracts of two versions of the paper (the memo, and a submission to ICLR 2023), which are one "
    "entry here; the bound on the noise of the first layer is derived in this file, not taken from the paper.",
    quick=EndlessNoise(),
    criteria=(
        Criterion(
            "least ‖w_{t+1} - w_t‖ / ‖w_t‖ at snapshots from a tenth of the training on, with weight decay",
            "≥",
            1e-4,
            "Not to fall over ten times the training. A step moves by ηλ = 4e-4 of the weights by decay alone, which "
            "the gradient of one batch balances in the directions of that batch only; a quarter of it is asked for.",
        ),
        Criterion(
            "‖w_{t+1} - w_t‖ / ‖w_t‖ at the end, without weight decay",
            "≤",
            1e-6,
            "An interpolating network is stationary for every batch, and SGD with a constant step converges to it "
            "linearly: only rounding remains after enough steps.",
        ),
        Criterion(
            "Σ_i ‖∇_W ℓ_i + λW‖² over its lower bound, the least of all snapshots",
            "≥",
            1.0,
            "The inequality is exact: each example's gradient has rank one, along that example. As long as W is not "
            "zero and the examples are not parallel, single-example gradients cannot all vanish.",
        ),
    ),
    measure=measure,
    picture=Picture("step", "relative size of a step"),
    beside=("galanti2022sgd",),
    sampled=False,
)
