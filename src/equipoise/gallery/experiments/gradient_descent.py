"""Gradient descent with small steps: every law moves by exactly the predicted defects (T2.2)."""

from equipoise.gallery.case import Case
from equipoise.gallery.drifts import ROUNDING
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.recipes import DESCENT
from equipoise.laws import invariances


def measure(case: Case) -> Measurement:
    """The predicted change of the laws at every step, and of all steps together, beside the measured one."""
    trail = case.train(DESCENT)
    run, square = trail.run, trail.moments[-1].norm ** 2
    table = run.table().query("observer == 'defect'")
    figures = table.pivot_table(index="step", columns="quantity", values="value", aggfunc="max")
    laws = [law for law in invariances(run.model, run.data.X[:2]) if law.name in run.defects]
    moved = {law.name: law.value(run.final) - law.value(run.initial) for law in laws}
    whole = max(float((moved[name] - run.defects[name]).norm()) / square for name in moved)
    drift = max(float(value.norm()) for value in moved.values()) / square
    remark = f"log R = {run.log_loss:.3g} after {run.steps} steps; the laws moved by {drift:.1e} of ‖w‖² in all"
    curve = list(zip(figures.index.astype(float), figures["measured_change"], strict=True))
    return Measurement(max(whole, *figures["mismatch"]), curve, remark)


EXPERIMENT = Experiment(
    name="gradient-descent",
    title="Gradient descent: the laws move by the predicted defects",
    statement="Under gradient descent the conserved quantities drift, step by step, by η² times a quadratic form of "
    "the gradient, known before the step is taken.",
    theorem="T2.2",
    sources=("le2022training", "du2018algorithmic"),
    statistic="largest ‖ΔC - predicted‖_F / ‖w‖², over laws, of any step and of all steps together",
    threshold=ROUNDING,
    why="The prediction is exact: what is left is rounding, 1e-16 of ‖w‖² a step, which adds up like a random walk "
    "over the steps to some 1e-15. The drift itself lies ten orders above.",
    measure=measure,
    picture=Picture("step", "change of the worst law in a step / ‖w‖²"),
)
