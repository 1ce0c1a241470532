"""Whole flows of what people have: laws to rounding, whatever the network, the loss and the precision."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import equipoise as eq
from equipoise.errors import InputError
from equipoise.integrate.loop import run_flow
from equipoise.integrate.manifest import Origin
from equipoise.networks import convnet, mlp, residual_mlp, transformer
from helpers.sampling import sampled


class Attention(nn.Module):
    """Four tokens of sixteen pixels through one block of attention without normalisation."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(16, 8)
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        h = self.embed(x.reshape(-1, 4, 16))
        mixed = nn.functional.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h))
        return self.head((h + self.out(mixed)).mean(1))


def digits(n=40):
    X, y = eq.data.load("digits", (0, 1), n=n)
    return X.flatten(1), y


def worst_drift(run):
    table = run.table()
    return float(table[table.quantity == "relative_drift"].value.max())


NETWORKS = {
    "attention": Attention,
    "gelu": lambda: nn.Sequential(nn.Linear(64, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(6, 1)),
    "average": lambda: convnet((8, 8), (2, 3), width=4, linear_tail=3),
    "maximum": lambda: convnet((8, 8), (2, 3), width=4, linear_tail=3, pool="maximum"),
    "prelu": lambda: nn.Sequential(nn.Linear(64, 8), nn.PReLU(8), nn.Linear(8, 6), nn.Linear(6, 1)),
    "skips": lambda: residual_mlp(64, 8, 8, blocks=2, linear_tail=3),
}


@pytest.mark.parametrize("name", sampled(NETWORKS, ["attention", "prelu", "average", "gelu"]))
def test_laws_to_rounding(name):
    torch.manual_seed(0)
    run = eq.flow(NETWORKS[name](), digits(20), until=eq.Steps(8), observe=[eq.Drift()])
    start = run.table().log_loss.iloc[0]
    assert run.status == "reached"
    assert run.log_loss < start - 1
    assert worst_drift(run) < 1e-14


def test_laws_of_a_transformer_to_rounding():
    """Attention and LayerNorm; the scale of the stream is a law but for the `eps` of the norms that read it."""
    run = eq.flow(transformer(4, 16, width=4, linear_tail=3), digits(20), until=eq.Steps(4), observe=[eq.Drift()])
    drifts = run.table().query("quantity == 'relative_drift'").groupby("place").value.max()
    start = run.table().log_loss.iloc[0]
    assert run.status == "reached"
    assert run.log_loss < start - 0.1
    stream = drifts.index.str.startswith("embed.weight")
    assert len(drifts) == 10  # eight laws, and the worst of two kinds
    assert drifts[~stream].max() < 1e-14
    assert 1e-12 < drifts[stream].item() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["average", "skips"])
def test_a_tail_above_convolutions_or_skips_to_depth(name):
    run = eq.flow(NETWORKS[name](), digits(), until=eq.LogLoss(-1e3), observe=[eq.Drift()])
    assert run.status == "reached"
    assert worst_drift(run) < 1e-14


def test_squared_loss_for_laws_and_trajectories():
    run = eq.flow(mlp([64, 8, 6, 1], 2), digits(), loss="squared", until=eq.Steps(15), observe=[eq.Drift()])
    assert run.log_loss < run.table().log_loss.iloc[0] - 0.5
    assert worst_drift(run) < 1e-14
    with pytest.raises(InputError, match=r"exponential tail.*gradient vanishes at finite weights.*eq.Steps"):
        eq.flow(mlp([64, 8, 6, 1], 2), digits(), loss="squared", until=eq.LogLoss(-1e6))


def test_single_precision_keeps_the_laws_to_its_own_rounding():
    run = eq.flow(mlp([64, 8, 6, 1], 2), digits(20), until=eq.LogLoss(-1e2), observe=[eq.Drift()], dtype=torch.float32)
    assert run.status == "reached"
    assert {tensor.dtype for tensor in run.final.values()} == {torch.float32}
    assert run.summary()["precision"] == "float32"
    assert 1e-10 < worst_drift(run) < 1e-5


def test_example_weights_are_kept_with_the_run(tmp_path):
    weights = torch.linspace(1, 3, 40).tolist()
    options = {"until": eq.Steps(3), "observe": [], "example_weights": weights}
    network = {"widths": [64, 8, 1], "linear_tail": 1}
    run = run_flow(mlp(**network), digits(), out=tmp_path / "run", origin=Origin(network), **options)
    plain = eq.flow(mlp(**network), digits(), until=eq.Steps(3), observe=[])
    again = eq.Run.load(tmp_path / "run", data=digits())
    assert run.log_loss != plain.log_loss
    assert again.log_loss == run.log_loss


class Maxout(nn.Module):
    """Two layers, with what bends between them."""

    def __init__(self, bend, width):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer, self.head, self.bend = nn.Linear(5, 12, bias=False), nn.Linear(width, 1, bias=False), bend
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)

    def forward(self, x):
        return self.head(self.bend(self.layer(x)))


def pairs_of(z):
    return z.view(len(z), 6, 2)


BENT = {
    "pool": (lambda z: F.max_pool1d(z[:, None], 2)[:, 0], 6),
    "amax": (lambda z: pairs_of(z).amax(-1), 6),
    "maximum": (lambda z: torch.maximum(z[:, ::2], z[:, 1::2]), 6),
    "minimum": (lambda z: -torch.minimum(-z[:, ::2], -z[:, 1::2]), 6),
    "hardtanh": (F.hardtanh, 12),
    "hardswish": (F.hardswish, 12),
    "selu": (F.selu, 12),
}


def bent(name, **settings):
    X = torch.randn(20, 5, generator=torch.Generator().manual_seed(1)).double()
    y = torch.where(X[:, 0] * X[:, 1] + 0.3 * X[:, 2] > 0, 1.0, -1.0)
    return eq.flow(Maxout(*BENT[name]), (X, y), observe=[eq.Drift()], **settings)


@pytest.mark.parametrize("written", sampled(["amax", "maximum", "minimum"], ["amax", "maximum"]))
def test_a_maximum_is_the_same_however_it_is_written(written):
    pool, other = (bent(name, until="growth=0.03") for name in ("pool", written))
    assert pool.status == "reached"
    for name, weight in pool.final.items():
        torch.testing.assert_close(other.final[name], weight, rtol=1e-4, atol=1e-4)
    assert other.last("drift", "relative_drift", "worst vertex") < 1e-15


@pytest.mark.parametrize("name", sampled(["hardtanh", "hardswish", "selu"], ["hardtanh", "selu"]))
def test_what_bends_otherwise_does_not_stall_either(name):
    run = bent(name, until=eq.Steps(12))
    assert run.status == "reached"


def test_a_stall_at_a_kink_that_is_not_followed_says_so():
    model = Maxout(lambda z: F.max_pool1d(z[:, None], 2, dilation=3)[:, 0], 5)
    X = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)).double()
    run = eq.flow(model, (X, torch.where(X[:, 0] * X[:, 1] > 0, 1.0, -1.0)), observe=[])
    assert run.status == "stalled"
    assert "max_pool1d bends where no kink is followed" in run.reason


def test_weights_may_be_single_numbers():
    """`θ₁ x₁ + u v x₂` of scalars without axes keeps its law `u² - v²`."""

    class Scalars(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.direct, self.u, self.v = (torch.nn.Parameter(torch.tensor(each)) for each in (0.5, 0.7, 0.4))

        def forward(self, x):
            return self.direct * x[:, :1] + self.u * self.v * x[:, 1:]

    X, y = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([1.0, -1.0])
    run = eq.flow(Scalars(), (X, y), until=eq.LogLoss(-5.0))
    assert run.status.reached
    start, end = (float(w["u"] ** 2 - w["v"] ** 2) for w in (run.initial, run.final))
    assert end == pytest.approx(start, rel=1e-12)
