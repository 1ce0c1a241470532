# slow
"""Gradient descent on MNIST, and how near each layer comes to rank one
====================================================================

Draws docs/rank_one_mnist.svg. ``σ₁/‖W‖_F`` is 1 for a matrix of rank one. A ReLU layer below three linear ones, 0
against 1, full-batch gradient descent whose every step has length 0.02. About half a minute:
``python examples/rank_one_mnist.py [FILE.svg]``
"""

import sys

import matplotlib as mpl

import equipoise as eq

mpl.use("svg")
import matplotlib.pyplot as plt

EPOCHS = 600
DATA = eq.data.load("mnist", (0, 1), n=100)
MODEL = eq.networks.mlp([784, 32, 32, 32, 1], linear_tail=3, scale=0.5)

run = eq.flow(
    MODEL,
    DATA,
    loss="logistic",
    until=eq.Steps(EPOCHS),
    stepper=eq.steppers.GradientDescent(0.02, "normalised"),
    observe=[eq.Spectrum()],
)
table = run.table()
decrease = table[table.quantity == "decrease"].value
share = (decrease >= 0.5).mean()
print(f"log R {run.log_loss:.1f} after {run.steps} epochs; {share:.0%} of the steps obey the descent lemma")

chart, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name in run.final:
    residual = table[(table.quantity == "rank_one_residual") & (table.place == name)]
    share = (1 - residual.value).clip(lower=0) ** 0.5
    print(f"{name}: σ₁/‖W‖_F from {share.iloc[0]:.3f} to {share.iloc[-1]:.3f}")
    axes.plot(residual.step, share, label=name)
axes.set(
    xlabel="epochs of gradient descent",
    ylabel="σ₁ / ‖W‖_F",
    title="MNIST 0 against 1: one ReLU layer below three linear ones",
)
axes.grid(visible=True, alpha=0.3)
axes.legend()
chart.savefig(sys.argv[1] if len(sys.argv) > 1 else "rank_one_mnist.svg", metadata={"Date": None})
