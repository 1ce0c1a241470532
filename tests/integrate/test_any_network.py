"""Whole flows of what people have: laws to rounding, whatever the network, the loss and the precision."""

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import InputError
from equipoise.networks import convnet, mlp, residual_mlp, transformer


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


@pytest.mark.parametrize("name", NETWORKS)
def test_laws_to_rounding(name):
    torch.manual_seed(0)
    run = eq.flow(NETWORKS[name](), digits(), until=eq.Steps(12), observe=[eq.Drift()])
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
    run = eq.flow(mlp([64, 8, 6, 1], 2), digits(), until=eq.LogLoss(-1e3), observe=[eq.Drift()], dtype=torch.float32)
    assert run.status == "reached"
    assert {tensor.dtype for tensor in run.final.values()} == {torch.float32}
    assert run.summary()["precision"] == "float32"
    assert 1e-10 < worst_drift(run) < 1e-5


def test_example_weights_are_kept_with_the_run(tmp_path):
    weights = torch.linspace(1, 3, 40).tolist()
    options = {"until": eq.Steps(3), "observe": [], "example_weights": weights}
    network = {"widths": [64, 8, 1], "linear_tail": 1}
    run = eq.flow(mlp(**network), digits(), out=tmp_path / "run", arguments={"network": network}, **options)
    plain = eq.flow(mlp(**network), digits(), until=eq.Steps(3), observe=[])
    again = eq.Run.load(tmp_path / "run", data=digits())
    assert run.log_loss != plain.log_loss
    assert again.log_loss == run.log_loss
