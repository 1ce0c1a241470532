"""The first minutes of a user, with an installed wheel and no extra: `make package` runs it outside the repository."""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import equipoise as eq


def main() -> None:
    """Derive laws, watch a training, run a flow, certify it, analyze a checkpoint."""
    assert "site-packages" in eq.__file__, eq.__file__
    assert eq.__version__ == version("equipoise")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
    X, y = eq.data.load("separable", n=20, d=4)
    laws = eq.invariances(model, X.float())
    nn.functional.soft_margin_loss(model(X.float()).squeeze(1), y.float()).backward()
    assert max(float(residual.max()) for residual in laws.residual(model).values()) < 1e-6
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tempfile.TemporaryDirectory() as folder:
        with eq.watch(model, optimizer, every=2, out=Path(folder) / "watch") as log:
            for _ in range(6):
                optimizer.zero_grad()
                nn.functional.soft_margin_loss(model(X.float()).squeeze(1), y.float()).backward()
                optimizer.step()
        assert len(log.table()) > 10
        run = eq.flow(eq.networks.mlp([4, 6, 1], linear_tail=1, seed=0), (X, y), until=eq.LogLoss(-10))
        assert eq.certify(run).claims
        torch.save(model.state_dict(), Path(folder) / "model.pt")
        table = eq.analyze(Path(folder) / "model.pt").set_index("name")
        assert table.loc["0.weight", "shape"] == (6, 4)
        command = Path(sys.executable).with_name("equipoise")
        subprocess.run([command, "analyze", Path(folder) / "model.pt", "--json"], check=True, capture_output=True)
    print(f"equipoise {eq.__version__} works from {Path(eq.__file__).parent}")


if __name__ == "__main__":
    main()
