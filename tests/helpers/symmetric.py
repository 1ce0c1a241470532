"""Small networks that have every kind of symmetry between them, several kinds in each: a capture is what costs time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from helpers.cases import Attention, LanguageModel, Residual, Squared, SwiGLU, noise, tokens

L = nn.Linear


def folded_convnet() -> nn.Module:
    """Grouped and depthwise convolutions, BatchNorm folded into them, pooling, and a run of three linear layers."""

    def block(channels_in, channels, groups):
        norm = nn.BatchNorm2d(channels)
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            tensor.data.normal_()
        return fuse_conv_bn_eval(nn.Conv2d(channels_in, channels, 3, groups=groups).eval(), norm.eval())

    return nn.Sequential(
        *(block(2, 4, 1), nn.ReLU(), block(4, 4, 4), nn.ReLU(), block(4, 6, 2), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 5, 1), nn.AvgPool2d(2), nn.Flatten(), L(5, 6), L(6, 4), L(4, 2)),
    )


def normless_transformer() -> nn.Module:
    """A residual stream without normalisation: grouped-query attention, rotary attention, ReGLU."""
    plain, turned = Attention(6, 4, 2, head_width=3), Attention(6, 2, 1, rope=2, head_width=6, bias=False)
    body = nn.Sequential(Residual(plain), Residual(SwiGLU(6, 5, F.relu)), Residual(turned))
    return LanguageModel(body, 6)


class Mixed(nn.Module):
    """A bilinear form, a linear map before an LSTM, units of degree two, a frozen layer and a tied one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.form = L(4, 4, bias=False), L(4, 4, bias=False), nn.Bilinear(4, 4, 5, bias=False)
        self.embed, self.recurrent = L(5, 4, bias=False), nn.LSTM(4, 3, batch_first=True)
        self.squares = nn.Sequential(L(3, 4), Squared(), L(4, 3))
        self.frozen = L(3, 4).requires_grad_(False)
        self.after_frozen, self.tied = L(4, 3), nn.Parameter(torch.randn(5, 3))

    def forward(self, x):
        hidden, _ = self.recurrent(self.embed(self.form(self.a(x), self.b(x.exp()))))
        out = self.after_frozen(F.relu(self.frozen(self.squares(hidden))))
        return torch.tanh(out @ self.tied.T) @ self.tied


class Recurrent(nn.Module):
    """A weight that writes and reads the same units, ReLU and linear; a gain into a linear map."""

    def __init__(self):
        super().__init__()
        self.inward, self.across, self.between = L(3, 4), L(4, 4, bias=False), L(4, 4)
        self.mixing, self.norm, self.outward = L(4, 4, bias=False), nn.LayerNorm(4), L(4, 2)

    def forward(self, x):
        hidden, second = F.relu(self.inward(x[:, 0])), None
        for step in range(1, x.shape[1]):
            hidden = F.relu(self.inward(x[:, step]) + self.across(hidden))
            second = self.between(hidden) + (0 if second is None else self.mixing(second))
        return self.outward(self.norm(second))


class Geometric(nn.Module):
    """Two layers of torch_geometric's GATv2 with a ReLU between."""

    def __init__(self):
        super().__init__()
        from torch_geometric.nn import GATv2Conv

        self.first, self.second = GATv2Conv(3, 4, heads=2), GATv2Conv(8, 2, heads=1)

    def forward(self, x, edges):
        return self.second(F.relu(self.first(x, edges)), edges)


def graph() -> tuple[Tensor, ...]:
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2, 4], [1, 2, 3, 4, 5, 0, 3, 5, 1]])
    return (*noise(6, 3)(), edges)


@dataclass(frozen=True)
class Network:
    """A network, a batch, and how many laws must move."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    laws: int

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build().double()


NETWORKS = [
    Network("folded convnet", folded_convnet, noise(2, 2, 10, 10), 6),
    Network("transformer without norms", normless_transformer, tokens, 8),
    Network("mixed", Mixed, noise(3, 4, 4), 5),
    Network("recurrent", Recurrent, noise(3, 4, 3), 2),
    Network("geometric", Geometric, graph, 1),
]
