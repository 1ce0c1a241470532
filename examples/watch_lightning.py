"""A Lightning training under watch, on handwritten digits
=======================================================

::

    python examples/watch_lightning.py
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import equipoise as eq
from equipoise.integrations.lightning import WatchCallback


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 10))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        inputs, labels = batch
        return F.cross_entropy(self(inputs), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(epochs=3, **trainer):
    lightning.seed_everything(0, verbose=False)
    digits = load_digits()
    X, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, y), batch_size=128, shuffle=True)
    observe = [eq.Spectrum(), eq.Alignment(), eq.Drift(), eq.Residual(), eq.Activity(X[:200])]
    watching = WatchCallback(every=10, observe=observe)
    lightning.Trainer(max_epochs=epochs, callbacks=[watching], accelerator="cpu", **trainer).fit(Classifier(), loader)
    return watching.log


if __name__ == "__main__":
    main()
