"""Signs of weights are constant from some time on, so training happens in the multilinear part (T5.2)."""

import torch

from equipoise.gallery.case import Case
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.recipes import RELU

LAST = 0.3  # of growth


def measure(case: Case) -> Measurement:
    """The weight, as a share of `‖w‖²`, of the entries that change sign in the last stretch of growth."""
    trail = case.train(RELU)
    flat = [torch.cat([weight.flatten() for weight in s.parameters.values()]) for s in trail.moments]
    growth = [moment.growth for moment in trail.moments]
    final = flat[-1].sign()
    differs = [float((weights.sign() != final).double().mean()) for weights in flat]
    late = torch.stack([w.sign() != final for w, s in zip(flat, growth, strict=True) if s >= growth[-1] - LAST]).any(0)
    carried = float(flat[-1][late].square().sum() / flat[-1].square().sum())
    last = max((s for s, share in zip(growth, differs, strict=True) if share > 0), default=0.0)
    remark = f"{float(late.double().mean()):.1%} of the entries, the last at s = {last:.2f} of {growth[-1]:.2f}"
    return Measurement(carried, list(zip(growth, differs, strict=True)), remark, trail.unfinished)


EXPERIMENT = Experiment(
    name="constant-signs",
    title="The decomposition: signs are constant from some time on",
    statement="From some time on no weight with a non-zero limit direction changes its sign, so that the tree of "
    "signs is a fixed network and all of training happens in the multilinear part; what still changes sign is on its "
    "way to zero.",
    theorem="T5.2",
    sources=("le2022training",),
    statistic=f"share of ‖w‖² in the entries that change sign in the last {LAST} of growth",
    threshold=1e-3,
    why="An entry that changes sign passes through zero, so it carries next to nothing: at most what it regained in "
    "that stretch. If signs went on changing throughout, each entry would carry its share, and those that change a "
    "third.",
    measure=measure,
    picture=Picture("growth s", "share of signs unlike the final ones", logarithmic=False),
)
