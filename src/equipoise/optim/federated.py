"""Federated training as plain functions over clients: averaging, and low-rank gradient descent on the server.

Where a loss is smooth in its examples, `∇f(x; θ) ≈ Σ_j w_j(x) ∇f(x_j; θ)` for a few points `x_j` of the server and all
`θ`: each client finds the mean of its weights `w` once, at a few anchors `θ`, and sends them; the server then descends
alone (Jadbabaie, Makur & Shah 2023). The weights are by least squares here, over all anchors and coordinates, where the
paper inverts a matrix for each coordinate: a client sends `r` numbers, not `r` for each parameter.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from equipoise.arguments import checked
from equipoise.errors import InputError
from equipoise.optim.validation import require_positive

Examples = tuple[Tensor, Tensor]
LossFunction = Callable[[Tensor, Tensor], Tensor]  # of outputs and targets: the mean over the examples
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class FederatedResult:
    """A model trained by clients.

    Attributes:
        model: a trained copy.
        losses: of all clients, weighted by their examples: at the start, and after each round, or each step of the
            server.
        rounds: of communication, in each of which every client receives and sends once.
        numbers: that all clients have sent, altogether.
    """

    model: nn.Module = field(repr=False)
    losses: tuple[float, ...] = field(repr=False)
    rounds: int
    numbers: int


@checked
def fed_avg(
    model: nn.Module,
    clients: Sequence[Examples],
    loss: LossFunction,
    *,
    rounds: int,
    lr: float,
    local_steps: int = 1,
) -> FederatedResult:
    """Federated averaging: full-batch gradient steps at each client, whose weights are averaged (McMahan et al. 2017).

    Args:
        model: with its initial weights; it is left as it is.
        clients: the examples of each, as `(X, y)`.
        loss: the mean of outputs and targets.
        rounds: of communication.
        lr: learning rate of the clients.
        local_steps: of each client in a round.

    Returns:
        The result.

    Raises:
        InputError: without clients, and for counts and rates that are not positive.

    >>> X, y = torch.randn(8, 2), torch.randn(8, 1)
    >>> found = fed_avg(nn.Linear(2, 1), [(X[:4], y[:4]), (X[4:], y[4:])], nn.functional.mse_loss, rounds=5, lr=0.1)
    >>> found.losses[-1] < found.losses[0], found.numbers
    (True, 30)
    """
    _require(clients, rounds=rounds, lr=lr, local_steps=local_steps)
    own = copy.deepcopy(model)
    shares = _shares(clients)
    losses = [_total(own, clients, loss, shares)]
    for _ in range(rounds):
        trained = []
        for X, y in clients:
            local = copy.deepcopy(own)
            optimizer = torch.optim.SGD(local.parameters(), lr=lr)
            for _ in range(local_steps):
                optimizer.zero_grad()
                loss(local(X), y).backward()
                optimizer.step()
            trained.append(list(local.parameters()))
        with torch.no_grad():
            for parameter, values in zip(own.parameters(), zip(*trained, strict=True), strict=True):
                parameter.copy_(
                    torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum(0)
                )
        losses.append(_total(own, clients, loss, shares))
    size = sum(parameter.numel() for parameter in own.parameters())
    return FederatedResult(own, tuple(losses), rounds, rounds * size * len(clients))


@checked
def fed_lrgd(
    model: nn.Module,
    clients: Sequence[Examples],
    server: Examples,
    loss: LossFunction,
    *,
    steps: int,
    lr: float,
    anchors: int = 4,
    spread: float = 1.0,
    seed: int = 0,
) -> FederatedResult:
    """Low-rank federated descent: one round for the weights of the server's points, then the server alone (FedLRGD).

    Args:
        model: with its initial weights; it is left as it is.
        clients: the examples of each, as `(X, y)`.
        server: the `r` points of the server, as `(X, y)`.
        loss: the mean of outputs and targets.
        steps: of the server.
        lr: its learning rate.
        anchors: the number of parameters at which clients compare gradients.
        spread: their distance from the initial ones, as a standard deviation.
        seed: of the anchors.

    Returns:
        The result.

    Raises:
        InputError: as `fed_avg`.

    >>> X, y = torch.randn(8, 1), torch.zeros(8, 1)
    >>> smooth = lambda output, y: (output - y).square().mean()
    >>> found = fed_lrgd(nn.Linear(1, 1), [(X, y)], (X[:4], y[:4]), smooth, steps=20, lr=0.1)
    >>> found.losses[-1] < found.losses[0], found.rounds, found.numbers
    (True, 1, 4)
    """
    _require(clients, steps=steps, lr=lr, anchors=anchors, spread=spread)
    points = anchor_parameters(model, anchors, spread, seed)
    shares = _shares(clients)
    found = [server_weights(model, examples, server, loss, points) for examples in clients]
    weights = sum((share * each for share, each in zip(shares, found, strict=True)), torch.zeros_like(found[0]))
    own = copy.deepcopy(model)
    losses = [_total(own, clients, loss, shares)]
    for _ in range(steps):
        descend(own, server, loss, weights, steps=1, lr=lr)
        losses.append(_total(own, clients, loss, shares))
    return FederatedResult(own, tuple(losses), 1, len(weights) * len(clients))


def anchor_parameters(model: nn.Module, count: int, spread: float = 1.0, seed: int = 0) -> tuple[Parameters, ...]:
    """The parameters of a model, and others at random around them, the same on every machine.

    Args:
        model: the model.
        count: how many.
        spread: standard deviation of the others.
        seed: of these.

    Returns:
        Parameters by name, those of the model first.
    """
    generator = torch.Generator().manual_seed(seed)
    start = {name: parameter.detach() for name, parameter in model.named_parameters()}
    moved = [
        {
            name: value + spread * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
            for name, value in start.items()
        }
        for _ in range(count - 1)
    ]
    return (start, *moved)


def server_weights(
    model: nn.Module, examples: Examples, server: Examples, loss: LossFunction, anchors: Sequence[Parameters]
) -> Float[Tensor, " r"]:
    """The message of a client: weights of the server's points whose gradients are nearest to its own, at all anchors.

    Args:
        model: the model.
        examples: of the client.
        server: the points of the server.
        loss: the mean of outputs and targets.
        anchors: parameters, the same for all.

    Returns:
        `argmin_w Σ_k ‖mean ∇f(x; θ_k) - Σ_j w_j ∇f(x_j; θ_k)‖²`, of least norm, in float64.
    """
    columns = torch.cat([example_gradients(model, server, loss, each).double() for each in anchors], 1)
    own = torch.cat([example_gradients(model, examples, loss, each).double().mean(0) for each in anchors])
    return torch.linalg.lstsq(columns.T, own[:, None], rcond=1e-12, driver="gelsd").solution.flatten()


def example_gradients(
    model: nn.Module, examples: Examples, loss: LossFunction, parameters: Parameters
) -> Float[Tensor, "n p"]:
    """The gradient of the loss of each example, flat."""

    def single(parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, parameters, (x[None],)), y[None])

    found = vmap(grad(single), in_dims=(None, 0, 0))(parameters, *examples)
    return torch.cat([each.flatten(1) for each in found.values()], 1)


def descend(
    model: nn.Module, server: Examples, loss: LossFunction, weights: Float[Tensor, " r"], *, steps: int, lr: float
) -> nn.Module:
    """Gradient descent of the server on `Σ_j w_j f(x_j; θ)`, in place.

    Args:
        model: changed in place.
        server: its points.
        loss: the mean of outputs and targets.
        weights: one for each point.
        steps: of descent.
        lr: learning rate.

    Returns:
        The model.
    """
    named = dict(model.named_parameters())
    for _ in range(steps):
        current = {name: parameter.detach() for name, parameter in named.items()}
        rows = example_gradients(model, server, loss, current)
        flat = weights.to(rows) @ rows
        with torch.no_grad():
            parts = flat.split([parameter.numel() for parameter in named.values()])
            for parameter, part in zip(named.values(), parts, strict=True):
                parameter.sub_(part.view_as(parameter), alpha=lr)
    return model


def _shares(clients: Sequence[Examples]) -> list[float]:
    total = sum(len(X) for X, _ in clients)
    return [len(X) / total for X, _ in clients]


def _total(model: nn.Module, clients: Sequence[Examples], loss: LossFunction, shares: Sequence[float]) -> float:
    with torch.no_grad():
        return sum(share * float(loss(model(X), y)) for share, (X, y) in zip(shares, clients, strict=True))


def _require(clients: Sequence[Examples], **positive: float) -> None:
    if not clients or any(not len(X) or len(X) != len(y) for X, y in clients):
        raise InputError(
            expected="clients with examples, a label each",
            found=f"{[(len(X), len(y)) for X, y in clients]}",
            remedy="pass [(X1, y1), (X2, y2)]",
        )
    for name, value in positive.items():
        require_positive(name, value, f"pass {name}=1")
