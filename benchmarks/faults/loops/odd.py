"""Inputs, signatures and observers that nothing can be done with, or that fail."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import equipoise as eq
from loops.base import RECIPES, Loop, batch, plain, recipe
from loops.models import Embedded, Noisy, Odd, perceptron, with_dropout


@recipe
def scripted() -> Loop:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plain(torch.jit.script(perceptron()))


@recipe
def odd_signature() -> Loop:
    model = Odd()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        x, y = batch(number)
        F.cross_entropy(model({"x": x}, "unused", scale=2.0, more=None)["out"], y).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def nested_input() -> Loop:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        x = batch(number)[0]
        nested = torch.nested.nested_tensor([x[:3], x[3:]], layout=torch.jagged)
        model(nested).values().square().mean().backward()
        optimizer.step()

    return Loop(model, optimizer, step)


class Dequantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.dequantize())


@recipe
def quantised_input() -> Loop:
    model = Dequantised()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        x, y = batch(number)
        F.cross_entropy(model(torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)), y).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def sparse_gradients() -> Loop:
    return plain(Embedded(sparse=True))


def _warnings_as_errors(loop: Loop) -> Loop:
    inner = loop.step

    def step(number: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            inner(number)

    loop.step = step
    return loop


class Raises:
    """As an observer, a sink, a rule, and what is told of alarms."""

    name = "raises"

    def init(self, scene: Any) -> Any:
        return {}

    def observe(self, scene: Any, memory: Any, snapshot: Any) -> Any:
        raise KeyError("observer")

    def write(self, records: Any) -> None:
        raise OSError("disk full")

    def close(self) -> None:
        raise OSError("disk full")

    def __call__(self, record: Any) -> None:
        raise ValueError("rule")


RECIPES |= {
    "warnings are errors": lambda: _warnings_as_errors(plain(perceptron(), alarms=[Raises()])),
    "an observer raises": lambda: plain(perceptron(), observe=[Raises(), eq.Spectrum()]),
    "a sink raises": lambda: plain(perceptron(), sinks=[Raises()]),
    "a rule raises": lambda: plain(perceptron(), alarms=[Raises()]),
    "full looks": lambda: plain(perceptron(), full=True),
    "all observers": lambda: plain(
        with_dropout(),
        observe=[eq.Spectrum(), eq.Alignment(), eq.Drift(), eq.Residual(), eq.Activity(batch(1)[0]), eq.Signs()],
    ),
    "probes that draw": lambda: plain(Noisy(), observe=[eq.Activity(batch(1)[0]), eq.Margin(batch(1))]),
}
