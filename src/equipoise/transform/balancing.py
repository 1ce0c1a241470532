"""`eq.balance`: the same function with weights of least norm, or with equal ranges (docs/theory.md, T8)."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from torch import Tensor, nn

from equipoise.arguments import checked
from equipoise.graph.capture import Inputs
from equipoise.laws import Law, invariances
from equipoise.models import copied_model
from equipoise.modes import default_modes
from equipoise.stages import stage, staged
from equipoise.transform.equal_sides import equal_range, least_norm, log_range_gap
from equipoise.transform.model_function import ModelFunction, require_weights, rounding_of
from equipoise.transform.movable import Immovable, Vanished, imbalance, partition, true_laws, vanished
from equipoise.transform.newton import newton_step
from equipoise.transform.symmetry_action import Weights, overlaps, squared_norm

Objective = Literal["norm", "range"]
SWEEPS = 200
BALANCED = 1e-8  # largest conserved quantity, over the sum of squares of the weights, below which a model is balanced
FINEST = 1e-13  # where sweeps end
FAST = 0.1  # the factor by which a sweep has to reduce what is left, if no Newton step is to follow
EQUAL = 1e-6  # largest logarithm of a ratio of ranges below which they are equal


@dataclass(frozen=True)
class LawBalance:
    """One law before and after: the norm of its conserved quantity, over the sum of squares of all weights."""

    law: str
    kind: str
    count: int
    before: float
    after: float


@dataclass(frozen=True)
class WeightSize:
    """One parameter before and after: its Euclidean norm, and its largest entry."""

    name: str
    norm_before: float
    norm_after: float
    largest_before: float
    largest_after: float


@dataclass(frozen=True, eq=False)
class BalanceReport:
    """Effects of balancing.

    Norms are Euclidean, over all floating parameters. `imbalance` is the largest norm of a conserved quantity over the
    sum of squares, of the laws that moved; `range_ratio` the largest ratio between the ranges of the two sides of a
    component. `output_change` is the largest change of an output on the example, relative to its largest entry, in the
    dtype of the model; `function_change` the same in float64.
    """

    objective: Objective
    norm_before: float
    norm_after: float
    imbalance_before: float
    imbalance_after: float
    range_ratio_before: float
    range_ratio_after: float
    sweeps: int
    seconds: float
    output_change: float
    function_change: float
    laws: tuple[LawBalance, ...]
    immovable: tuple[Immovable, ...]
    vanished: tuple[Vanished, ...]
    weights: tuple[WeightSize, ...]

    @property
    def balanced(self) -> bool:
        """Whether the objective was reached for every law that could move."""
        reached = self.imbalance_after <= BALANCED if self.objective == "norm" else self.range_ratio_after <= 1 + EQUAL
        return reached and not self.faults

    @property
    def faults(self) -> tuple[Immovable, ...]:
        """Laws that were refused because moving along them changes the outputs: faults of equipoise, not of yours."""
        return tuple(each for each in self.immovable if each.reason.startswith("a fault of equipoise"))

    def __str__(self) -> str:
        goal = (
            f"largest law {self.imbalance_before:.1e} → {self.imbalance_after:.1e} of ‖w‖²"
            if self.objective == "norm"
            else f"largest ratio of ranges {self.range_ratio_before:.3g} → {self.range_ratio_after:.3g}"
        )
        lines = [
            f"norm {self.norm_before:.6g} → {self.norm_after:.6g}, {goal}; {len(self.laws)} laws moved in "
            f"{self.sweeps} sweeps and {self.seconds:.2g} s; outputs changed by {self.output_change:.1e}"
        ]
        lines += [f"left alone: {each}" for each in self.immovable]
        lines += [f"vanished: {each.count} of {each.law}, unit {each.unit}" for each in self.vanished]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Balanced:
    """A model of the same function, and the report of what changed."""

    model: nn.Module
    report: BalanceReport

    def table(self) -> pd.DataFrame:
        """One row for each law: its conserved quantity before and after, over `‖w‖²`, or why it was left alone."""
        rows = [(each.law, each.kind, each.count, each.before, each.after, "") for each in self.report.laws]
        rows += [(each.name, "", 0, float("nan"), float("nan"), each.reason) for each in self.report.immovable]
        return pd.DataFrame(rows, columns=pd.Index(["law", "kind", "count", "before", "after", "left alone"]))

    def __repr__(self) -> str:
        return f"Balanced({str(self.report).splitlines()[0]})"

    def _repr_html_(self) -> str:
        return f"<p>{str(self.report).splitlines()[0]}</p>{self.table().to_html(index=False)}"


@checked
@default_modes()
def balance(
    model: nn.Module, example_inputs: Inputs, objective: Objective = "norm", approximate: bool = False
) -> Balanced:
    """The same function with weights of least norm, or with equal ranges; a copy is changed, never the model.

    Every symmetry behind a law (`eq.invariances`) leaves the function alone, and the conserved quantity of the law is
    the gradient of `½‖w‖²` along it (docs/theory.md, T8; Kempf & Ness 1979): at the least norm all of them are zero.
    With `objective="range"` the largest entries of both sides of each unit are made equal instead, which for chains of
    layers is the cross-layer equalisation of Nagel et al. (2019). Directions that nothing writes or nothing reads go to
    zero: the limit of the moves. All is computed in float64; each law is tried on the example before it moves anything.

    Args:
        model: any module that `eq.invariances` reads, in the mode (training or evaluation) that is meant.
        example_inputs: a tensor, a sequence of arguments or a mapping of keywords, with values.
        objective: `"norm"` or `"range"`.
        approximate: use laws that the `eps` of a normalisation breaks, too; the report states the change of outputs.

    Returns:
        The balanced copy and its report.

    Raises:
        InputError: for another objective, weights that are not finite, inputs on which the model does not run.
        CaptureError: if the model cannot be read.

    >>> import equipoise as eq
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 1)).double()
    >>> x = torch.randn(5, 3).double()
    >>> balanced = eq.balance(model, x)
    >>> bool(torch.allclose(balanced.model(x), model(x), rtol=1e-10, atol=1e-12))
    True
    >>> balanced.report.norm_after < balanced.report.norm_before, balanced.report.imbalance_after < 1e-8
    (True, True)
    """
    start = time.perf_counter()
    require_weights(model)
    laws = invariances(model, example_inputs)
    assert laws.captured is not None  # laws of a model come with its graph
    aliases, tolerance = laws.captured.aliases, rounding_of(laws.captured)
    own = ModelFunction(copied_model(model), example_inputs, aliases)
    double = ModelFunction.in_double(model, example_inputs, aliases)
    given = double.weights()
    movable, immovable = partition(laws, given, approximate=approximate)
    with stage("trying each law on the example"):
        movable, faults = _tried(movable, double, tolerance)
    weights = {name: weight.clone() for name, weight in given.items()}
    movable, unsuited = _suited(movable, weights, objective)
    sweeps = _sweep_norm(movable, weights) if objective == "norm" else _sweep_range(movable, weights)
    function_change = double.change(weights)
    if not approximate and function_change > tolerance:
        weights, function_change = given, 0.0
        faults += [Immovable(law.name, "a fault of equipoise: the move changed the outputs") for law in movable]
        movable = []
    output_change = own.change(weights)
    report = BalanceReport(
        objective,
        **_before_and_after(movable, given, weights),
        sweeps=sweeps,
        seconds=time.perf_counter() - start,
        output_change=output_change,
        function_change=function_change,
        laws=_rows(movable, given, weights),
        immovable=(*immovable, *faults, *unsuited),
        vanished=vanished(movable, weights),
        weights=tuple(_size(name, given[name], weights[name]) for name in given),
    )
    return Balanced(own.model, report)


def _tried(laws: Sequence[Law], double: ModelFunction, tolerance: float) -> tuple[list[Law], list[Immovable]]:
    """Laws that an `eps` breaks are not held against the outputs: the report states what they change."""
    kept, faults = true_laws([law for law in laws if law.exact], double, tolerance)
    names = {law.name for law in kept}
    return [law for law in laws if not law.exact or law.name in names], faults


def _suited(laws: Sequence[Law], weights: Weights, objective: Objective) -> tuple[list[Law], list[Immovable]]:
    """Ranges are equalised unit by unit, which a weight on both sides of a unit defies."""
    if objective == "norm":
        return list(laws), []
    defying = [law for law in laws if overlaps(law, weights)]
    reason = "the same weight writes and reads its units, so that their ranges cannot be set apart"
    return [law for law in laws if law not in defying], [Immovable(law.name, reason) for law in defying]


def _sweep_norm(laws: Sequence[Law], weights: Weights) -> int:
    """Solve law by law, with a Newton step for all together where that converges slowly; returns the sweeps made."""
    solvable = [law for law in laws if not overlaps(law, weights)]
    left = _largest(laws, weights)
    sweeps = stalled = 0
    while left > FINEST and sweeps < SWEEPS and stalled < 3:
        before = left
        sweeps += 1
        for law in staged(solvable, f"balancing, sweep {sweeps}: largest law {left:.1e} of ‖w‖²"):
            least_norm(law, weights)
        left = _largest(laws, weights)
        if left > FAST * before and left > FINEST:
            newton_step(laws, weights)
            left = _largest(laws, weights)
        stalled = stalled + 1 if left > 0.5 * before and left <= BALANCED else 0
    return sweeps


def _sweep_range(laws: Sequence[Law], weights: Weights) -> int:
    for sweep in range(SWEEPS):
        if log_range_gap(laws, weights) <= EQUAL / 10:
            return sweep
        for law in staged(laws, f"equalising ranges, sweep {sweep + 1}"):
            equal_range(law, weights)
    return SWEEPS


def _largest(laws: Sequence[Law], weights: Weights) -> float:
    size = squared_norm(weights)
    return max(imbalance(laws, weights).values(), default=0.0) / size if size else 0.0


def _before_and_after(laws: Sequence[Law], given: Weights, weights: Weights) -> dict[str, float]:
    measures: dict[str, Callable[[Weights], float]] = {
        "norm": lambda each: squared_norm(each) ** 0.5,
        "imbalance": lambda each: _largest(laws, each),
        "range_ratio": lambda each: float(torch.tensor(log_range_gap(laws, each), dtype=torch.float64).exp()),
    }
    when: Mapping[str, Weights] = {"before": given, "after": weights}
    return {f"{name}_{time}": measure(each) for name, measure in measures.items() for time, each in when.items()}


def _size(name: str, before: Tensor, after: Tensor) -> WeightSize:
    norms = (float(each.norm()) for each in (before, after))
    return WeightSize(name, *norms, *(float(each.abs().max()) if each.numel() else 0.0 for each in (before, after)))


def _rows(laws: Sequence[Law], given: Weights, weights: Weights) -> tuple[LawBalance, ...]:
    before, after = imbalance(laws, given), imbalance(laws, weights)
    sizes = [squared_norm(each) or 1.0 for each in (given, weights)]  # 0/0 = 0
    return tuple(
        LawBalance(law.name, law.kind, law.count, before[law.name] / sizes[0], after[law.name] / sizes[1])
        for law in laws
    )
