"""Directional convergence (Ji & Telgarsky 2020): the weights of a homogeneous network converge in direction."""

from dataclasses import dataclass
from itertools import pairwise

import torch

from equipoise.data import load
from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Curve, Outcome, Paper, PaperCase
from equipoise.integrate.goals import LogLoss
from equipoise.integrate.loop import flow
from equipoise.networks import mlp


@dataclass(frozen=True)
class LongFlow:
    """A deep ReLU network, with weights kept at log R = -10, -100, …"""

    examples: int = 30
    inputs: int = 10
    hidden: int = 12
    decades: int = 6


def measure(case: PaperCase[LongFlow]) -> Outcome:
    """The path of `w/‖w‖` a unit of `log log 1/R`, late over early."""
    setting = case.setting
    X, y = load("separable", n=setting.examples, d=setting.inputs, seed=case.seed)
    goals = [LogLoss(-(10.0**decade)) for decade in range(1, setting.decades + 1)]
    model = mlp([setting.inputs, setting.hidden, setting.hidden, 1], seed=case.seed)
    run = flow(model, (X, y), until=goals[-1], save_at=goals, observe=[], max_steps=4000)
    if run.status.value not in ("reached", "precision_floor"):
        return Outcome.without(run.status.ending)
    directions = []
    for goal in goals:
        weights = torch.nn.utils.parameters_to_vector(run.at(goal).parameters()).detach()
        directions.append(weights / weights.norm())
    steps = [float((later - sooner).norm()) for sooner, later in pairwise(directions)]
    points = [(float(decade), step) for decade, step in enumerate(steps, 2)]
    case.log(movements=points)
    ratios = [later / sooner for sooner, later in pairwise(steps)]
    return Outcome((max(ratios) / 10, steps[-1]), curves=[Curve("movement of w/‖w‖ over a decade", points)])


PAPER = Paper(
    key="ji2020directional",
    claim="The weights of a homogeneous network under gradient flow and a loss with an exponential tail converge in "
    "direction once the data are separated.",
    basis="Theorem of the paper, for the limit; it gives no rate, and the thresholds are ours.",
    quick=LongFlow(),
    criteria=(
        Criterion(
            "movement of w/‖w‖ per unit of log 1/R over a decade, over that of the decade before, the largest",
            "≤",
            0.1,
            "Unless the path over a decade of log 1/R shrinks, it is infinite; a decade has ten times the units.",
        ),
        Criterion(
            "movement of w/‖w‖ over the last decade",
            "≤",
            0.05,
            "What is left of the start decays at least as 1/‖w‖, which grows as (log 1/R)^{1/3}: 1% at log R = -1e6.",
        ),
    ),
    measure=measure,
    picture=Picture("log₁₀ log 1/R", "movement of w/‖w‖ over a decade"),
)
