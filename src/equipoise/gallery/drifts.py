"""The worst drift of the laws of one kind along a flow, as several experiments measure it."""

from equipoise.gallery.case import Case, Recipe, Trail
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.recipes import RELU
from equipoise.laws import invariances

ROUNDING = 1e-13
"""Drift that rounding explains: a step keeps a law to about 1e-16 of ‖w‖² (T6.2), a flow here takes some hundred."""


def claim_of_laws(
    kind: str, name: str, title: str, statement: str, recipe: Recipe = RELU, theorem: str = "T2"
) -> Experiment:
    """A claim that the laws of one kind are conserved along the flow of a network (T2), by default a ReLU network."""

    def measure(case: Case) -> Measurement:
        """The worst drift of these laws over the flow."""
        return worst_drift(case.train(recipe), kind)

    return Experiment(
        name=name,
        title=title,
        statement=statement,
        theorem=theorem,
        sources=("du2018algorithmic", "le2022training"),
        statistic="largest ‖C - C₀‖_F / ‖w‖², over laws and time",
        threshold=ROUNDING,
        why="A step keeps these laws to about 1e-16 of ‖w‖² (T6.2); a flow here takes some hundred, and a factor of "
        "ten is allowed. An integrator that conserved them only to its order would miss this by ten orders.",
        measure=measure,
        picture=Picture("growth s", "‖C − C₀‖ / ‖w‖²", level=ROUNDING),
    )


def worst_drift(trail: Trail, kind: str) -> Measurement:
    """The largest `‖C - C₀‖_F / ‖w‖²` of the laws of that kind, over the flow."""
    run = trail.run
    laws = [law for law in invariances(run.model, run.data.X[:2]) if law.kind == kind]
    if not laws:
        return Measurement.without(f"the network has no {kind} law")
    start = {law.name: law.value(run.initial) for law in laws}
    curve = []
    for moment in trail.moments:
        drifts = [float((law.value(moment.parameters) - start[law.name]).norm()) for law in laws]
        curve.append((moment.growth, max(drifts) / moment.norm**2))
    conserved = sum(law.count for law in laws)
    return Measurement(max(y for _, y in curve), curve, f"{conserved} conserved quantities, {run.steps} steps")
