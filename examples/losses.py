# slow
"""Exponential and logistic flows part before separation
=====================================================

Draws docs/losses.svg: two flows of different losses from one point part before separation, and not after it.

::

    python examples/losses.py [docs/losses.svg]
"""

import math
import sys

import matplotlib as mpl

import equipoise as eq

mpl.use("svg")
import matplotlib.pyplot as plt

LOSSES = ("exponential", "logistic")
DATA = eq.data.load("separable", n=30, d=5)
POINTS = [eq.Growth(quarters / 4) for quarters in range(1, 14)]


def apart(one, other):
    """`‖w - w'‖ / ‖w‖`."""
    square = sum(float((one[name] - other[name]).square().sum()) for name in one)
    return math.sqrt(square / sum(float(weight.square().sum()) for weight in one.values()))


def distances(model):
    """Growth since the start, and the distance of the two flows there."""
    runs = [eq.flow(model, DATA, loss, until=eq.LogLoss(-1e6), save_at=POINTS, observe=[]) for loss in LOSSES]
    both = [point for point in POINTS if all(point.describe() in run.saved for run in runs)]
    return [point.value for point in both], [apart(*(run.saved[point.describe()] for run in runs)) for point in both]


chart, axes = plt.subplots(figsize=(6, 4), layout="constrained")
network = eq.networks.mlp([5, 6, 6, 1], linear_tail=2)
for depth, mark in ((None, "o"), (-3.0, "s"), (-10.0, "^"), (-25.0, "v"), (-40.0, "x")):
    model = network
    if depth is not None:
        model = eq.flow(network, DATA, until=eq.LogLoss(depth), observe=[]).model
    growth, distance = distances(model)
    label = "the initial weights" if depth is None else f"log R = {depth:.0f}"
    print(f"from {label}: at most {max(distance):.1e} apart, {distance[-1]:.1e} at the end")
    axes.semilogy(growth, [max(each, 1e-17) for each in distance], marker=mark, label=f"from {label}")
axes.set(
    xlabel="growth s since the start", ylabel="‖w - w′‖ / ‖w‖", title="Exponential against logistic, at equal growth"
)
axes.grid(visible=True, alpha=0.3)
axes.legend()
chart.savefig(sys.argv[1] if len(sys.argv) > 1 else "losses.svg", metadata={"Date": None})
