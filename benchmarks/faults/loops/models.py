"""Models to train, among them some that make it hard to watch them."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import checkpoint


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


def deep_linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10, bias=False), nn.Linear(10, 10, bias=False), nn.Linear(10, 3, bias=False))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


def batch_normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3))


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 12), nn.Linear(12, 3))


class Reshaped(nn.Module):
    def __init__(self, inner: nn.Module, *shape: int):
        super().__init__()
        self.inner, self.shape = inner, shape

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.reshape(len(x), *self.shape))


def convolutional() -> nn.Module:
    layers = [nn.Conv2d(1, 4, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2, padding=1), nn.ReLU()]
    return Reshaped(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)), 1, 2, 3)


class Attention(nn.Module):
    """Self-attention over three tokens, rotated by a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.q, self.k, self.v = nn.Linear(2, 8), *(nn.Linear(8, 8) for _ in range(3))
        self.out, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("turn", torch.linalg.qr(torch.randn(8, 8)).Q, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x.reshape(len(x), 3, 2))
        scores = (self.q(x) @ self.turn) @ self.k(x).mT / 8**0.5
        return self.head((x + self.out(scores.softmax(-1) @ self.v(x))).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.reshape(len(x), 3, 2))[0][:, -1])


class Embedded(nn.Module):
    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 6, sparse=sparse), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table((x.abs() * 7).long() % 20).mean(1))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant, self.inner, self.dropout = reentrant, perceptron(), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.inner:
            x = checkpoint.checkpoint(layer, x.requires_grad_(), use_reentrant=self.reentrant)
        return self.dropout(x)


class Cast(nn.Module):
    """Autocast begins inside `forward`, as in models that a trainer has prepared."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", self.dtype):
            return self.inner(x).float()


class HalfInside(nn.Module):
    """Casts of the user's own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu().to(self.dtype)
        x = F.linear(x, self.second.weight.to(self.dtype), self.second.bias.to(self.dtype)).relu()
        return self.third(x.float())


class Noisy(nn.Module):
    """Draws from every global generator in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.1 * torch.randn_like(x) + 0.1 * random.random() + 0.1 * float(np.random.rand()))  # noqa: NPY002


class Counting(nn.Module):
    """Changes attributes, buffers and lists of its own in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls, self.seen = perceptron(), 0, []
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.total += self.calls
        return self.inner(x)


class Willful(nn.Module):
    """Copying it draws random numbers and changes its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Willful":
        torch.randn(3)
        random.random()
        with torch.no_grad():
            self.inner[0].weight.mul_(0.5)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Stubborn(nn.Module):
    """A path that depends on values, which nothing can read."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if float(x.sum()) > -1e9 else x


class Odd(nn.Module):
    """A signature of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, *parts: Any, scale: float = 1.0, **rest: Any) -> dict[str, Tensor]:
        return {"out": self.inner(parts[0]["x"]) * scale}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": perceptron,
    "deep_linear": deep_linear,
    "layer_norm": normalised,
    "batch_norm": batch_normalised,
    "dropout": with_dropout,
    "gelu": smooth,
    "convolution": convolutional,
    "attention": Attention,
    "lstm": Recurrent,
    "embedding": Embedded,
    "weight_norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 12)), nn.ReLU(), nn.Linear(12, 3)
    ),
    "spectral_norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 12)), nn.ReLU(), nn.Linear(12, 3)
    ),
    "checkpoint": lambda: Checkpointed(reentrant=False),
    "checkpoint_reentrant": lambda: Checkpointed(reentrant=True),
    "bf16_inside": lambda: Cast(perceptron(), torch.bfloat16),
    "fp16_inside": lambda: Cast(perceptron(), torch.float16),
    "bf16_casts": lambda: HalfInside(torch.bfloat16),
    "noisy": Noisy,
    "counting": Counting,
    "willful": Willful,
    "stubborn": Stubborn,
}
