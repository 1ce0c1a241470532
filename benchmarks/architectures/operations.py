"""Small modules around one operation each: other spellings of what architectures are made of."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from architectures.entry import BATCH, LENGTH, VOCABULARY, Architecture, Inputs

L = nn.Linear


class Built(nn.Module):
    """`compute(self, *inputs)` of modules and parameters by name."""

    def __init__(self, compute: Callable[..., Tensor], **parts: nn.Module | tuple[int, ...]):
        super().__init__()
        self.compute = compute
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(torch.randn(part)))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.compute(self, *inputs)


def _entry(
    name: str,
    build: Callable[[int], nn.Module],
    inputs: Callable[[int], Inputs] | None = None,
    *,
    training: bool = False,
) -> Architecture:
    return Architecture(name, "operations", build, inputs or _vectors, training=training)


def _vectors(_: int) -> Inputs:
    return (torch.randn(6, 3),)


def _sequences(_: int) -> Inputs:
    return (torch.randn(BATCH, LENGTH, 3),)


def _images(_: int) -> Inputs:
    return (torch.randn(BATCH, 2, 6, 6),)


def _signals(_: int) -> Inputs:
    return (torch.randn(BATCH, 2, 8),)


def _words(_: int) -> Inputs:
    return (torch.randint(1, VOCABULARY, (BATCH, LENGTH)),)


def _pair(_: int) -> Inputs:
    return torch.randn(BATCH, LENGTH, 3), torch.randn(BATCH, 4, 2)


def _wide(width: int) -> Inputs:
    return (torch.randn(6, width),)


# Computations -------------------------------------------------------------------------------------------------------


def _heads(m: Any, x: Tensor) -> Tensor:
    """Attention by `einsum` over weights of three axes."""
    q, k, v = (torch.einsum("btd,dhk->bthk", x, weight) for weight in (m.q, m.k, m.v))
    shares = torch.einsum("bthk,bshk->bhts", q, k).softmax(-1)
    return torch.einsum("bhts,bshk,hkd->btd", shares, v, m.o)


def _alibi(m: Any, x: Tensor) -> Tensor:
    """A penalty for distance, one slope for each head."""
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (m.q(x), m.k(x), m.v(x)))
    places = torch.arange(x.shape[1])
    far = (places[None] - places[:, None]).abs() * torch.tensor([0.5, 0.25])[:, None, None]
    return m.o(((q @ k.mT - far).softmax(-1) @ v).transpose(1, 2).flatten(2))


def _crossed(m: Any, x: Tensor, y: Tensor) -> Tensor:
    """Queries of one input, keys and values of another, padding masked."""
    hidden = torch.tensor([False, False, False, True])
    scores = (m.q(x) @ m.k(y).mT / 2).masked_fill(hidden, -math.inf)
    return m.o(scores.softmax(-1) @ m.v(y))


def _top_two(m: Any, x: Tensor) -> Tensor:
    """The two best of three experts, all of them computed."""
    values, places = m.gate(x).topk(2, -1)
    shares = torch.zeros(len(x), 3, dtype=x.dtype).scatter(-1, places, values.softmax(-1))
    outputs = torch.stack([m.down[e](F.silu(m.gates[e](x)) * m.up[e](x)) for e in range(3)], 1)
    return (shares[..., None] * outputs).sum(1)


def _scanned(m: Any, x: Tensor) -> Tensor:
    """A selective state-space scan, step by step."""
    inward, outward, decay = m.b(x), m.c(x), torch.sigmoid(m.a(x))
    state, found = torch.zeros(len(x), inward.shape[-1], dtype=x.dtype), []
    for place in range(x.shape[1]):
        state = decay[:, place] * state + inward[:, place]
        found.append((state * outward[:, place]).sum(-1))
    return torch.stack(found, 1)


def _cumulated(m: Any, x: Tensor) -> Tensor:
    """Means of all before, by cumulative sums."""
    return m.out(m.value(x).cumsum(1) / torch.arange(1, x.shape[1] + 1).reshape(-1, 1))


def _unrolled(cell: str) -> Callable[..., Tensor]:
    def run(m: Any, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), m.cell.hidden_size, dtype=x.dtype)
        memory = (state, state) if cell == "lstm" else state
        for place in range(x.shape[1]):
            memory = m.cell(m.into(x[:, place]), memory)
        return m.out(memory[0] if cell == "lstm" else memory)

    return run


def _spectral(m: Any, x: Tensor) -> Tensor:
    """Frequencies of a signal, each by real and imaginary weights of its own."""
    found = torch.fft.rfft(m.into(x.mT).mT)
    return torch.fft.irfft(found * torch.complex(m.real, m.imaginary), n=x.shape[-1])


def _tokens_and_places(m: Any, x: Tensor) -> Tensor:
    """A class token before patches, positions on all."""
    patches = m.patches(x).flatten(2).mT
    tokens = torch.cat([m.token.expand(len(x), 1, -1), patches], 1) + m.places(torch.arange(10))
    return m.head(F.relu(m.body(m.norm(tokens)[:, 0])))


def _merged(m: Any, x: Tensor) -> Tensor:
    """Squares of four tokens side by side, normalised together."""
    x = m.patches(x).permute(0, 2, 3, 1)
    squares = torch.cat([x[:, a::2, b::2] for a in (0, 1) for b in (0, 1)], -1)
    return m.head(m.norm(squares)).flatten(1)


def _pooled(m: Any, x: Tensor) -> Tensor:
    """Pooling in place of attention."""
    x = m.into(x)
    normed = m.norm(x)
    return m.out((x + F.avg_pool2d(normed, 3, 1, 1, count_include_pad=False) - normed).relu())


def _gathered(m: Any, x: Tensor) -> Tensor:
    """Rows at the places of the largest scores."""
    places = x.sum(-1).argsort(1)[..., None].expand(-1, -1, m.into.out_features)
    return m.out(F.relu(m.into(x).gather(1, places)))


ENTRIES: tuple[Architecture, ...] = (
    _entry("einsum, heads", lambda w: Built(_heads, q=(3, 2, w), k=(3, 2, w), v=(3, 2, w), o=(2, w, 3)), _sequences),
    _entry(
        "einsum, three factors",
        lambda w: Built(lambda m, x: torch.einsum("bi,ij,jk->bk", x, m.a, m.b), a=(3, w), b=(w, 2)),
    ),
    _entry(
        "einsum, outer",
        lambda w: Built(
            lambda m, x: torch.einsum("bi,bj,oij->bo", m.a(x), m.b(x), m.c), a=L(3, w), b=L(3, w), c=(2, w, w)
        ),
    ),
    _entry(
        "tied, scaled output",
        lambda w: Built(
            lambda m, i: F.linear(F.relu(m.body(m.words(i) * w**0.5)), m.words.weight) / w**0.5,
            words=nn.Embedding(VOCABULARY, w),
            body=L(w, w),
        ),
        _words,
    ),
    _entry(
        "tied across layers",
        lambda w: Built(
            lambda m, x: m.out(F.relu(m.body(F.relu(m.body(m.into(x)))))), into=L(3, w), body=L(w, w), out=L(w, 2)
        ),
    ),
    _entry(
        "bilinear after layers",
        lambda w: Built(lambda m, x: m.c(m.a(x), F.relu(m.b(x))), a=L(3, w), b=L(3, w), c=nn.Bilinear(w, w, 2)),
    ),
    _entry(
        "RNN cell, projected",
        lambda w: Built(_unrolled("rnn"), into=L(3, w), cell=nn.RNNCell(w, w, nonlinearity="relu"), out=L(w, 2)),
        _sequences,
    ),
    _entry(
        "GRU cell, projected",
        lambda w: Built(_unrolled("gru"), into=L(3, w), cell=nn.GRUCell(w, w), out=L(w, 2)),
        _sequences,
    ),
    _entry(
        "LSTM cell, projected",
        lambda w: Built(_unrolled("lstm"), into=L(3, w), cell=nn.LSTMCell(w, w), out=L(w, 2)),
        _sequences,
    ),
    _entry(
        "embedding, padding",
        lambda w: nn.Sequential(nn.Embedding(VOCABULARY, w, padding_idx=0), L(w, w), nn.ReLU(), L(w, 2)),
        _words,
    ),
    _entry(
        "embedding, largest norm", lambda w: nn.Sequential(nn.Embedding(VOCABULARY, w, max_norm=0.5), L(w, 2)), _words
    ),
    _entry(
        "embedding, normalised",
        lambda w: nn.Sequential(nn.Embedding(VOCABULARY, w), nn.LayerNorm(w), L(w, w), nn.ReLU(), L(w, 2)),
        _words,
    ),
    _entry(
        "embedding, root mean square",
        lambda w: nn.Sequential(nn.Embedding(VOCABULARY, w), nn.RMSNorm(w), L(w, 2)),
        _words,
    ),
    _entry(
        "transposed convolutions",
        lambda w: nn.Sequential(nn.ConvTranspose2d(2, w, 2, 2), nn.ReLU(), nn.ConvTranspose2d(w, 1, 3, groups=1)),
        _images,
    ),
    _entry(
        "transposed convolution in groups",
        lambda w: nn.Sequential(
            nn.Conv1d(2, w, 1), nn.ConvTranspose1d(w, w, 3, groups=2), nn.ReLU(), nn.Conv1d(w, 1, 1)
        ),
        _signals,
    ),
    _entry(
        "Fourier filter", lambda w: Built(_spectral, into=L(2, 2, bias=False), real=(2, 5), imaginary=(2, 5)), _signals
    ),
    _entry(
        "GEGLU",
        lambda w: Built(
            lambda m, x: m.out((h := m.into(x).chunk(2, -1))[0] * F.gelu(h[1])), into=L(3, 2 * w), out=L(w, 2)
        ),
    ),
    _entry("bilinear GLU", lambda w: Built(lambda m, x: m.out(m.a(x) * m.b(x)), a=L(3, w), b=L(3, w), out=L(w, 2))),
    _entry(
        "ReGLU, chunked",
        lambda w: Built(
            lambda m, x: m.out((h := m.into(x).chunk(2, -1))[0] * F.relu(h[1])), into=L(3, 2 * w), out=L(w, 2)
        ),
    ),
    _entry("cross attention, masked", lambda w: Built(_crossed, q=L(3, w), k=L(2, w), v=L(2, w), o=L(w, 2)), _pair),
    _entry(
        "cross attention, module",
        lambda w: Built(
            lambda m, x, y: m.o(m.a(m.x(x), m.y(y), m.y(y), need_weights=False)[0]),
            x=L(3, w),
            y=L(2, w),
            a=nn.MultiheadAttention(w, 2, batch_first=True),
            o=L(w, 2),
        ),
        _pair,
    ),
    _entry("ALiBi", lambda w: Built(_alibi, q=L(3, w), k=L(3, w), v=L(3, w), o=L(w, 3)), _sequences),
    _entry(
        "grouped queries",
        lambda w: Built(
            lambda m, x: m.o(
                F.scaled_dot_product_attention(
                    *(p.unflatten(-1, (-1, w // 2)).transpose(1, 2) for p in (m.q(x), m.k(x), m.v(x))), enable_gqa=True
                )
                .transpose(1, 2)
                .flatten(2)
            ),
            q=L(3, w),
            k=L(3, w // 2),
            v=L(3, w // 2),
            o=L(w, 3),
        ),
        _sequences,
    ),
    _entry(
        "experts, the best two",
        lambda w: Built(
            _top_two,
            gate=L(3, 3),
            gates=nn.ModuleList(L(3, w) for _ in range(3)),
            up=nn.ModuleList(L(3, w) for _ in range(3)),
            down=nn.ModuleList(L(w, 2) for _ in range(3)),
        ),
    ),
    _entry(
        "weight norm by columns",
        lambda w: nn.Sequential(parametrizations.weight_norm(L(3, w), dim=1), nn.ReLU(), L(w, 2)),
    ),
    _entry(
        "weight norm, whole",
        lambda w: nn.Sequential(parametrizations.weight_norm(L(3, w), dim=None), nn.ReLU(), L(w, 2)),
    ),
    _entry(
        "weight norm in groups",
        lambda w: nn.Sequential(
            nn.Conv1d(2, w, 1),
            parametrizations.weight_norm(nn.Conv1d(w, w, 3, groups=2)),
            nn.ReLU(),
            nn.Conv1d(w, 1, 1),
        ),
        _signals,
    ),
    _entry("selective scan", lambda w: Built(_scanned, a=L(3, w), b=L(3, w), c=L(3, w)), _sequences),
    _entry("cumulative means", lambda w: Built(_cumulated, value=L(3, w), out=L(w, 2)), _sequences),
    _entry("gathered", lambda w: Built(_gathered, into=L(3, w), out=L(w, 2)), _sequences),
    _entry(
        "group norm, two groups",
        lambda w: nn.Sequential(nn.Conv2d(2, w, 3), nn.GroupNorm(2, w), nn.ReLU(), nn.Conv2d(w, 2, 1)),
        _images,
    ),
    _entry(
        "instance norm",
        lambda w: nn.Sequential(nn.Conv2d(2, w, 3), nn.InstanceNorm2d(w, affine=True), nn.ReLU(), nn.Conv2d(w, 2, 1)),
        _images,
    ),
    _entry(
        "instance norm, running",
        lambda w: nn.Sequential(
            nn.Conv2d(2, w, 3),
            nn.InstanceNorm2d(w, affine=True, track_running_stats=True),
            nn.ReLU(),
            nn.Conv2d(w, 2, 1),
        ),
        _images,
    ),
    _entry(
        "local response norm",
        lambda w: nn.Sequential(nn.Conv2d(2, w, 3), nn.LocalResponseNorm(2), nn.Conv2d(w, 2, 1)),
        _images,
    ),
    _entry(
        "pixel shuffle",
        lambda w: nn.Sequential(nn.Conv2d(2, 4 * w, 1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(w, 1, 1)),
        _images,
    ),
    _entry(
        "pixel unshuffle",
        lambda w: nn.Sequential(nn.Conv2d(2, w, 1), nn.PixelUnshuffle(2), nn.ReLU(), nn.Conv2d(4 * w, 1, 1)),
        _images,
    ),
    _entry(
        "unfold",
        lambda w: Built(
            lambda m, x: m.out(F.relu(m.into(F.unfold(m.first(x), 2).mT))),
            first=nn.Conv2d(2, 2, 1),
            into=L(8, w),
            out=L(w, 2),
        ),
        _images,
    ),
    _entry(
        "unfold and fold",
        lambda w: Built(
            lambda m, x: m.out(F.fold(m.into(F.unfold(m.first(x), 2, stride=2).mT).mT, (6, 6), 2, stride=2)),
            first=nn.Conv2d(2, w, 1),
            into=L(4 * w, 4 * w),
            out=nn.Conv2d(w, 1, 1),
        ),
        _images,
    ),
    _entry(
        "channel shuffle",
        lambda w: nn.Sequential(nn.Conv2d(2, w, 1), nn.ChannelShuffle(2), nn.ReLU(), nn.Conv2d(w, 1, 1)),
        _images,
    ),
    _entry(
        "reader of a norm without gain",
        lambda w: Built(lambda m, x: m.out(F.gelu(m.body(F.layer_norm(x, (w,))))), body=L(w, w), out=L(w, 2)),
        _wide,
    ),
    _entry(
        "reader of probabilities", lambda w: Built(lambda m, x: m.out(m.into(x).softmax(-1)), into=L(3, w), out=L(w, 2))
    ),
    _entry(
        "reader of a difference",
        lambda w: Built(
            lambda m, x: m.out(F.gelu(m.mix(torch.cat([a := m.a(x).tanh(), b := m.b(x).sin(), a - b], -1)))),
            a=L(3, w),
            b=L(3, w),
            mix=L(3 * w, w),
            out=L(w, 2),
        ),
    ),
    _entry(
        "skip around a linear layer",
        lambda w: Built(lambda m, x: m.out((h := m.into(x)) + m.body(h)), into=L(3, w), body=L(w, w), out=L(w, 2)),
    ),
    _entry(
        "skip around a linear layer, ReLU",
        lambda w: Built(
            lambda m, x: m.out(F.relu((h := F.relu(m.into(x))) + m.body(h))), into=L(3, w), body=L(w, w), out=L(w, 2)
        ),
    ),
    _entry(
        "class token and places",
        lambda w: Built(
            _tokens_and_places,
            patches=nn.Conv2d(2, w, 2, 2, bias=False),
            token=(w,),
            places=nn.Embedding(10, w),
            norm=nn.LayerNorm(w),
            body=L(w, w),
            head=L(w, 2),
        ),
        _images,
    ),
    _entry(
        "merged patches",
        lambda w: Built(_merged, patches=nn.Conv2d(2, w, 3, padding=1), norm=nn.LayerNorm(4 * w), head=L(4 * w, 1)),
        _images,
    ),
    _entry(
        "pooling for attention",
        lambda w: Built(_pooled, into=nn.Conv2d(2, w, 1), norm=nn.GroupNorm(1, w), out=nn.Conv2d(w, 1, 1)),
        _images,
    ),
    _entry(
        "mixture of softmaxes",
        lambda w: Built(
            lambda m, x: (
                (m.prior(x).softmax(-1)[..., None] * m.heads(x).unflatten(-1, (2, w)).softmax(-1)).sum(1).log()
            ),
            prior=L(3, 2),
            heads=L(3, 2 * w),
        ),
    ),
    _entry(
        "log-sum-exp pooling",
        lambda w: Built(lambda m, x: m.out(m.into(x).logsumexp(1)), into=L(3, w), out=L(w, 2)),
        _sequences,
    ),
    _entry(
        "factorised embedding",
        lambda w: nn.Sequential(nn.Embedding(VOCABULARY, 2), L(2, w, bias=False), nn.ReLU(), L(w, 2)),
        _words,
    ),
    _entry(
        "low rank and its mean",
        lambda w: Built(
            lambda m, x: F.relu(x @ m.a @ m.b - (x @ m.a @ m.b).mean(-1, keepdim=True)), a=(3, 2), b=(2, w)
        ),
    ),
    _entry(
        "kernel generated by a network",
        lambda w: Built(
            lambda m, x: torch.einsum("boi,bi->bo", m.out(F.relu(m.into(x))).unflatten(-1, (2, 3)), x),
            into=L(3, w),
            out=L(w, 6),
        ),
    ),
    _entry(
        "squeeze by maximum",
        lambda w: Built(
            lambda m, x: m.out((h := m.into(x)) * torch.sigmoid(m.gate(h.amax((2, 3))))[..., None, None]),
            into=nn.Conv2d(2, w, 1),
            gate=L(w, w),
            out=nn.Conv2d(w, 1, 1),
        ),
        _images,
    ),
    _entry(
        "reversed heads",
        lambda w: Built(
            lambda m, x: m.out(torch.stack([m.a(x), m.b(x).flip(-1)]).prod(0)), a=L(3, w), b=L(3, w), out=L(w, 2)
        ),
    ),
    _entry(
        "batch norm and dropout off",
        lambda w: nn.Sequential(L(3, w), nn.BatchNorm1d(w), nn.Dropout(0.0), nn.LeakyReLU(0.2), L(w, 2)),
        training=True,
    ),
)
