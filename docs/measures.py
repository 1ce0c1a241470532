"""Draw docs/measures.svg: measures of a network on digits while it trains, without weight decay and with it."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

import equipoise as eq

PICTURE = Path(__file__).with_name("measures.svg")
PANELS = {
    "normalised effective rank, layer 2": ("spectrum", "normalised_effective_rank", "layer2.weight"),
    "variation within classes, last features": ("class_features", "variation_share", "layer3.weight"),
    "nearest-class-centre mismatch, last features": ("class_features", "mismatch", "layer3.weight"),
    "rank of the Jacobian, mean": ("bottleneck", "mean_jacobian_rank", ""),
}


def trained(weight_decay: float):
    """The log of one training on half of the digits."""
    X, y = eq.data.load("digits", n=900, seed=0)
    model = eq.networks.mlp([64, 64, 64, 10], init="kaiming", seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=weight_decay)
    observe = [eq.Spectrum(r=2), eq.ClassFeatures((X, y)), eq.Bottleneck(X[:100], tolerance=0.05)]
    generator = torch.Generator().manual_seed(0)
    with eq.watch(model, optimizer, every=100, full_every=1, observe=observe, quiet=True, alarms=[]) as log:
        for _ in range(3000):
            rows = torch.randint(len(X), (50,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model(X[rows]), y[rows]).backward()
            optimizer.step()
    return log.table()


def draw() -> None:
    """Four panels, one curve for each weight decay."""
    plt.rcParams |= {"svg.hashsalt": "measures", "svg.fonttype": "path", "font.size": 9}
    figure, axes = plt.subplots(2, 2, figsize=(8, 5), sharex=True, layout="constrained")
    figure.patch.set_facecolor("white")
    for weight_decay, colour in ((0.0, "#2166ac"), (0.01, "#b2182b")):
        table = trained(weight_decay)
        for axis, (title, (observer, quantity, place)) in zip(axes.flat, PANELS.items(), strict=True):
            rows = table[(table.observer == observer) & (table.quantity == quantity) & (table.place == place)]
            axis.plot(rows.step, rows.value, color=colour, label=f"weight decay {weight_decay:g}")
            axis.set_title(title, fontsize=9)
            axis.set_ylim(bottom=0)
            axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("step")
    axes[0, 0].legend(frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    draw()
