"""A plain training loop under watch
=================================

Handwritten digits, curves in TensorBoard, records in a folder.

::

    python examples/watch_training.py runs/digits
    tensorboard --logdir runs/digits/tensorboard
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import equipoise as eq


def main(folder, epochs=5):
    torch.manual_seed(0)
    digits = load_digits()
    X, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=1e-4)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, y), batch_size=64, shuffle=True)

    observe = [eq.Spectrum(), eq.Alignment(), eq.Drift(), eq.Residual(), eq.Activity(X[:500]), eq.Margin((X, y))]
    board = eq.sinks.TensorBoard(Path(folder) / "tensorboard")
    with eq.watch(model, optimizer, every=20, observe=observe, sinks=[board], out=Path(folder) / "watch") as log:
        for _ in range(epochs):
            for inputs, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), labels).backward()
                optimizer.step()

    log.plot("stable_rank", "alignment_next", "dead", "residual").savefig(Path(folder) / "watch.svg")
    return log


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/digits")
