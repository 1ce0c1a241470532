"""Natural pattern classes: the rows of co-active neurons below a linear tail stay within their bound (T4.2)."""

from torch import Tensor

from equipoise.gallery.blocks import beyond, block_bound, together_since
from equipoise.gallery.case import Case, Trail
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.recipes import RELU
from equipoise.gallery.tails import WHY, WITHIN
from equipoise.measure.activity import pattern_classes, patterns

POSITION, LOWER, UPPER = 1, "layer2.weight", "layer3.weight"  # the ReLU layer just below the tail


def track(trail: Trail, members: Tensor) -> tuple[float, list[tuple[float, float]]]:
    """The worst of residual / bound since the neurons became co-active, and the block's residual along the flow."""
    since = together_since(trail.moments, POSITION, members)
    start, worst, curve = trail.moments[since], 0.0, []
    for moment in trail.moments[since:]:
        block = moment.parameters[LOWER][members]
        measured = beyond(block, 1)
        worst = max(worst, measured / block_bound(LOWER, UPPER, members, start, moment))
        curve.append((moment.growth, measured / float(block.square().sum())))
    return worst, curve


def measure(case: Case) -> Measurement:
    """Every class of two neurons or more at the end, followed back to when its neurons became co-active."""
    trail = case.train(RELU)
    z = trail.moments[-1].preactivations[POSITION]
    classes = [members for members in pattern_classes(patterns(z)).classes if len(members) > 1]
    if not classes:
        return Measurement.without("no two neurons end co-active")
    tracked = [track(trail, members) for members in classes]
    ends = [curve[-1][1] for _, curve in tracked]
    remark = f"{len(classes)} classes of {', '.join(str(len(c)) for c in classes)} neurons; residuals "
    remark += ", ".join(f"{end:.1e}" for end in ends)
    return Measurement(max(worst for worst, _ in tracked), tracked[0][1], remark)


EXPERIMENT = Experiment(
    name="class-blocks",
    title="ReLU layers: the block of each pattern class stays within its bound",
    statement="The rows of the last ReLU layer that belong to neurons with equal patterns behave like a linear layer "
    "from the time their patterns agree: their distance to rank one stays within the bound from the weights of that "
    "time.",
    theorem="T4.2",
    sources=("le2022training",),
    statistic="the largest of Σ_{i>1} σ_i² of a class's rows over its bound, over classes and time",
    threshold=WITHIN,
    why=WHY,
    measure=measure,
    picture=Picture("growth s", "1 − σ₁²/‖·‖² of the largest class's rows"),
)
