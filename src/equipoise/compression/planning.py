"""The moves that make a model smaller, found one after the other and checked, to be read before they are applied."""

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from equipoise.compression import approximate, exact
from equipoise.compression.approximate import Acceptance
from equipoise.compression.costs import CostKind, CostModel
from equipoise.compression.data import DataBatches, Inputs, outputs
from equipoise.compression.exact import Change, relative_change
from equipoise.compression.layers import layer, parameter_count
from equipoise.compression.selection import Channels, HiddenChannels, head_channels
from equipoise.compression.structure import LAYERS, Hidden, hidden_layers, normalisations
from equipoise.compression.verification import KeptChannels, OutputReference, classes_of, scores
from equipoise.errors import CaptureError, InputError, one_line
from equipoise.graph.capture import Captured, capture
from equipoise.models import copied_model, require_readable, require_values
from equipoise.stages import stage, staged

ROUNDING = 1e-10  # relative change of the outputs in float64 above which a move was not exact
CHECKED = 256  # examples on which each exact move is checked by itself; all of them at the end
DEPENDENT = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)  # act by mode
SMALLEST = 8  # channels below which no neurons are selected


@dataclass(frozen=True)
class Move:
    """One change of the model: its number, what it did, and what it left.

    `parameters` is the number of parameters after it, `output_change` the relative change of the outputs since the
    original, in float64, on the examples that the move was checked on.
    """

    number: int
    kind: str
    layers: tuple[str, ...]
    before: int
    after: int
    exact: bool
    parameters: int
    output_change: float
    detail: str

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        """By which it is vetoed."""
        return self.kind, self.layers


@dataclass(frozen=True)
class PlanSettings:
    """How far outputs may change, what is to be as small as can be, and what is not to be done."""

    tolerance: float = 0.0
    keep_predictions: bool = True
    cost: CostKind = "parameters"
    vetoed: frozenset[tuple[str, tuple[str, ...]]] = frozenset()


class Planner:
    """A copy of a model in float64 that becomes smaller move by move."""

    def __init__(self, model: nn.Module, examples: DataBatches, labels: Tensor | None, settings: PlanSettings):
        self.original, self.model = model, copied_model(model).eval().double()
        self.examples, self.settings = examples, settings
        self.like = next(each.detach() for each in model.parameters() if each.is_floating_point())
        self.base, self.kept = self.model, dict[str, KeptChannels]()
        self.before = outputs(self.model, examples)
        if labels is not None:
            classes_of(labels, scores(self.before))  # refuses labels that are none
        self.labelled = labels is not None
        self.sample = examples.head(CHECKED)
        self.moves: list[Move] = []
        self.notes: list[str] = []
        self._graph: Captured | None = None

    def run(self) -> None:
        """All exact moves, and those that the tolerance allows."""
        with stage("folding and collapsing layers"):
            self._fold()
            self._collapse()
        self.base = copy.deepcopy(self.model)
        self._thin()
        if self.settings.tolerance > 0:
            self._approximate()
        if not self.moves:
            self.notes.append("nothing to take away: the model is returned unchanged")

    def _layers(self) -> tuple[Hidden, ...]:
        captured = self._captured()
        return hidden_layers(self.model, captured) if captured else ()

    def _captured(self) -> Captured | None:
        """The graph, read again once modules have been replaced; moves that change widths alone leave it."""
        if self._graph is not None:
            return self._graph
        batch = next(self.examples.head(2).batches(next(self.model.parameters())))
        try:
            self._graph = capture(self.model, batch)
        except CaptureError as error:
            note = f"only layers are factorised, because the model cannot be read: {error}"
            if note not in self.notes:
                self.notes.append(note)
        return self._graph

    def _fold(self) -> None:
        captured = self._captured()
        for name, norm in normalisations(self.model, captured) if captured else ():
            self._exactly(
                "fold", (name, norm), lambda name=name, norm=norm: exact.fold_normalisation(self.model, name, norm)
            )

    def _collapse(self) -> None:
        for run in exact.linear_runs(self.model, self._layers()):
            self._exactly("collapse", run, lambda run=run: exact.collapse(self.model, run))

    def _thin(self) -> None:
        """From the output down: a layer that is read by fewer rows has classes of lower rank."""
        found = self._layers()[::-1]
        activity = exact.ChannelActivity.of(self.model, found, self.examples)
        for hidden in staged(found, "removing and merging neurons"):
            layers = (hidden.writer, *hidden.readers)
            removed = self._exactly(
                "remove", layers, lambda each=hidden: exact.remove_constant(self.model, each, activity)
            )
            left = removed and removed.kept
            if hidden.kind == "rectified":
                self._exactly(
                    "merge",
                    layers,
                    lambda each=hidden, left=left: exact.merge_coactive(self.model, each, activity, left),
                )

    def _exactly(self, kind: str, layers: tuple[str, ...], move: Callable[[], Change | None]) -> Change | None:
        """Make a move unless it is vetoed; undo one that was not exact. The change, None if there is none."""
        if (kind, layers) in self.settings.vetoed:
            return None
        saved = copy.deepcopy(self.model)
        change = move()
        if change is None:
            return None
        moved = self._sample_change()
        if moved is None or moved > ROUNDING:
            self.model = saved
            found = "the model no longer runs" if moved is None else f"outputs change by {moved:.1e}"
            self.notes.append(f"{kind} of {', '.join(layers)} was undone: {found}")
            return None
        if change.kind in ("fold", "collapse"):
            self._graph = None
        self._record(change, True, moved)
        return change

    def _sample_change(self) -> float | None:
        try:
            after = outputs(self.model, self.sample)
        except InputError:
            return None
        return relative_change(self.before[: len(after)], after)

    def _record(self, change: Change, exactly: bool, moved: float) -> None:
        if change.kept is not None:
            writer, *readers = change.layers
            before = self.kept.get(writer)
            kept = change.kept if before is None else before.kept[change.kept]
            self.kept[writer] = KeptChannels(kept, tuple(readers))
        fields = (change.kind, change.layers, change.before, change.after, exactly, parameter_count(self.model))
        self.moves.append(Move(len(self.moves) + 1, *fields, moved, change.detail))

    def _approximate(self) -> None:
        """Channels and then ranks, or ranks alone: whichever costs less."""
        start = self.model
        channels = self._selectable()
        names = {name for each in channels for name in each.layers}
        costs = CostModel.of(self.settings.cost, start, [*names, *self._factorable(start)], self.examples, self.like)
        acceptance = self._acceptance()
        thinned, selected = approximate.select(start, channels, self.examples, acceptance, costs)
        found = []
        for model, changes in [(start, []), (thinned, selected)] if selected else [(start, [])]:
            factorable = self._factorable(model)
            known = CostModel.of(self.settings.cost, model, factorable, self.examples, self.like) if changes else costs
            smaller, factorised = approximate.factorise(model, factorable, self.examples, acceptance, known)
            found.append((known.model(smaller, self.examples), smaller, [*changes, *factorised]))
        _, self.model, changes = min(found, key=lambda each: each[0])
        moved = relative_change(self.before, outputs(self.model, self.examples))
        for change in changes:
            self._record(change, False, moved)

    def _acceptance(self) -> Acceptance:
        """Candidates are run as they are delivered: in the dtype of the model, unless that has half the bits."""
        dtype = self.like.dtype if torch.finfo(self.like.dtype).bits >= 32 else torch.float32
        keep = self.labelled and self.settings.keep_predictions
        original = copied_model(self.original).eval().to(dtype)
        few = self.examples.spread(approximate.PROBES)
        on_all = OutputReference(self.examples, outputs(original, self.examples), self.settings.tolerance, keep)
        if few is self.examples:
            return Acceptance(on_all.accepts, on_all.accepts)
        return Acceptance(on_all.accepts, OutputReference(few, outputs(original, few), on_all.tolerance, keep).accepts)

    def _selectable(self) -> list[Channels]:
        """Hidden layers with one reader, and heads; a layer that is cut in two ways only in the first."""
        captured = self._captured()
        found: list[Channels] = [
            HiddenChannels.of(self.model, each) for each in self._layers() if self._may_select(each)
        ]
        if captured is not None:
            found += head_channels(self.model, captured, self.sample)
        return [each for each in found if (each.kind, each.layers) not in self.settings.vetoed]

    def _may_select(self, hidden: Hidden) -> bool:
        if len(hidden.readers) != 1:
            return False
        channels, reader = len(layer(self.model, hidden.writer).weight), layer(self.model, hidden.readers[0])
        return channels >= SMALLEST and isinstance(reader, nn.Linear | nn.Conv2d)

    def _factorable(self, model: nn.Module) -> list[str]:
        """Layers of a type that can be factorised, called as modules, with a weight of their own."""
        owners: dict[int, int] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        return [
            name
            for name, module in model.named_modules()
            if type(module) in LAYERS
            and isinstance(module, nn.Linear | nn.Conv2d)
            and getattr(module, "groups", 1) == 1
            and module.weight.numel() > 0
            and all(owners[id(parameter)] == 1 for parameter in module.parameters(recurse=False))
            and ("factorise", (name,)) not in self.settings.vetoed
        ]


@dataclass(frozen=True, eq=False)
class Plan:
    """The moves that make one model smaller on one set of data; `apply` gives the smaller model.

    `notes` says what was not done, and why; `base` is the model after the moves that are exact everywhere, `kept` which
    of its channels the others leave.
    """

    moves: tuple[Move, ...]
    notes: tuple[str, ...]
    settings: PlanSettings
    fingerprint: str
    planned: nn.Module
    base: nn.Module
    kept: Mapping[str, KeptChannels]
    source: nn.Module
    examples: DataBatches
    labels: Tensor | None

    @classmethod
    def of(cls, model: nn.Module, examples: DataBatches, labels: Tensor | None, settings: PlanSettings) -> "Plan":
        """Find the moves; the model is not changed."""
        planner = Planner(model, examples, labels, settings)
        planner.run()
        notes = [*planner.notes]
        if any(isinstance(module, DEPENDENT) and module.training for module in model.modules()):
            notes.insert(0, "the model was in training mode; what is compressed is its function in evaluation mode")
        fields = (
            tuple(planner.moves),
            tuple(notes),
            settings,
            fingerprint(model),
            planner.model,
            planner.base,
            planner.kept,
        )
        return cls(*fields, model, examples, labels)

    def without(self, *numbers: int) -> "Plan":
        """The plan made again without the moves of these numbers; raises `InputError` for numbers it has not."""
        unknown = sorted(set(numbers) - {move.number for move in self.moves})
        if unknown:
            raise InputError(
                expected=f"numbers of moves, 1 … {len(self.moves)}",
                found=", ".join(map(str, unknown)),
                remedy="print plan.moves",
            )
        vetoed = self.settings.vetoed | {move.key for move in self.moves if move.number in numbers}
        return Plan.of(self.source, self.examples, self.labels, replace(self.settings, vetoed=vetoed))

    def smaller(self, model: nn.Module) -> nn.Module:
        """A smaller copy of the model, in its dtype; raises `InputError` for another model than was planned for."""
        if fingerprint(model) != self.fingerprint:
            raise InputError(
                expected="the model that the plan was made for",
                found="other weights",
                remedy="make a plan for this model: equipoise.compression.plan(model, data)",
            )
        made = copy.deepcopy(self.planned).to(next(p.dtype for p in model.parameters() if p.is_floating_point()))
        return made.train(model.training)


def fingerprint(model: nn.Module) -> str:
    """A hash of names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def checked_tolerance(tolerance: float) -> float:
    """A tolerance; raises `InputError` for one that is negative, not finite or no number."""
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise InputError(
            expected="a tolerance of 0 (the same outputs) or more, relative to the outputs",
            found=repr(tolerance),
            remedy="pass tolerance=0.01 for one percent",
        )
    return float(tolerance)


def require_floating(model: nn.Module) -> None:
    """Raises `InputError` for a model that cannot be read, without weights, of several dtypes, or not finite."""
    require_readable(model)
    require_values(model)
    floating = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in floating})
    if len(dtypes) != 1:
        raise InputError(
            expected="a model whose parameters are of one floating dtype",
            found=", ".join(dtypes) or "no parameters",
            remedy="call model.float()" if dtypes else "pass a model with weights",
        )
    bad = [name for name, parameter in model.named_parameters() if not bool(parameter.detach().isfinite().all())]
    if bad:
        raise InputError(
            expected="finite weights", found=f"NaN or infinity in {bad[0]}", remedy="load another checkpoint"
        )


def labelled(data: object) -> tuple[Inputs, Tensor | None]:
    """Inputs and labels of `(X, y)`; raises `InputError` for anything else."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise InputError(
            expected="data as (X, y)", found=type(data).__name__, remedy="pass (X, y), or (X, None) without classes"
        )
    inputs, labels = data
    if labels is not None and not isinstance(labels, Tensor):
        try:
            labels = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                expected="class indices as y", found=one_line(error), remedy="number the classes: 0, 1, …"
            ) from error
    if labels is not None and (labels.is_meta or labels.is_complex() or labels.layout != torch.strided):
        raise InputError(
            expected="class indices as y, a dense tensor of real numbers",
            found=f"{labels.dtype} on {labels.device}, {labels.layout}",
            remedy="pass y.long(), or y.to_dense()",
        )
    return inputs, labels
