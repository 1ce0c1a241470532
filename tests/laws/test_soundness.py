"""No law is claimed that does not hold: T1 on random networks and losses; and what is left out does not hold."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from equipoise.laws import Full, invariances
from equipoise.laws.commutant import projection
from helpers.cases import Attention, PreNormBlock, Residual, RMSNorm, Squared, SwiGLU, case

L = nn.Linear


# Random networks ------------------------------------------------------------------------------------------------------


class Apply(nn.Module):
    """`combine(x, *branches)`."""

    def __init__(self, combine, *branches):
        super().__init__()
        self.combine, self.branches = combine, nn.ModuleList(branches)

    def forward(self, x):
        return self.combine(x, *self.branches)


def chain(*layers):
    return nn.Sequential(*layers)


def half_relu(x):
    u, v = x.chunk(2, 1 if x.ndim > 2 else -1)
    return torch.cat([F.relu(u), v], 1 if x.ndim > 2 else -1)


def joined(x, a, b):
    return torch.cat([F.relu(a(x)), b(x)], 1)


POINTWISE = [
    nn.ReLU,
    lambda: nn.LeakyReLU(0.1),
    nn.PReLU,
    nn.GELU,
    nn.Tanh,
    Squared,
    lambda: nn.Dropout(0.3),
    lambda: Apply(lambda x: x.abs()),
    lambda: Apply(half_relu),
]

# Stages that keep a vector of width 6, a sequence of such vectors, or a picture of 4 channels.
VECTOR = [
    lambda: L(6, 6),
    lambda: L(6, 6, bias=False),
    lambda: nn.LayerNorm(6),
    lambda: RMSNorm(6, 0.0),
    lambda: nn.BatchNorm1d(6),
    lambda: SwiGLU(6, 4),
    lambda: SwiGLU(6, 4, F.relu),
    lambda: Residual(chain(L(6, 5), nn.ReLU(), L(5, 6))),
    lambda: Residual(chain(nn.LayerNorm(6), L(6, 5), nn.GELU(), L(5, 6))),
    lambda: Residual(chain(L(6, 4), nn.ReLU(), L(4, 6)), L(6, 6)),
    lambda: chain(L(6, 12), nn.MaxPool1d(2)),
    lambda: chain(L(6, 13), nn.MaxPool1d(3, 2)),
    lambda: chain(L(6, 12), nn.GLU()),
    lambda: Apply(joined, L(6, 2), L(6, 4)),
    lambda: nn.utils.parametrizations.weight_norm(L(6, 6)),
]
SEQUENCE = [
    lambda: L(6, 6),
    lambda: nn.LayerNorm(6),
    lambda: RMSNorm(6),
    lambda: SwiGLU(6, 4),
    lambda: Attention(6, 2),
    lambda: Attention(6, 3, fused=False),
    lambda: Attention(6, 4, 2, head_width=3),
    lambda: Attention(6, 2, 1, head_width=4, rope=0),
    lambda: Attention(6, 2, head_width=6, rope=2, bias=False),
    lambda: Residual(Attention(6, 2, bias=False)),
    lambda: PreNormBlock(6, Attention(6, 2), chain(L(6, 4), nn.ReLU(), L(4, 6))),
    lambda: PreNormBlock(6, Attention(6, 2, 1, rope=1, head_width=3), SwiGLU(6, 4), RMSNorm),
    lambda: nn.TransformerEncoderLayer(6, 2, 5, batch_first=True, dropout=0.2),
]
PICTURE = [
    lambda: nn.Conv2d(4, 4, 3, padding=1),
    lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
    lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
    lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2),
    lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2),
    lambda: nn.BatchNorm2d(4),
    lambda: nn.GroupNorm(2, 4),
    lambda: nn.MaxPool2d(3, 1, 1),
    lambda: nn.AvgPool2d(3, 1, 1),
    lambda: Residual(nn.Conv2d(4, 4, 3, padding=1)),
    lambda: Residual(chain(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1))),
    lambda: Apply(joined, nn.Conv2d(4, 1, 1), nn.Conv2d(4, 3, 3, padding=1)),
    lambda: chain(nn.Conv2d(4, 4, 2, 2), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, 2)),
    lambda: chain(nn.Conv2d(4, 4, 2, 2), nn.Upsample(scale_factor=2)),
]
FAMILIES = {
    "vector": (VECTOR, lambda: L(3, 6), lambda: L(6, 2), (3,)),
    "sequence": (SEQUENCE, lambda: L(3, 6), lambda: L(6, 2), (4, 3)),
    "picture": (
        PICTURE,
        lambda: nn.Conv2d(2, 4, 3, padding=1),
        lambda: chain(nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(4, 2)),
        (2, 6, 6),
    ),
}
LOSSES = [
    lambda out: out.tanh().mul(torch.linspace(-1, 2, out.numel()).reshape(out.shape)).sum(),
    lambda out: out.logsumexp(-1).square().mean(),
    lambda out: (out - 1).abs().sum(),
    lambda out: F.cross_entropy(out.flatten(0, -2), torch.arange(out.numel() // 2) % 2),
]


@st.composite
def networks(draw, family):
    stages, first, last, _ = FAMILIES[family]
    chosen = draw(st.lists(st.sampled_from(stages + POINTWISE), min_size=1, max_size=5))
    torch.manual_seed(draw(st.integers(0, 99)))
    return chain(first(), *(stage() for stage in chosen), last()).double()


def check(family, model, size, loss):
    shape = FAMILIES[family][-1]
    laws = invariances(model, torch.randn(2, *shape, dtype=torch.float64), through_detach=True)
    assert laws.coverage.complete, laws.coverage
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    loss(model(torch.randn(size, *shape, dtype=torch.float64))).backward()
    for law, residual in zip(laws, laws.residual(model).values(), strict=True):
        assert residual < (1e-14 if law.exact else 0.1), law.explain()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_law_of_a_random_network_holds(family):
    @settings(max_examples=6, suppress_health_check=list(HealthCheck))
    @given(networks(family), st.integers(2, 6), st.sampled_from(LOSSES))
    def holds(model, size, loss):
        check(family, model, size, loss)

    holds()


# What is left out -----------------------------------------------------------------------------------------------------

SMALL = [
    "relu",
    "leaky relu",
    "prelu",
    "degree two",
    "maxpool over units",
    "convolutions",
    "depthwise, transposed",
    "skip into relu",
    "rms norm",
    "batch norm",
    "group norm",
    "weight norm",
    "attention",
    "grouped query",
    "rotary",
    "partly rotary",
    "swiglu",
    "reglu",
    "gatv2",
    "recurrent",
    "layer scale",
    "autoencoder",
]


def whole_moments(law, weights, gradients):
    """`Σ degree G Wᵀ` over all components of the interface, as if any matrix could act on them."""
    blocks, _, width = law.interface.members[0].index.shape
    slices = lambda tensors: [  # noqa: E731
        member.slices(tensors[member.parameter]).transpose(0, 1).flatten(1, 2)[None] for member in law.interface.members
    ]
    degrees = [member.degree for member in law.interface.members]
    return Full(blocks * width).moments(slices(gradients), slices(weights), degrees)[0]


def draw(model, inputs, generator):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    model.zero_grad()
    out = model(*(torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x for x in inputs))
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    parameters = dict(model.named_parameters())
    return {name: p.detach().clone() for name, p in parameters.items()}, {
        name: p.grad for name, p in parameters.items()
    }


@pytest.mark.parametrize("name", SMALL)
def test_nothing_outside_the_commutant_is_conserved(derived, name):
    """At an interface, no combination of the moments that the commutant leaves out vanishes at every point."""
    model, inputs = case(name).model(), case(name).inputs()
    generator = torch.Generator().manual_seed(0)
    laws = [law for law in derived(name) if law.kind != "shift" and math.prod(law.commutant.shape) <= 6]
    size = max((math.prod(law.commutant.shape) for law in laws), default=0)
    points = [draw(model, inputs, generator) for _ in range(size**2 + 10)]
    for law in laws:
        units = torch.eye(math.prod(law.commutant.shape) ** 2, dtype=torch.float64)
        side = math.prod(law.commutant.shape)
        inside = torch.stack([projection(law.commutant, unit.reshape(side, side)).reshape(-1) for unit in units])
        moments = torch.stack([whole_moments(law, *point).reshape(-1) / law.scale(*point) for point in points])
        if law.exact:
            assert (moments @ inside).abs().max() < 1e-12, law.name
        expected = len(units) - int(torch.linalg.matrix_rank(inside))
        found = torch.linalg.matrix_rank(moments @ (units - inside), rtol=1e-10) if expected else 0
        assert found == expected, law.name
