"""The geometry of classifiers and class means that cross-entropy leads to, beside the measured one."""

import math

import torch
from torch import Tensor

from equipoise.errors import InputError
from equipoise.graph.evaluate import activations
from equipoise.losses import CrossEntropy, adjustment_of, measured_geometry, predicted_geometry
from equipoise.theorems.claims import CheckResult
from equipoise.theorems.evidence import Evidence


def check(evidence: Evidence) -> CheckResult:
    """Cosines between the measured geometry of the last layer and the predicted one, in a note.

    The prediction is that of free features as a ridge vanishes: what it says of a network is no claim.

    Args:
        evidence: of a network trained by a cross-entropy, plain or adjusted, on examples that all weigh the same.

    Returns:
        A note; none for other losses, and where the last layer does not give the scores of the classes.
    """
    loss = adjustment_of(evidence.loss)
    if (loss is None and evidence.loss != CrossEntropy()) or evidence.example_weights is not None:
        return CheckResult(())
    counts = torch.bincount(evidence.y, minlength=evidence.scores.shape[1])
    last = evidence.tail.layers[-1].weight
    weight, features = evidence.final[last], _read_by(last, evidence)
    if features is None or not counts.all() or weight.shape != (len(counts), features.shape[1]):
        return CheckResult(())
    try:
        predicted = predicted_geometry(loss, counts.tolist())
    except InputError:  # scales by label and class at once: no prediction is known
        return CheckResult(())
    cosines = measured_geometry(weight, features, evidence.y).cosines(predicted)
    if not all(map(math.isfinite, cosines.values())):  # weights or features of zero have no geometry
        return CheckResult(())
    listed = ", ".join(f"{part} {value:.2f}" for part, value in cosines.items())
    proved = "proved by its dual multipliers" if predicted.certified else "not proved to be the minimum"
    note = (
        f"geometry of {last} and of the class means that it reads, beside the prediction for free features as a ridge "
        f"vanishes (Behnia et al. 2023; {proved}): cosines of {listed}; this is no claim, for features of a network "
        f"are not free"
    )
    return CheckResult((), notes=(note,))


def _read_by(weight: str, evidence: Evidence) -> Tensor | None:
    """The rows that a linear layer reads, one for each example; None where it reads anything else."""
    with torch.no_grad():
        rows = activations(evidence.captured, (), evidence.final, evidence.X).features.get(weight)
    return rows if rows is not None and rows.ndim == 2 and len(rows) == len(evidence.y) else None
