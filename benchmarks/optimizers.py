"""Cost of each optimizer and parametrisation beside plain SGD: one training of digits each, in one process.

    python benchmarks/optimizers.py
    python benchmarks/optimizers.py --width 512 --steps 200

Printed as JSON: median processor seconds a step over those of `torch.optim.SGD` on the same network and batch.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

import equipoise as eq

Step = Callable[[], object]


def network(width):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def plain(model, X, y, make=None, criterion=nn.functional.cross_entropy) -> Step:
    optimizer = (make or (lambda parameters: torch.optim.SGD(parameters, lr=1e-3)))(model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = criterion(model(X), y)
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)


def sharp(kind):
    return lambda model, X, y: plain(
        model, X, y, lambda parameters: eq.optim.SAM(torch.optim.SGD(parameters, lr=1e-3), kind)
    )


def low_rank(model, X, y) -> Step:
    loss = eq.optim.oracle(model, lambda model: nn.functional.cross_entropy(model(X), y))
    return eq.optim.LowRankGD(model.parameters(), 4, loss, lr=1e-3).step


def proximal(parameters):
    matrices, others = [], []
    for parameter in parameters:
        (matrices if parameter.ndim > 1 else others).append(parameter)
    return eq.optim.ProximalSGD([{"params": matrices}, {"params": others, "strength": 0.0}], lr=1e-3)


def adjusted(make):
    return lambda model, X, y: plain(model, X, y, criterion=make(torch.bincount(y, minlength=10).tolist()).float())


def factorized(model, X, y) -> Step:
    return plain(eq.parametrize.factorize(model), X, y)


def udv(model, X, y) -> Step:
    return plain(eq.parametrize.udv(model, rank=8), X, y)


TOOLS: dict[str, Callable[..., Step]] = {
    "SGD": plain,
    **{f"SAM, {kind}": sharp(kind) for kind in ("plain", "trace", "frobenius", "determinant")},
    "LowRankGD, rank 4": low_rank,
    "ProximalSGD": lambda model, X, y: plain(model, X, y, proximal),
    "cross-entropy, label-dependent": adjusted(eq.losses.label_dependent),
    "cross-entropy, class-dependent": adjusted(eq.losses.class_dependent),
    "cross-entropy, logits adjusted": adjusted(eq.losses.logit_adjustment),
    "factorize, depth 2": factorized,
    "udv, rank 8": udv,
}


def seconds(step: Step, steps: int) -> float:
    for _ in range(3):
        step()
    spent = []
    for _ in range(steps):
        begun = time.process_time()
        step()
        spent.append(time.process_time() - begun)
    return median(spent)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=256)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    X, y = eq.data.load("digits", n=asked.batch)
    X = X.float()
    spent = {name: seconds(make(network(asked.width), X, y), asked.steps) for name, make in TOOLS.items()}
    print(json.dumps({name: round(value / spent["SGD"], 2) for name, value in spent.items()}, indent=1))


if __name__ == "__main__":
    main()
