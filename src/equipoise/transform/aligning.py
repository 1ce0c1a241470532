"""`eq.align`: the same function with weights nearest to those of another model (docs/theory.md, T9)."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from equipoise.arguments import checked
from equipoise.errors import InputError
from equipoise.graph.capture import Captured, Inputs
from equipoise.laws import Law, invariances
from equipoise.models import copied_model
from equipoise.modes import default_modes
from equipoise.stages import stage, staged
from equipoise.transform.compact_group import Rotation, SignChange, Symmetry, with_signs
from equipoise.transform.head_moves import Element, Heads, planes
from equipoise.transform.model_function import ModelFunction, require_weights, rounding_of
from equipoise.transform.movable import Immovable, verified
from equipoise.transform.readings import derived
from equipoise.transform.symmetry_action import Weights, squared_norm
from equipoise.transform.unit_groups import HeadGroup, Holders, blocks_of, exchangeable, negatable, places_of

SWEEPS = 100
GAIN = 1e-14  # of the inner product, over that of the norms, below which a sweep has ended


@dataclass(frozen=True)
class PartMove:
    """One part of the group: units exchanged, signs taken, or matrices turned; `moved` counts those that did."""

    name: str
    kind: str
    size: int
    moved: int


@dataclass(frozen=True)
class WeightDistance:
    """The Euclidean distance of one parameter from that of the reference."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class AlignReport:
    """Effects of aligning.

    `cosine` is the inner product of all weights with those of the reference, over both norms; `distance` the Euclidean
    norm of the difference. `output_change` and `function_change` as in `BalanceReport`.
    """

    cosine_before: float
    cosine_after: float
    distance_before: float
    distance_after: float
    sweeps: int
    seconds: float
    output_change: float
    function_change: float
    moves: tuple[PartMove, ...]
    refused: tuple[Immovable, ...]
    weights: tuple[WeightDistance, ...]

    @property
    def faults(self) -> tuple[Immovable, ...]:
        """Moves that were taken back because the outputs changed: faults of equipoise, not of yours."""
        return tuple(each for each in self.refused if each.reason.startswith("a fault of equipoise"))

    def __str__(self) -> str:
        kinds = ("permutation", "heads", "rotation", "sign")
        counts = [f"{sum(each.kind == kind for each in self.moves)} {kind}" for kind in kinds]
        return (
            f"distance {self.distance_before:.6g} → {self.distance_after:.6g}, cosine {self.cosine_before:.6g} → "
            f"{self.cosine_after:.6g}; parts: {', '.join(counts)}, {self.sweeps} sweeps, {self.seconds:.2g} s; "
            f"outputs changed by {self.output_change:.1e}"
        )


@dataclass(frozen=True, eq=False)
class Aligned:
    """A model of the same function, nearest to the reference, and the report of what changed."""

    model: nn.Module
    report: AlignReport

    def table(self) -> pd.DataFrame:
        """One row for each part of the group: its kind, how many units it has, and how many moved."""
        rows = [(each.name, each.kind, each.size, each.moved) for each in self.report.moves]
        return pd.DataFrame(rows, columns=pd.Index(["name", "kind", "units", "moved"]))

    def __repr__(self) -> str:
        return f"Aligned({self.report})"

    def _repr_html_(self) -> str:
        return f"<p>{self.report}</p>{self.table().to_html(index=False)}"


@checked
@default_modes()
def align(model: nn.Module, reference: nn.Module, example_inputs: Inputs) -> Aligned:
    """The same function with weights nearest to those of `reference`; a copy is changed, neither of the models.

    The inner product of the weights with those of the reference is maximised over what leaves function and norm alone:
    permutations of neurons, channels and heads, orthogonal matrices where the map between is linear and within heads,
    signs where it is odd. One interface is solved at a time, exactly, by a linear assignment or a singular value
    decomposition (Procrustes), until none gains: the inner product never falls (Ainsworth et al. 2023 for permutations
    of architectures given by hand; docs/theory.md, T9). The group is read from the graph of the model, and each part of
    it is tried on the example before it is used.

    Args:
        model: any module that `eq.invariances` reads.
        reference: a module of the same structure.
        example_inputs: a tensor, a sequence of arguments or a mapping of keywords, with values.

    Returns:
        The aligned copy of `model` and its report.

    Raises:
        InputError: for models of different structure, at the first place where they differ; for weights that are not
            finite, inputs on which the model does not run.
        CaptureError: if the model cannot be read.

    >>> import equipoise as eq
    >>> reference = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    >>> order = [2, 0, 3, 1]
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(-reference[0].weight[order]), model[0].bias.copy_(-reference[0].bias[order])
    ...     _ = model[2].weight.copy_(-reference[2].weight[:, order]), model[2].bias.copy_(reference[2].bias)
    >>> aligned = eq.align(model, reference, torch.ones(2, 3).double())
    >>> aligned.report.distance_after < 1e-12 < aligned.report.distance_before
    True
    """
    start = time.perf_counter()
    for each in (model, reference):
        require_weights(each)
    require_same_structure(model, reference)
    laws = invariances(model, example_inputs, verify=False)
    assert laws.captured is not None  # laws of a model come with its graph
    aliases, tolerance = laws.captured.aliases, rounding_of(laws.captured)
    own = ModelFunction(copied_model(model), example_inputs, aliases)
    double = ModelFunction.in_double(model, example_inputs, aliases)
    target = ModelFunction.in_double(reference, example_inputs, aliases).weights()
    with stage("trying each symmetry on the example"):
        group, refused = tried_symmetries(laws.captured, double, tolerance)
    given = double.weights() | double.buffers()
    weights, sweeps, moves = _nearest(group, given, target)
    function_change = double.change(weights)
    if function_change > tolerance:
        refused += (
            Immovable("all of it", f"a fault of equipoise: the move changed the outputs by {function_change:.1e}"),
        )
        weights, moves, function_change = given, (), 0.0
    report = AlignReport(
        *(_cosine(each, target) for each in (given, weights)),
        *(_distance(each, target) for each in (given, weights)),
        sweeps=sweeps,
        seconds=time.perf_counter() - start,
        output_change=own.change(weights),
        function_change=function_change,
        moves=moves,
        refused=refused,
        weights=tuple(_distances(given, weights, target)),
    )
    return Aligned(own.model, report)


def require_same_structure(model: nn.Module, reference: nn.Module) -> None:
    """Raise `InputError` at the first module, parameter or buffer in which two models differ."""
    pairs = zip(_parts(model), _parts(reference), strict=False)
    differing = next(((left, right) for left, right in pairs if left != right), None)
    lengths = len(list(_parts(model))), len(list(_parts(reference)))
    if differing is None and lengths[0] != lengths[1]:
        shorter = min(lengths)
        left, right = (dict(enumerate(_parts(each))).get(shorter, "nothing more") for each in (model, reference))
        differing = left, right
    if differing is not None:
        raise InputError(
            expected=f"two models of the same structure: {differing[0]}",
            found=f"{differing[1]} in the reference",
            remedy="align models that differ in nothing but their weights",
        )


def _parts(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        yield f"{name or 'the model'} a {type(module).__name__}"
        for kind, own in (
            ("parameter", module.named_parameters(recurse=False)),
            ("buffer", module.named_buffers(recurse=False)),
        ):
            for label, tensor in own:
                yield f"{kind} {'.'.join(filter(None, (name, label)))} of shape {tuple(tensor.shape)}"


# The group ------------------------------------------------------------------------------------------------------------


def tried_symmetries(
    captured: Captured, evaluation: ModelFunction, tolerance: float
) -> tuple[list[Symmetry], tuple[Immovable, ...]]:
    """The parts of the compact group that leave the outputs on the example alone, in graph order; and the others."""
    generator = torch.Generator().manual_seed(0)

    def move(part: Symmetry, weights: Weights) -> None:
        part.apply(weights, part.random(generator))

    laws = derived(captured)
    units, heads = exchangeable(captured)
    guesses = [Rotation(law) for group in heads for law in planes(group, laws)]
    signs = verified([SignChange(group) for group in negatable(captured)], evaluation, tolerance, move)
    turns = verified([Rotation(law) for law in laws if law.interface.width > 1], evaluation, tolerance, move)
    turned = [part for true in (turns[0], verified(guesses, evaluation, tolerance, move)[0]) for part in true]
    kinds = [part.group for part in signs[0]]
    permutations = verified([with_signs(group, kinds) for group in units], evaluation, tolerance, move)
    blocks = [*heads, *(blocks_of(part.law) for part in turned if part.size > 1 and not _in_heads(part.law, heads))]
    moved = verified([Heads.of(group, [part.law for part in turned]) for group in blocks], evaluation, tolerance, move)
    found = [signs, (turned, turns[1]), permutations, moved]
    place = {name: number for number, name in enumerate(captured.parameters.values())}
    kept = sorted(
        (part for true, _ in found for part in true),
        key=lambda part: min(place.get(name, len(place)) for name in part.names),
    )
    reason = "to move its {} changes the outputs by {:.1e}"
    refused = [Immovable(part.name, reason.format(part.kind, change)) for _, false in found for part, change in false]
    return kept, tuple(refused)


def _in_heads(law: Law, heads: Sequence[HeadGroup]) -> bool:
    members = law.interface.members
    near = (group.parts for group in heads if {part.name for part in group.parts}.issuperset(law.parameters))
    held = map(Holders, near)
    return any(all(each.holds(member.parameter, places_of(member)) for member in members) for each in held)


def _nearest(parts: Sequence[Symmetry], weights: Weights, target: Weights) -> tuple[Weights, int, tuple[PartMove, ...]]:
    """The better of two ascents: from the weights as they are, and from a pass that asks settled weights alone.

    In that pass, in the order of the graph, a part is chosen by the weights that no later part moves.
    """
    ascents = []
    for forward in (False, True):
        moved = {name: weight.clone() for name, weight in weights.items()}
        units: list[set[int]] = [set() for _ in parts]
        for number, part in enumerate(parts) if forward else ():
            later = [set(other.names) for other in parts[number + 1 :] if set(other.names) != set(part.names)]
            element = part.nearest(moved, target, among=set(part.names).difference(*later) or None)
            part.apply(moved, element)
            units[number].update(part.moved(element))
        sweeps = _ascend(parts, moved, target, units)
        moves = tuple(
            PartMove(part.name, part.kind, part.size, len(own)) for part, own in zip(parts, units, strict=True)
        )
        ascents.append((moved, sweeps, moves))
    return max(ascents, key=lambda ascent: _cosine(ascent[0], target))


def _ascend(parts: Sequence[Symmetry], weights: Weights, target: Weights, units: Sequence[set[int]]) -> int:
    """Solve part by part until none gains, noting the units that move; returns the sweeps made."""
    scale = (squared_norm(target) * squared_norm({name: weights[name] for name in target})) ** 0.5
    sweeps, gain = 0, float("inf")
    while gain > GAIN * scale and sweeps < SWEEPS:
        gain, sweeps = 0.0, sweeps + 1
        for part, own in staged(list(zip(parts, units, strict=True)), f"aligning, sweep {sweeps}"):
            element = part.nearest(weights, target)
            moved = part.moved(element)
            if moved and (step := _gain(part, element, weights, target)) > 0:
                gain += step
                own.update(moved)
    return sweeps


def _gain(part: Symmetry, element: Element, weights: Weights, target: Weights) -> float:
    """Move the weights if that raises the inner product with the target; by how much, else zero."""
    trial = {name: weights[name].clone() for name in part.names}
    part.apply(trial, element)
    named = [name for name in part.names if name in target]
    gain = float(sum(((trial[name] - weights[name]) * target[name]).sum() for name in named))
    if gain <= 0:
        return 0.0
    for name, tensor in trial.items():
        weights[name].copy_(tensor)
    return gain


def _cosine(weights: Weights, target: Weights) -> float:
    inner = float(sum((weights[name] * target[name]).sum() for name in target))
    size = (squared_norm({name: weights[name] for name in target}) * squared_norm(target)) ** 0.5
    return inner / size if size else 1.0


def _distance(weights: Weights, target: Weights) -> float:
    return squared_norm([weights[name] - target[name] for name in target]) ** 0.5


def _distances(given: Weights, weights: Weights, target: Weights) -> Iterator[WeightDistance]:
    for name, wanted in target.items():
        yield WeightDistance(name, *(float((each[name] - wanted).norm()) for each in (given, weights)))
