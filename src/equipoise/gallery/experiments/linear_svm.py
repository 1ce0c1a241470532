"""Deep linear networks: the product turns to the hard-margin SVM (Ji & Telgarsky 2019)."""

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from equipoise.gallery.case import Case, Trail
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.recipes import DEEP_LINEAR


def max_margin(X: Tensor, y: Tensor) -> Tensor:
    """`argmin ‖w‖` subject to `y_i ⟨w, x_i⟩ ≥ 1`: the bias-free hard-margin SVM in float64.

    Least distance programming by Lawson and Hanson's non-negative least squares (*Solving Least Squares Problems*,
    §23.4), an active-set method: exact but for rounding, where an iterative SVM stops at its tolerance.
    """
    rows = (y[:, None] * X).numpy()
    system = np.vstack([rows.T, np.ones(len(rows))])
    target = np.append(np.zeros(rows.shape[1]), 1.0)
    residual = system @ nnls(system, target, maxiter=100 * len(rows))[0] - target
    return torch.from_numpy(-residual[:-1] / residual[-1])


def angles(trail: Trail, optimum: Tensor) -> list[tuple[float, float]]:
    """Growth, and the angle between the product of all layers and the optimum: by its sine, digits kept near 0."""
    direction, found = optimum / optimum.norm(), []
    for moment in trail.moments:
        product = torch.linalg.multi_dot([moment.parameters[f"layer{k}.weight"] for k in (3, 2, 1)])[0]
        product = product / product.norm()
        cosine = product @ direction
        found.append((moment.growth, float(torch.atan2((product - cosine * direction).norm(), cosine))))
    return found


def measure(case: Case) -> Measurement:
    """The rate of the angle, fitted where the flow has left its start behind."""
    trail = case.train(DEEP_LINEAR)
    X, y = trail.run.data
    optimum = max_margin(X, y)
    curve = angles(trail, optimum)
    s, angle = np.array(curve).T
    late = s > s[-1] - 1.5
    rate = float(np.polyfit(s[late], np.log(angle[late]), 1)[0])
    product = torch.linalg.multi_dot([trail.run.final[f"layer{k}.weight"] for k in (3, 2, 1)])[0]
    ratio = float((y * (X @ product)).min() / product.norm() * optimum.norm())
    remark = f"angle {angle[-1]:.1e} at s = {s[-1]:.2f}; margin {ratio:.6f} of the optimum"
    return Measurement(rate, curve, remark, trail.unfinished)


EXPERIMENT = Experiment(
    name="linear-svm",
    title="Deep linear networks: the product becomes the hard-margin SVM",
    statement="The product of the layers turns to the direction of the bias-free hard-margin SVM, at an angle that "
    "falls about as e⁻ˢ: what the first layer has outside the span of the data stays while the rest grows as eˢ.",
    theorem="T7",
    sources=("ji2019gradient",),
    statistic="slope of log(angle) against the growth s, over the last 1.5 of growth",
    threshold=-0.75,
    why="The slope of a component that stays is -1 in the limit. A quarter is left for the part of the angle that "
    "lies in the span and falls at a rate of its own; an angle that stops falling has slope 0.",
    measure=measure,
    picture=Picture("growth s", "angle to the SVM"),
)
