"""Three classes under cross-entropy: the tail tends to rank two (T3.1 for r = C - 1)."""

from equipoise.gallery.case import Case
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.recipes import SEVERAL
from equipoise.gallery.tails import WHY, WITHIN, within_bounds


def measure(case: Case) -> Measurement:
    """Residual and misalignment of the tail over their certified bounds, the worst of the whole flow."""
    return within_bounds(case.train(SEVERAL))


EXPERIMENT = Experiment(
    name="tail-classes",
    title="Several classes: the linear tail tends to rank C − 1",
    statement="With C = 3 classes under cross-entropy the layers of the linear tail tend to rank C - 1 = 2, and their "
    "top two directions align, within the bound certified at initialisation.",
    theorem="T3.1, T3.2",
    sources=("le2022training",),
    statistic="the largest of (share beyond rank 2) / its bound and Σ sin² / its bound, over tail layers and time",
    threshold=WITHIN,
    why=WHY,
    measure=measure,
    picture=Picture("growth s", "share of ‖W‖² beyond rank 2, the worst of the tail"),
)
