"""The zoo of networks that the tests share."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# --- networks with laws: each with the laws that theory gives it, and a batch to run it on ---


class Residual(nn.Module):
    """`h + inner(h)`, or a trained skip in place of the identity."""

    def __init__(self, inner: nn.Module, skip: nn.Module | None = None):
        super().__init__()
        self.inner, self.skip = inner, skip

    def forward(self, x):
        return (x if self.skip is None else self.skip(x)) + self.inner(x)


class HandWrittenLayerNorm(nn.Module):
    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width)), eps

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        scale = torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * (centred / scale) + self.bias


class RMSNorm(nn.Module):
    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(width)), eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def rotary(x: Tensor, partial: int = 0) -> Tensor:
    """Rotary position embedding of `(batch, heads, time, width)`, the last `partial` coordinates left as they are."""
    rotated, kept = x[..., : x.shape[-1] - partial], x[..., x.shape[-1] - partial :]
    half = rotated.shape[-1] // 2
    frequencies = 100.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    angles = torch.outer(torch.arange(x.shape[-2], dtype=x.dtype), frequencies)
    angles = torch.cat([angles, angles], -1)
    turned = torch.cat([-rotated[..., half:], rotated[..., :half]], -1)
    return torch.cat([rotated * angles.cos() + turned * angles.sin(), kept], -1)


class Attention(nn.Module):
    """Hand-written or fused attention: heads, groups of them, with or without rotary embedding and biases."""

    def __init__(self, width, heads, groups=None, *, fused=True, rope=None, bias=True, out=True, head_width=None):
        super().__init__()
        self.heads, self.groups, self.fused, self.rope = heads, groups or heads, fused, rope
        self.size = head_width or width // heads
        self.q = nn.Linear(width, self.size * heads, bias=bias)
        self.k = nn.Linear(width, self.size * self.groups, bias=bias)
        self.v = nn.Linear(width, self.size * self.groups, bias=bias)
        self.o = nn.Linear(self.size * heads, width, bias=bias) if out else None

    def forward(self, x):
        q, k, v = (
            layer(x).view(*x.shape[:-1], count, self.size).transpose(1, 2)
            for layer, count in ((self.q, self.heads), (self.k, self.groups), (self.v, self.groups))
        )
        if self.rope is not None:
            q, k = rotary(q, self.rope), rotary(k, self.rope)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.groups != self.heads)
        else:
            k, v = (t.repeat_interleave(self.heads // self.groups, dim=1) for t in (k, v))
            mask = torch.full((x.shape[1], x.shape[1]), -math.inf, dtype=x.dtype).triu(1)
            mixed = torch.softmax(q @ k.mT / math.sqrt(self.size) + mask, -1) @ v
        mixed = mixed.transpose(1, 2).flatten(2)
        return mixed if self.o is None else self.o(mixed)


class SwiGLU(nn.Module):
    def __init__(self, width, hidden, activation=F.silu):
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down, self.activation = nn.Linear(hidden, width, bias=False), activation

    def forward(self, x):
        return self.down(self.activation(self.gate(x)) * self.up(x))


class PreNormBlock(nn.Module):
    """Pre-norm attention and feedforward, as in GPT-2, ViT and LLaMA."""

    def __init__(self, width, attention, feedforward, norm=nn.LayerNorm):
        super().__init__()
        self.norm1, self.attention = norm(width), attention
        self.norm2, self.feedforward = norm(width), feedforward

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.feedforward(self.norm2(x))


class LanguageModel(nn.Module):
    """Tokens in, logits out, around any body; positions optional; the head may be tied to the embedding."""

    def __init__(self, body, width, vocabulary=7, positions=0, norm=None, tied=False):
        super().__init__()
        self.embed, self.body, self.norm = nn.Embedding(vocabulary, width), body, norm
        self.positions = nn.Parameter(torch.randn(positions, width)) if positions else None
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x if self.positions is None else x + self.positions[: tokens.shape[1]]
        x = self.body(x)
        return self.head(x if self.norm is None else self.norm(x))


class VisionTransformer(nn.Module):
    """Patches by a strided convolution, a class token, learned positions, one block, a head on the class token."""

    def __init__(self, width=8, heads=2, classes=3):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 5, width))
        feedforward = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))
        self.block = PreNormBlock(width, Attention(width, heads), feedforward)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images):
        patches = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(images), -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.block(x))[:, 0])


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a skip, as in ResNet-18."""

    def __init__(self, channels_in, channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1, self.conv2 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2, self.down = nn.BatchNorm2d(channels), None
        if stride > 1 or channels_in != channels:
            self.down = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return F.relu(out + (x if self.down is None else self.down(x)))


def resnet(widths=(4, 6), blocks=1, classes=3, stem=True) -> nn.Sequential:
    """ResNet-18 shaped for `resnet((64, 128, 256, 512), 2, 1000)`."""
    first = widths[0]
    layers = [nn.Conv2d(3, first, 7, 2, 3, bias=False), nn.BatchNorm2d(first), nn.ReLU(inplace=True)]
    layers += [nn.MaxPool2d(3, 2, 1)] if stem else []
    previous = first
    for number, width in enumerate(widths):
        for block in range(blocks):
            layers.append(BasicBlock(previous, width, 2 if number and not block else 1))
            previous = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(previous, classes))


class UNet(nn.Module):
    """One level down and up again, with the skip concatenated."""

    def __init__(self, width=4):
        super().__init__()
        self.down, self.bottom = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join, self.out = nn.Conv2d(2 * width, width, 3, padding=1), nn.Conv2d(width, 1, 1)

    def forward(self, x):
        high = F.relu(self.down(x))
        low = F.relu(self.bottom(F.max_pool2d(high, 2)))
        return self.out(F.relu(self.join(torch.cat([high, self.up(low)], 1))))


class GATv2(nn.Module):
    """One graph attention layer of Brody et al. (2022), heads concatenated or averaged, on an edge list."""

    def __init__(self, width_in, width, heads=2, *, concat=True, shared=False):
        super().__init__()
        self.heads, self.width, self.concat = heads, width, concat
        self.left = nn.Linear(width_in, heads * width)
        self.right = self.left if shared else nn.Linear(width_in, heads * width)
        self.attention = nn.Parameter(torch.randn(1, heads, width))
        self.bias = nn.Parameter(torch.randn(heads * width if concat else width))

    def forward(self, x, edges):
        source, target = edges
        left, right = (layer(x).view(-1, self.heads, self.width) for layer in (self.left, self.right))
        score = (F.leaky_relu(left[source] + right[target], 0.2) * self.attention).sum(-1)
        score = (score - score.max()).exp()
        total = torch.zeros(len(x), self.heads, dtype=x.dtype).index_add(0, target, score)
        message = left[source] * (score / total[target]).unsqueeze(-1)
        out = torch.zeros(len(x), self.heads, self.width, dtype=x.dtype).index_add(0, target, message)
        return (out.flatten(1) if self.concat else out.mean(1)) + self.bias


class GraphNetwork(nn.Module):
    def __init__(self, concat=True, shared=False):
        super().__init__()
        self.first = GATv2(3, 4, concat=concat, shared=shared)
        self.second = GATv2(8 if concat else 4, 2, heads=1, shared=shared)

    def forward(self, x, edges):
        return self.second(F.relu(self.first(x, edges)), edges)


class Recurrent(nn.Module):
    def __init__(self, activation=F.relu):
        super().__init__()
        self.inward, self.across = nn.Linear(3, 4), nn.Linear(4, 4, bias=False)
        self.outward, self.activation = nn.Linear(4, 2), activation

    def forward(self, x):
        hidden = self.activation(self.inward(x[:, 0]))
        for step in range(1, x.shape[1]):
            hidden = self.activation(self.inward(x[:, step]) + self.across(hidden))
        return self.outward(hidden)


class Autoencoder(nn.Module):
    """`Wᵀ φ(W x)`: one matrix on both sides."""

    def __init__(self, activation=nn.Identity):
        super().__init__()
        self.weight, self.activation = nn.Parameter(torch.randn(4, 3)), activation()

    def forward(self, x):
        return self.activation(x @ self.weight.T) @ self.weight


class LowRank(nn.Module):
    """A frozen matrix and a trained low-rank one beside it."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(3, 5, bias=False).requires_grad_(False)
        self.a, self.b = nn.Linear(3, 2, bias=False), nn.Linear(2, 5, bias=False)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.inward, self.hidden, self.outward = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.gain = nn.Parameter(torch.rand(4))

    def forward(self, x):
        stream = self.inward(x)
        return self.outward(stream + self.gain * F.relu(self.hidden(stream)))


class Squared(nn.Module):
    def forward(self, x):
        return F.relu(x).pow(2)


def sequential(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Case:
    """A network, a batch shape, and the laws it must have: `(kind, count)` in order."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    laws: tuple[tuple[str, int], ...]

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build().double()


def noise(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),)


def tokens() -> tuple[Tensor, ...]:
    return (torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(1)),)


def graph() -> tuple[Tensor, ...]:
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2, 4], [1, 2, 3, 4, 5, 0, 3, 5, 1]])
    return (*noise(6, 3)(), edges)


L = nn.Linear


def _mlp_block(width: int, hidden: int, activation: nn.Module) -> nn.Sequential:
    return sequential(L(width, hidden), activation, L(hidden, width))


def _llama() -> nn.Module:
    attention = Attention(8, 4, 2, rope=0, bias=False, fused=False)
    return LanguageModel(PreNormBlock(8, attention, SwiGLU(8, 6), RMSNorm), 8, norm=RMSNorm(8))


def _gpt(*, tied: bool = False) -> nn.Module:
    block = PreNormBlock(8, Attention(8, 2), _mlp_block(8, 6, nn.GELU()))
    return LanguageModel(block, 8, positions=5, norm=nn.LayerNorm(8), tied=tied)


class LastOf(nn.Module):
    """A recurrent layer and a linear map on all its outputs."""

    def __init__(self, recurrent: nn.Module):
        super().__init__()
        self.recurrent, self.outward = recurrent, L(4, 2)

    def forward(self, x):
        return self.outward(self.recurrent(x)[0])


CASES: list[Case] = [
    Case("leaky relu", lambda: sequential(L(3, 4), nn.LeakyReLU(), L(4, 2)), noise(6, 3), (("vertex", 4),)),
    Case("relu", lambda: sequential(L(3, 4), nn.ReLU(), L(4, 2)), noise(6, 3), (("vertex", 4),)),
    Case("prelu", lambda: sequential(L(3, 4), nn.PReLU(4), L(4, 2)), noise(6, 3), (("vertex", 4),)),
    Case("degree two", lambda: sequential(L(3, 4), Squared(), L(4, 2)), noise(6, 3), (("vertex", 4),)),
    Case("gelu", lambda: sequential(L(3, 4), nn.GELU(), L(4, 2)), noise(6, 3), ()),
    Case(
        "linear tail",
        lambda: sequential(L(3, 4), nn.ReLU(), L(4, 5), L(5, 3), L(3, 1)),
        noise(6, 3),
        (("vertex", 4), ("linear", 15), ("linear", 6)),
    ),
    Case("maxpool over units", lambda: sequential(L(3, 6), nn.MaxPool1d(2), L(3, 2)), noise(6, 3), (("vertex", 3),)),
    Case(
        "overlapping windows", lambda: sequential(L(3, 7), nn.MaxPool1d(3, 2), L(3, 2)), noise(6, 3), (("scalar", 1),)
    ),
    Case(
        "convolutions",
        lambda: sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, groups=2),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 4, 1),
            nn.AvgPool2d(2),
            nn.Flatten(),
            L(4, 2),
        ),
        noise(2, 3, 10, 10),
        (("vertex", 4), ("vertex", 6), ("linear", 10)),
    ),
    Case(
        "depthwise, transposed",
        lambda: sequential(
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 4, 3, groups=4, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 6, 2, groups=2),
            nn.Flatten(),
            L(294, 2),
        ),
        noise(2, 3, 8, 8),
        (("vertex", 4), ("vertex", 4), ("blocks", 12)),
    ),
    Case(
        "conv3d",
        lambda: sequential(nn.Conv3d(1, 3, 2), nn.Conv3d(3, 2, 2, padding=1), nn.Flatten(), L(128, 1)),
        noise(2, 1, 4, 4, 4),
        (("linear", 6), ("linear", 3)),
    ),
    Case(
        "constant padding",
        lambda: sequential(nn.Conv1d(2, 3, 2), nn.ConstantPad1d(1, 1.0), nn.Conv1d(3, 2, 2)),
        noise(2, 2, 6),
        (),
    ),
    Case(
        "circular padding",
        lambda: sequential(nn.Conv1d(2, 3, 2), nn.Conv1d(3, 2, 3, padding=1, padding_mode="circular")),
        noise(2, 2, 6),
        (("linear", 6),),
    ),
    Case(
        "residual stream",
        lambda: sequential(
            L(3, 4), Residual(_mlp_block(4, 5, nn.ReLU())), Residual(_mlp_block(4, 3, nn.Tanh())), L(4, 2)
        ),
        noise(6, 3),
        (("linear", 10), ("vertex", 5)),
    ),
    Case(
        "dense skip",
        lambda: sequential(L(3, 4), Residual(sequential(L(4, 5), nn.ReLU(), L(5, 6)), L(4, 6)), L(6, 2)),
        noise(6, 3),
        (("linear", 10), ("linear", 21), ("vertex", 5)),
    ),
    Case(
        "skip into relu",
        lambda: sequential(L(3, 4), Residual(sequential(L(4, 5), nn.ReLU(), L(5, 6)), L(4, 6)), nn.ReLU(), L(6, 2)),
        noise(6, 3),
        (("linear", 10), ("vertex", 6), ("vertex", 5)),
    ),
    Case(
        "layer norm",
        lambda: sequential(L(3, 4), nn.LayerNorm(4), L(4, 2)),
        noise(6, 3),
        (("scalar", 1), ("vertex", 4), ("shift", 4)),
    ),
    Case(
        "hand-written layer norm",
        lambda: sequential(L(3, 4), HandWrittenLayerNorm(4), L(4, 2)),
        noise(6, 3),
        (("scalar", 1), ("vertex", 4), ("shift", 4)),
    ),
    Case(
        "rms norm",
        lambda: sequential(L(3, 4), nn.RMSNorm(4, eps=1e-6), nn.ReLU(), L(4, 2)),
        noise(6, 3),
        (("scalar", 1), ("vertex", 4)),
    ),
    Case(
        "hand-written rms norm",
        lambda: sequential(L(3, 4), RMSNorm(4), nn.ReLU(), L(4, 2)),
        noise(6, 3),
        (("scalar", 1), ("vertex", 4)),
    ),
    Case(
        "batch norm",
        lambda: sequential(L(3, 4), nn.BatchNorm1d(4), nn.ReLU(), L(4, 2)),
        noise(6, 3),
        (("vertex", 4), ("vertex", 4), ("shift", 4)),
    ),
    Case(
        "batch norm in eval",
        lambda: sequential(L(3, 4), nn.BatchNorm1d(4), nn.ReLU(), L(4, 2)).eval(),
        noise(6, 3),
        (("vertex", 4),),
    ),
    Case(
        "group norm",
        lambda: sequential(nn.Conv1d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv1d(4, 2, 1)),
        noise(6, 3, 5),
        (("vertex", 2), ("vertex", 4), ("shift", 2)),
    ),
    Case(
        "instance norm",
        lambda: sequential(nn.Conv1d(3, 4, 3), nn.InstanceNorm1d(4, affine=True), nn.ReLU(), nn.Conv1d(4, 2, 1)),
        noise(6, 3, 5),
        (("vertex", 4), ("vertex", 4), ("shift", 4)),
    ),
    Case(
        "weight norm",
        lambda: sequential(nn.utils.parametrizations.weight_norm(L(3, 4)), nn.ReLU(), L(4, 2)),
        noise(6, 3),
        (("vertex", 4), ("vertex", 4)),
    ),
    Case(
        "attention",
        lambda: sequential(L(3, 6), Attention(6, 2), L(6, 2)),
        noise(2, 5, 3),
        (("linear", 21), ("blocks", 12), ("blocks", 12), ("linear", 21), ("shift", 6)),
    ),
    Case(
        "hand-written attention",
        lambda: sequential(L(3, 6), Attention(6, 2, fused=False), L(6, 2)),
        noise(2, 5, 3),
        (("linear", 21), ("blocks", 12), ("blocks", 12), ("linear", 21), ("shift", 6)),
    ),
    Case(
        "grouped query",
        lambda: Attention(4, 4, 2, head_width=3),
        noise(2, 5, 4),
        (("blocks", 12), ("blocks", 12), ("shift", 6)),
    ),
    Case(
        "hand-written grouped query",
        lambda: Attention(4, 4, 2, fused=False, head_width=3),
        noise(2, 5, 4),
        (("blocks", 12), ("blocks", 12), ("shift", 6)),
    ),
    Case(
        "rotary",
        lambda: Attention(4, 2, 1, fused=False, rope=0, head_width=6),
        noise(2, 5, 4),
        (("vertex", 3), ("linear", 21)),
    ),
    Case(
        "partly rotary",
        lambda: Attention(4, 2, 1, rope=2, head_width=6),
        noise(2, 5, 4),
        (("vertex", 2), ("linear", 3), ("linear", 21), ("shift", 2)),
    ),
    Case(
        "multihead",
        lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0, activation="relu"),
        noise(2, 5, 8),
        (("blocks", 20), ("blocks", 20), ("scalar", 1), ("vertex", 12), ("shift", 8), ("shift", 9), ("shift", 13)),
    ),
    Case(
        "multihead in eval",
        lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True).eval(),
        noise(2, 5, 8),
        (("vertex", 8), ("blocks", 20), ("blocks", 20), ("vertex", 8), ("vertex", 12), ("shift", 8)),
    ),
    Case("swiglu", lambda: SwiGLU(3, 5), noise(6, 3), (("vertex", 5),)),
    Case("reglu", lambda: SwiGLU(3, 5, F.relu), noise(6, 3), (("vertex", 5), ("vertex", 5))),
    Case("glu", lambda: sequential(L(3, 8), nn.GLU(), L(4, 2)), noise(6, 3), (("vertex", 4),)),
    Case(
        "llama",
        lambda: _llama(),
        tokens,
        (("scalar", 1), ("vertex", 8), ("vertex", 2), ("blocks", 6), ("vertex", 8), ("vertex", 6), ("vertex", 8)),
    ),
    Case(
        "gpt",
        lambda: _gpt(),
        tokens,
        (
            ("scalar", 1),
            ("vertex", 8),
            ("blocks", 20),
            ("blocks", 20),
            ("vertex", 8),
            ("vertex", 8),
            ("shift", 7),
            ("shift", 5),
            ("shift", 8),
            ("shift", 9),
            ("shift", 7),
        ),
    ),
    Case(
        "gpt, tied",
        lambda: _gpt(tied=True),
        tokens,
        (
            ("scalar", 1),
            ("vertex", 8),
            ("blocks", 20),
            ("blocks", 20),
            ("vertex", 8),
            ("shift", 5),
            ("shift", 8),
            ("shift", 9),
            ("shift", 7),
        ),
    ),
    Case("tied linear", lambda: LanguageModel(Residual(L(4, 4)), 4, tied=True), tokens, (("antisymmetric", 0),)),
    Case(
        "vision transformer",
        lambda: VisionTransformer(),
        noise(2, 3, 4, 4),
        (
            ("scalar", 1),
            ("vertex", 8),
            ("blocks", 20),
            ("blocks", 20),
            ("vertex", 8),
            ("vertex", 8),
            ("shift", 13),
            ("shift", 1),
            ("shift", 5),
            ("shift", 8),
            ("shift", 9),
            ("shift", 13),
        ),
    ),
    Case(
        "resnet",
        lambda: resnet(),
        noise(3, 3, 16, 16),
        (
            ("vertex", 4),
            ("vertex", 4),
            ("vertex", 4),
            ("vertex", 4),
            ("vertex", 4),
            ("vertex", 6),
            ("vertex", 6),
            ("vertex", 6),
            ("vertex", 6),
            ("vertex", 6),
        ),
    ),
    Case("unet", lambda: UNet(), noise(2, 1, 8, 8), (("vertex", 4), ("vertex", 8), ("linear", 10), ("vertex", 4))),
    Case("gatv2", lambda: GraphNetwork(), graph, (("vertex", 8),)),
    Case("gatv2, mean", lambda: GraphNetwork(concat=False), graph, (("vertex", 4),)),
    Case("gatv2, shared", lambda: GraphNetwork(shared=True), graph, (("vertex", 8),)),
    Case("recurrent", lambda: Recurrent(), noise(3, 4, 3), (("vertex", 4),)),
    Case("linear recurrent", lambda: Recurrent(nn.Identity()), noise(3, 4, 3), (("linear", 10),)),
    Case(
        "nn.RNN", lambda: LastOf(nn.RNN(3, 4, nonlinearity="relu", batch_first=True)), noise(3, 4, 3), (("vertex", 4),)
    ),
    Case("nn.LSTM", lambda: LastOf(nn.LSTM(3, 4, batch_first=True)), noise(3, 4, 3), ()),
    Case("autoencoder", lambda: Autoencoder(), noise(6, 3), (("antisymmetric", 0),)),
    Case("relu autoencoder", lambda: Autoencoder(nn.ReLU), noise(6, 3), ()),
    Case("low rank", lambda: LowRank(), noise(6, 3), (("linear", 3),)),
    Case("layer scale", lambda: LayerScale(), noise(6, 3), (("vertex", 4), ("vertex", 4))),
    Case("dropout", lambda: sequential(L(3, 4), nn.Dropout(), L(4, 2)), noise(6, 3), (("vertex", 4),)),
]


def case(name: str) -> Case:
    return next(case for case in CASES if case.name == name)
