"""Architectures written with torch alone."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.entry import BATCH, LENGTH, VOCABULARY, Architecture, Inputs

L, Chain = nn.Linear, nn.Sequential


# Inputs -------------------------------------------------------------------------------------------------------------


def _vectors(_: int) -> Inputs:
    return (torch.randn(6, 3),)


def _sequences(_: int) -> Inputs:
    return (torch.randn(BATCH, LENGTH, 3),)


def _signals(_: int) -> Inputs:
    return (torch.randn(BATCH, 2, 9),)


def _images(_: int) -> Inputs:
    return (torch.randn(BATCH, 2, 8, 8),)


def _words(_: int) -> Inputs:
    return (torch.randint(1, VOCABULARY, (BATCH, LENGTH)),)


def _two(_: int) -> Inputs:
    return torch.randn(6, 3), torch.randn(6, 2)


# Small parts --------------------------------------------------------------------------------------------------------


class Apply(nn.Module):
    """`combine(*inputs, *parts)` of parts, which are modules."""

    def __init__(self, combine: Callable[..., Any], *parts: nn.Module):
        super().__init__()
        self.combine, self.parts = combine, nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.combine(*inputs, *self.parts)


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.body, self.shortcut = Chain(*layers), shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class Gain(nn.Module):
    def __init__(self, *shape: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


class First(nn.Module):
    """The first result of a layer that returns several."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Transposed(nn.Module):
    """A layer along the axis before the last."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


def _mlp(w: int, act: Callable[[], nn.Module], *, bias: bool = True) -> nn.Module:
    return Chain(L(3, w, bias=bias), act(), L(w, w, bias=bias), act(), L(w, 2, bias=bias))


def _cbr(i: int, o: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Module:
    """Convolution, BatchNorm, ReLU."""
    layers = [nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
    return Chain(*layers, nn.ReLU()) if act else Chain(*layers)


def _pooled(*layers: nn.Module, width: int) -> nn.Module:
    return Chain(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(width, 2))


# Attention ----------------------------------------------------------------------------------------------------------


def _rotary(x: Tensor) -> Tensor:
    half, length = x.shape[-1] // 2, x.shape[-2]
    angles = torch.arange(length, dtype=x.dtype)[:, None] * 100.0 ** -(torch.arange(half, dtype=x.dtype) / half)
    angles = torch.cat([angles, angles], -1)
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * angles.cos() + turned * angles.sin()


class Attention(nn.Module):
    """Two heads: `mix(q, k, v)` of what `turn` does to queries and keys."""

    def __init__(self, w: int, mix: Callable[..., Tensor], turn: Callable[[Tensor], Tensor] = lambda x: x):
        super().__init__()
        self.qkv, self.out, self.mix, self.turn = L(w, 3 * w), L(w, w), mix, turn

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(self.mix(self.turn(q), self.turn(k), v).transpose(1, 2).flatten(2))


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


def _linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return q @ (k.mT @ v) / (q @ k.sum(-2, keepdim=True).mT)


def _relu_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.relu(q @ k.mT) @ v / q.shape[-2]


def _cosine(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(5 * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT, -1) @ v


def _block(w: int, attention: nn.Module, act: nn.Module | None = None) -> nn.Module:
    feedforward = Chain(L(w, w + 2), act or nn.GELU(), L(w + 2, w))
    return Chain(Residual(nn.LayerNorm(w), attention), Residual(nn.LayerNorm(w), feedforward), nn.LayerNorm(w))


def _language(w: int, attention: nn.Module, act: nn.Module | None = None) -> nn.Module:
    return Chain(nn.Embedding(VOCABULARY, w), _block(w, attention, act), L(w, 3, bias=False))


# Whole networks -----------------------------------------------------------------------------------------------------


def _bottleneck(w: int) -> nn.Module:
    """An inverted residual of MobileNet v2."""
    return Residual(_cbr(w, 2 * w, 1), _cbr(2 * w, 2 * w, 3, groups=2 * w), _cbr(2 * w, w, 1, act=False))


def _shuffle(x: Tensor, left: nn.Module, head: nn.Module) -> Tensor:
    kept, seen = x.chunk(2, 1)
    y = torch.cat([kept, left(seen)], 1)
    return head(y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))


def _fire(x: Tensor, squeeze: nn.Module, one: nn.Module, three: nn.Module) -> Tensor:
    x = F.relu(squeeze(x))
    return torch.cat([F.relu(one(x)), F.relu(three(x))], 1)


def _dense(x: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        x = torch.cat([x, layer(x)], 1)
    return x


def _unet(x: Tensor, down: nn.Module, deep: nn.Module, up: nn.Module, join: nn.Module, head: nn.Module) -> Tensor:
    skip = down(x)
    return head(join(torch.cat([skip, up(deep(F.max_pool2d(skip, 2)))], 1)))


def _excited(x: Tensor, convolution: nn.Module, down: nn.Module, up: nn.Module, head: nn.Module) -> Tensor:
    y = F.relu(convolution(x))
    gate = torch.sigmoid(up(F.relu(down(y.mean((2, 3))))))
    return head((y * gate[:, :, None, None]).mean((2, 3)))


class TiedAutoencoder(nn.Module):
    def __init__(self, w: int, act: Callable[[Tensor], Tensor]):
        super().__init__()
        self.weight, self.act = nn.Parameter(torch.randn(w, 3)), act
        self.into, self.out = nn.Parameter(torch.randn(w)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.act(F.linear(x, self.weight, self.into)), self.weight.T, self.out)


class TiedLanguageModel(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        self.embed, self.body = nn.Embedding(VOCABULARY, w), _block(w, Attention(w, _causal))
        self.head = L(w, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens)))


class Cells(nn.Module):
    """A recurrent cell called step by step."""

    def __init__(self, cell: nn.Module, w: int, pair: bool):
        super().__init__()
        self.into, self.cell, self.head, self.pair = L(3, w), cell, L(w, 2), pair

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for moment in self.into(x).unbind(1):
            state = self.cell(moment, state)
        return self.head(state[0] if self.pair else state)


class LowRankAdapter(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        self.base, self.down, self.up = L(3, w), L(3, 2, bias=False), L(2, w, bias=False)
        self.head = L(w, 2)
        for parameter in self.base.parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.base(x) + 0.5 * self.up(self.down(x))))


class HyperNetwork(nn.Module):
    """The weights of a layer are computed from another input."""

    def __init__(self, w: int):
        super().__init__()
        self.of, self.head = L(2, 3 * w), L(w, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        weights = self.of(condition).unflatten(-1, (-1, 3))
        return self.head(F.relu(torch.einsum("bwi,bi->bw", weights, x)))


class Maxout(nn.Module):
    def __init__(self, i: int, o: int):
        super().__init__()
        self.pieces = L(i, 2 * o)

    def forward(self, x: Tensor) -> Tensor:
        return self.pieces(x).unflatten(-1, (-1, 2)).amax(-1)


class Highway(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        self.gate, self.plain = L(w, w), L(w, w)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * F.relu(self.plain(x)) + (1 - gate) * x


class SoftExperts(nn.Module):
    """A dense mixture: every expert is computed, and weighted by a softmax."""

    def __init__(self, w: int, experts: int = 2):
        super().__init__()
        self.router = L(w, experts)
        self.up = nn.Parameter(torch.randn(experts, w, w))
        self.down = nn.Parameter(torch.randn(experts, w, w))

    def forward(self, x: Tensor) -> Tensor:
        chosen = torch.softmax(self.router(x), -1)
        hidden = F.relu(torch.einsum("bi,eih->beh", x, self.up))
        return torch.einsum("beh,eho,be->bo", hidden, self.down, chosen)


class FourierLayer(nn.Module):
    """A spectral convolution of a Fourier neural operator, its weights as real and imaginary parts."""

    def __init__(self, w: int):
        super().__init__()
        self.real, self.imaginary = (nn.Parameter(torch.randn(w, w, 3)) for _ in range(2))
        self.skip = nn.Conv1d(w, w, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)[..., :3]
        mixed = torch.einsum("bik,iok->bok", spectrum, torch.complex(self.real, self.imaginary))
        return torch.fft.irfft(mixed, n=x.shape[-1]) + self.skip(x)


class FactorisationMachine(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        self.embed, self.linear = nn.Embedding(VOCABULARY, w), nn.Embedding(VOCABULARY, 1)

    def forward(self, fields: Tensor) -> Tensor:
        e = self.embed(fields)
        pairs = (e.sum(1).square() - e.square().sum(1)).sum(-1) / 2
        return pairs + self.linear(fields).sum((1, 2))


class WaveNet(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        self.into, self.out = nn.Conv1d(2, w, 1), nn.Conv1d(w, 2, 1)
        self.layers = nn.ModuleList(nn.Conv1d(w, 2 * w, 2, dilation=d) for d in (1, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for layer in self.layers:
            a, b = layer(F.pad(x, (layer.dilation[0], 0))).chunk(2, 1)
            x = x + torch.tanh(a) * torch.sigmoid(b)
        return self.out(x)


class NeuralODE(nn.Module):
    """Four steps of Euler through one vector field."""

    def __init__(self, w: int):
        super().__init__()
        self.into, self.field, self.head = L(3, w), Chain(L(w, w), nn.Tanh(), L(w, w)), L(w, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for _ in range(4):
            x = x + self.field(x) / 4
        return self.head(x)


class Perturbed(nn.Module):
    """A coupling layer of real NVP."""

    def __init__(self, w: int):
        super().__init__()
        self.into, self.scale, self.shift = L(3, w), L(w // 2, w // 2), L(w // 2, w // 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.into(x).chunk(2, -1)
        return torch.cat([a, b * self.scale(a).exp() + self.shift(a)], -1)


class SwiGLU(nn.Module):
    def __init__(self, w: int, act: Callable[[Tensor], Tensor]):
        super().__init__()
        self.gate, self.up, self.down, self.act = L(3, w), L(3, w), L(w, 2), act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class TransformerPair(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        self.source, self.target = L(3, w), L(3, w)
        self.body = nn.Transformer(w, 2, 1, 1, w + 2, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.source(x), self.target(x.flip(1)))


class Mixer(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        tokens, channels = (Chain(L(n, n + 1), nn.GELU(), L(n + 1, n)) for n in (LENGTH, w))
        self.body = Chain(
            L(3, w), Residual(nn.LayerNorm(w), Transposed(tokens)), Residual(nn.LayerNorm(w), channels), nn.LayerNorm(w)
        )
        self.head = L(w, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


class GatedMLP(nn.Module):
    """A block of gMLP: one half gates the other, mixed along the tokens."""

    def __init__(self, w: int):
        super().__init__()
        self.into, self.up, self.out = L(3, w), L(w, 2 * w), L(w, 2)
        self.norm, self.along = nn.LayerNorm(w), nn.Conv1d(LENGTH, LENGTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.up(self.into(x))).chunk(2, -1)
        return self.out(u * self.along(self.norm(v)))


class Vision(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        self.patch, self.body, self.head = nn.Conv2d(2, w, 4, 4), _block(w, Attention(w, _by_hand)), L(w, 2)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, w)), nn.Parameter(torch.randn(1, 5, w))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.positions
        return self.head(self.body(tokens)[:, 0])


def _weight_normed(w: int) -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm
    return Chain(norm(L(3, w)), nn.ReLU(), norm(L(w, w)), nn.ReLU(), norm(L(w, 2)))


def _positional(x: Tensor, embed: nn.Module, positions: nn.Module, body: nn.Module, head: nn.Module) -> Tensor:
    return head(body(embed(x) + positions(torch.arange(x.shape[1]))))


def _entry(
    name: str, build: Callable[[int], nn.Module], inputs: Callable[[int], Inputs] = _vectors, *, least: int = 4
) -> Architecture:
    return Architecture(name, "torch", build, inputs, least, training=True)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class CReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(x), F.relu(-x)], -1)


ENTRIES = (
    _entry("MLP, ReLU", lambda w: _mlp(w, nn.ReLU)),
    _entry("MLP, ReLU, no biases", lambda w: _mlp(w, nn.ReLU, bias=False)),
    _entry("MLP, linear", lambda w: _mlp(w, nn.Identity)),
    _entry("MLP, leaky ReLU", lambda w: _mlp(w, nn.LeakyReLU)),
    _entry("MLP, PReLU", lambda w: _mlp(w, lambda: nn.PReLU(w))),
    _entry("MLP, GELU", lambda w: _mlp(w, nn.GELU)),
    _entry("MLP, tanh", lambda w: _mlp(w, nn.Tanh)),
    _entry("MLP, linear tail", lambda w: Chain(L(3, w), nn.ReLU(), L(w, w), L(w, w), L(w, 2))),
    _entry("MLP, BatchNorm", lambda w: Chain(L(3, w), nn.BatchNorm1d(w), nn.ReLU(), L(w, 2))),
    _entry("MLP, LayerNorm", lambda w: Chain(L(3, w), nn.LayerNorm(w), nn.ReLU(), L(w, 2))),
    _entry("MLP, weight norm", _weight_normed),
    _entry("MLP, residual", lambda w: Chain(L(3, w), Residual(L(w, w), nn.ReLU(), L(w, w)), L(w, 2))),
    _entry("MLP, softmax output", lambda w: Chain(L(3, w), nn.ReLU(), L(w, 3), nn.Softmax(-1))),
    _entry("SIREN", lambda w: _mlp(w, Sine)),
    _entry("CReLU", lambda w: Chain(L(3, w), CReLU(), L(2 * w, 2))),
    _entry("Maxout", lambda w: Chain(Maxout(3, w), Maxout(w, w), L(w, 2))),
    _entry("Highway", lambda w: Chain(L(3, w), Highway(w), L(w, 2))),
    _entry("GLU", lambda w: Chain(L(3, 2 * w), nn.GLU(), L(w, 2))),
    _entry("ReGLU", lambda w: SwiGLU(w, F.relu)),
    _entry("SwiGLU", lambda w: SwiGLU(w, F.silu)),
    _entry("Squared ReLU", lambda w: Apply(lambda x, a, b: b(F.relu(a(x)).square()), L(3, w), L(w, 2))),
    _entry(
        "Bilinear",
        lambda w: Apply(
            lambda x, y, a, b, c, d: d(F.relu(c(a(x), F.relu(b(y))))), L(3, w), L(2, w), nn.Bilinear(w, w, 3), L(3, 2)
        ),
        _two,
    ),
    _entry(
        "FiLM",
        lambda w: Apply(lambda x, y, a, s, t, h: h(F.relu(s(y) * a(x) + t(y))), L(3, w), L(2, w), L(2, w), L(w, 2)),
        _two,
    ),
    _entry(
        "Two towers",
        lambda w: Apply(lambda x, y, a, b: (a(x) * b(y)).sum(-1), Chain(L(3, w), nn.ReLU(), L(w, w)), L(2, w)),
        _two,
    ),
    _entry(
        "Two towers, cosine",
        lambda w: Apply(lambda x, y, a, b: F.cosine_similarity(a(x), b(y)), L(3, w), L(2, w)),
        _two,
    ),
    _entry("Hypernetwork", HyperNetwork, _two),
    _entry("Autoencoder", lambda w: Chain(L(3, w), nn.ReLU(), L(w, 2), L(2, w), nn.ReLU(), L(w, 3))),
    _entry("Autoencoder, tied", lambda w: TiedAutoencoder(w, F.relu)),
    _entry("Autoencoder, tied, linear", lambda w: TiedAutoencoder(w, lambda x: x)),
    _entry("LoRA", LowRankAdapter),
    _entry("Soft mixture of experts", lambda w: Chain(L(3, w), SoftExperts(w), L(w, 2))),
    _entry("Real NVP", Perturbed),
    _entry("Neural ODE", NeuralODE),
    _entry(
        "Deep sets",
        lambda w: Apply(lambda x, a, b: b(F.relu(a(x)).sum(1)), L(3, w), Chain(L(w, w), nn.ReLU(), L(w, 2))),
        _sequences,
    ),
    _entry(
        "CNN, max pooling",
        lambda w: Chain(
            nn.Conv2d(2, w, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(w, w, 2), nn.ReLU(), nn.Flatten(), L(4 * w, 2)
        ),
        _images,
    ),
    _entry(
        "VGG",
        lambda w: _pooled(
            nn.Conv2d(2, w, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(w, w, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(w, w, 3, padding=1),
            nn.ReLU(),
            width=w,
        ),
        _images,
    ),
    _entry("VGG, BatchNorm", lambda w: _pooled(_cbr(2, w), _cbr(w, w), nn.MaxPool2d(2), _cbr(w, w), width=w), _images),
    _entry(
        "ResNet by hand",
        lambda w: _pooled(
            _cbr(2, w),
            Residual(_cbr(w, w), _cbr(w, w, act=False)),
            nn.ReLU(),
            Residual(_cbr(w, w, 3, 2), _cbr(w, w, act=False), shortcut=_cbr(w, w, 1, 2, act=False)),
            nn.ReLU(),
            width=w,
        ),
        _images,
    ),
    _entry(
        "ResNet, pre-activation",
        lambda w: _pooled(
            nn.Conv2d(2, w, 3, padding=1),
            Residual(
                nn.BatchNorm2d(w),
                nn.ReLU(),
                nn.Conv2d(w, w, 3, padding=1),
                nn.BatchNorm2d(w),
                nn.ReLU(),
                nn.Conv2d(w, w, 3, padding=1),
            ),
            nn.BatchNorm2d(w),
            nn.ReLU(),
            width=w,
        ),
        _images,
    ),
    _entry(
        "ResNet, GroupNorm",
        lambda w: _pooled(
            nn.Conv2d(2, w, 3),
            nn.GroupNorm(2, w),
            nn.ReLU(),
            Residual(nn.Conv2d(w, w, 3, padding=1), nn.GroupNorm(2, w), nn.ReLU()),
            width=w,
        ),
        _images,
    ),
    _entry(
        "Style CNN, InstanceNorm",
        lambda w: _pooled(
            nn.Conv2d(2, w, 3),
            nn.InstanceNorm2d(w, affine=True),
            nn.ReLU(),
            nn.Conv2d(w, w, 3),
            nn.ReLU(),
            width=w,
        ),
        _images,
    ),
    _entry("DenseNet by hand", lambda w: _pooled(Apply(_dense, _cbr(2, w), _cbr(w + 2, w)), width=2 * w + 2), _images),
    _entry(
        "MobileNet by hand", lambda w: _pooled(_cbr(2, w, 3, 2), _cbr(w, w, groups=w), _cbr(w, w, 1), width=w), _images
    ),
    _entry("MobileNet v2 by hand", lambda w: _pooled(_cbr(2, w, 3, 2), _bottleneck(w), width=w), _images),
    _entry(
        "ShuffleNet by hand",
        lambda w: Apply(
            _shuffle, Chain(_cbr(w, w, 1), _cbr(w, w, groups=w, act=False), _cbr(w, w, 1)), _pooled(width=2 * w)
        ),
        lambda w: (torch.randn(BATCH, 2 * max(w, 4), 4, 4),),
    ),
    _entry(
        "SqueezeNet by hand",
        lambda w: _pooled(
            nn.Conv2d(2, w, 3),
            nn.ReLU(),
            Apply(_fire, nn.Conv2d(w, 2, 1), nn.Conv2d(2, w, 1), nn.Conv2d(2, w, 3, padding=1)),
            width=2 * w,
        ),
        _images,
    ),
    _entry("Squeeze and excitation", lambda w: Apply(_excited, nn.Conv2d(2, w, 3), L(w, 2), L(2, w), L(w, 2)), _images),
    _entry(
        "U-Net by hand",
        lambda w: Apply(
            _unet, _cbr(2, w), _cbr(w, w), nn.ConvTranspose2d(w, w, 2, 2), _cbr(2 * w, w), nn.Conv2d(w, 2, 1)
        ),
        _images,
    ),
    _entry(
        "DCGAN generator",
        lambda w: Chain(
            nn.Unflatten(1, (3, 1, 1)),
            nn.ConvTranspose2d(3, w, 2),
            nn.BatchNorm2d(w),
            nn.ReLU(),
            nn.ConvTranspose2d(w, 2, 2, 2),
            nn.Tanh(),
        ),
    ),
    _entry(
        "ESPCN, pixel shuffle",
        lambda w: Chain(
            nn.Conv2d(2, w, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(w, w, 3, padding=1),
            nn.PixelShuffle(2),
            nn.ReLU(),
            nn.Conv2d(w // 4, 1, 1),
        ),
        _images,
    ),
    _entry(
        "Text CNN",
        lambda w: Apply(
            lambda x, e, a, b, h: h(torch.cat([F.relu(c(e(x).mT)).amax(-1) for c in (a, b)], -1)),
            nn.Embedding(VOCABULARY, 3),
            nn.Conv1d(3, w, 2),
            nn.Conv1d(3, w, 3),
            L(2 * w, 2),
        ),
        _words,
    ),
    _entry(
        "TCN",
        lambda w: Chain(
            nn.ConstantPad1d((2, 0), 0.0),
            nn.Conv1d(2, w, 3),
            nn.ReLU(),
            nn.ConstantPad1d((4, 0), 0.0),
            nn.Conv1d(w, w, 3, dilation=2),
            nn.ReLU(),
            nn.Conv1d(w, 2, 1),
        ),
        _signals,
    ),
    _entry("WaveNet", WaveNet, _signals),
    _entry(
        "Fourier neural operator",
        lambda w: Chain(nn.Conv1d(2, w, 1), FourierLayer(w), nn.GELU(), nn.Conv1d(w, 2, 1)),
        _signals,
    ),
    _entry(
        "RNN, ReLU",
        lambda w: Chain(L(3, w), First(nn.RNN(w, w, nonlinearity="relu", batch_first=True)), L(w, 2)),
        _sequences,
    ),
    _entry("RNN, tanh", lambda w: Chain(L(3, w), First(nn.RNN(w, w, batch_first=True)), L(w, 2)), _sequences),
    _entry("LSTM", lambda w: Chain(L(3, w), First(nn.LSTM(w, w, batch_first=True)), L(w, 2)), _sequences),
    _entry("LSTM, two layers", lambda w: Chain(First(nn.LSTM(3, w, 2, batch_first=True)), L(w, 2)), _sequences),
    _entry(
        "LSTM, projected", lambda w: Chain(First(nn.LSTM(3, w, proj_size=2, batch_first=True)), L(2, 2)), _sequences
    ),
    _entry("GRU", lambda w: Chain(L(3, w), nn.ReLU(), First(nn.GRU(w, w, batch_first=True)), L(w, 2)), _sequences),
    _entry(
        "GRU, both ways",
        lambda w: Chain(First(nn.GRU(3, w, bidirectional=True, batch_first=True)), L(2 * w, 2)),
        _sequences,
    ),
    _entry("LSTM cell", lambda w: Cells(nn.LSTMCell(w, w), w, True), _sequences),
    _entry("GRU cell", lambda w: Cells(nn.GRUCell(w, w), w, False), _sequences),
    _entry("RNN cell, ReLU", lambda w: Cells(nn.RNNCell(w, w, nonlinearity="relu"), w, False), _sequences),
    _entry(
        "Transformer encoder, post-norm",
        lambda w: Chain(L(3, w), nn.TransformerEncoderLayer(w, 2, w + 2, 0.0, batch_first=True), L(w, 2)),
        _sequences,
    ),
    _entry(
        "Transformer encoder, pre-norm",
        lambda w: Chain(
            L(3, w),
            nn.TransformerEncoderLayer(w, 2, w + 2, 0.0, batch_first=True, norm_first=True),
            nn.LayerNorm(w),
            L(w, 2),
        ),
        _sequences,
    ),
    _entry("Transformer, encoder and decoder", TransformerPair, _sequences),
    _entry("Language model", lambda w: _language(w, Attention(w, _causal)), _words),
    _entry("Language model, rotary", lambda w: _language(w, Attention(w, _causal, _rotary)), _words),
    _entry(
        "Language model, ReLU, positions",
        lambda w: Apply(
            _positional,
            nn.Embedding(VOCABULARY, w),
            nn.Embedding(LENGTH, w),
            _block(w, Attention(w, _by_hand), nn.ReLU()),
            L(w, 3),
        ),
        _words,
    ),
    _entry("Language model, tied", TiedLanguageModel, _words),
    _entry("Linear attention", lambda w: _language(w, Attention(w, _linear_attention)), _words),
    _entry("ReLU attention", lambda w: _language(w, Attention(w, _relu_attention)), _words),
    _entry("Cosine attention", lambda w: _language(w, Attention(w, _cosine)), _words),
    _entry("ViT by hand", Vision, _images),
    _entry(
        "ViT, layer scale",
        lambda w: Chain(L(3, w), Residual(nn.LayerNorm(w), Attention(w, _by_hand), Gain(w)), nn.LayerNorm(w), L(w, 2)),
        _sequences,
    ),
    _entry("MLP-Mixer", Mixer, _sequences),
    _entry("gMLP", GatedMLP, _sequences),
    _entry("EmbeddingBag", lambda w: Chain(nn.EmbeddingBag(VOCABULARY, w), L(w, w), nn.ReLU(), L(w, 2)), _words),
    _entry("Factorisation machine", FactorisationMachine, _words),
)
