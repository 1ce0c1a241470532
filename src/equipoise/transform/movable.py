"""Which laws may move the weights, which may not and why; and what no weight uses any longer."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.laws import Law, Laws
from equipoise.transform.model_function import ModelFunction
from equipoise.transform.symmetry_action import Weights, add_velocity, advance, moments, stacked

Candidate = TypeVar("Candidate")

REACH = 0.3  # of the random move that tests a law, in the logarithm of a scale
UNUSED = 1e-10  # norm of all weights along a direction, beside that of an interface, below which nothing uses it


@dataclass(frozen=True)
class Immovable:
    """A law, or parameters in no law, that balance leaves alone, and the reason."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Vanished:
    """Directions at an interface that no weight writes and none reads any longer, as rows.

    `unit` is the number of the neuron, channel or head in its law.
    """

    law: str
    unit: int
    directions: Float[Tensor, "count width"]

    @property
    def count(self) -> int:
        """How many."""
        return len(self.directions)


def partition(laws: Laws, weights: Weights, *, approximate: bool) -> tuple[list[Law], list[Immovable]]:
    """The laws that move the weights, and the reasons of all others, before anything is run."""
    reasons = {law.name: _reason(law, weights, approximate=approximate) for law in laws}
    held = [Immovable(name, reason) for name, reason in reasons.items() if reason]
    return [law for law in laws if not reasons[law.name]], [*held, *_without_law(laws)]


def exactly_movable(laws: Laws, weights: Weights) -> list[Law]:
    """The laws along whose symmetries the weights may move without changing any output."""
    return [law for law in laws if not _reason(law, weights, approximate=False)]


def _reason(law: Law, weights: Weights, *, approximate: bool) -> str:
    if law.kind == "shift":
        return "a translation of the weights, not a scaling"
    if law.kind == "antisymmetric":
        return "tied: the same weight writes and reads, so that only rotations are left, which keep the norm"
    if not two_sided(law, weights):
        return "its scale has no effect: no norm is the least"
    if not law.exact and not approximate:
        broken = ", ".join(f"eps = {eps:g} of {place}" for place, eps in law.interface.breaks)
        return f"{broken} breaks it (approximate=True moves it)"
    return ""


def two_sided(law: Law, weights: Weights) -> bool:
    """Whether a common scale of all units enlarges some elements and shrinks others, so that a least norm exists."""
    if not law.producers or not law.consumers:
        return False
    ones = {name: torch.ones_like(weights[name]) for name in law.parameters}
    rates = {name: torch.zeros_like(weights[name]) for name in law.parameters}
    unit = torch.eye(law.interface.width, dtype=torch.float64).expand(law.interface.blocks, -1, -1)
    add_velocity(law, law.slices(ones), unit.to(ones[law.parameters[0]]), rates)
    return any(bool((rate > 0).any()) for rate in rates.values()) and any(
        bool((rate < 0).any()) for rate in rates.values()
    )


def _without_law(laws: Laws) -> Iterator[Immovable]:
    coverage = laws.coverage
    waiting = [
        Immovable(name, f"frozen: {', '.join(frozen)} (model.requires_grad_(True) lets them move)")
        for name, frozen in laws.dropped.items()
        if frozen
    ]
    yield from waiting
    for each in coverage.refuted:
        yield Immovable(each.law, f"a fault of equipoise: its gradient identity fails by {each.residual:.1e}")
    unread = {name: each for each in coverage.unmatched for name in each.parameters}
    groups: dict[str, list[str]] = defaultdict(list)
    frozen = {name for names in laws.dropped.values() for name in names}
    for name in coverage.in_no_law:
        if name in unread:
            groups[f"read by {unread[name].operation} at {unread[name].node}, which is not known"].append(name)
        elif name not in frozen and len(coverage.uses[name]) > 1:
            groups[f"used in {len(coverage.uses[name])} places, and no scaling suits all of them"].append(name)
        elif name not in frozen:
            groups["no scaling of it leaves the function alone"].append(name)
    for reason, names in groups.items():
        yield Immovable(", ".join(names), reason)


def verified(
    candidates: Sequence[Candidate],
    evaluation: ModelFunction,
    tolerance: float,
    move: Callable[[Candidate, Weights], None],
) -> tuple[list[Candidate], list[tuple[Candidate, float]]]:
    """The candidates that leave the outputs on the example alone when moved; the others with the change they make.

    All are moved at once; where that changes the outputs, halves are, down to single ones.
    """
    if not candidates:
        return [], []
    given = evaluation.weights() | evaluation.buffers()
    weights = {name: weight.clone() for name, weight in given.items()}
    for candidate in candidates:
        move(candidate, weights)
    change = evaluation.change(weights)
    evaluation.write(given)
    if change <= tolerance:
        return list(candidates), []
    if len(candidates) == 1:
        return [], [(candidates[0], change)]
    half = len(candidates) // 2
    parts = [verified(part, evaluation, tolerance, move) for part in (candidates[:half], candidates[half:])]
    return [*parts[0][0], *parts[1][0]], [*parts[0][1], *parts[1][1]]


def true_laws(laws: Sequence[Law], evaluation: ModelFunction, tolerance: float) -> tuple[list[Law], list[Immovable]]:
    """The laws along which a random move leaves the outputs on the example alone; the others are faults of ours."""
    generator = torch.Generator().manual_seed(0)

    def move(law: Law, weights: Weights) -> None:
        advance(law, weights, random_generator(law, generator).to(weights[law.parameters[0]]))

    kept, false = verified(laws, evaluation, tolerance, move)
    reason = "a fault of equipoise: moving along it changes the outputs by {:.1e}"
    return kept, [Immovable(law.name, reason.format(change)) for law, change in false]


def random_generator(law: Law, generator: torch.Generator) -> Tensor:
    """A symmetric element of the commutant with eigenvalues of size about `REACH`."""
    blocks, width = law.interface.blocks, law.interface.width
    drawn = torch.randn(blocks, width, width, generator=generator, dtype=torch.float64)
    return REACH * law.commutant.project(drawn + drawn.mT) / (2 * width**0.5)


def vanished(laws: Sequence[Law], weights: Weights) -> tuple[Vanished, ...]:
    """The directions of every interface that no weight writes and none reads."""
    return tuple(_vanished(laws, weights))


def _vanished(laws: Sequence[Law], weights: Weights) -> Iterator[Vanished]:
    for law in laws:
        factor = torch.linalg.qr(stacked(law, weights, lambda member: True).mT, mode="r").R
        sizes = torch.linalg.matrix_norm(factor)
        _, values, directions = torch.linalg.svd(factor, full_matrices=True)
        values = torch.nn.functional.pad(values, (0, directions.shape[-1] - values.shape[-1]))
        unused = values <= UNUSED * sizes.max()
        for unit in torch.nonzero(unused.any(1)).flatten().tolist():
            yield Vanished(law.name, unit, directions[unit][unused[unit]])


def imbalance(laws: Sequence[Law], weights: Weights) -> dict[str, float]:
    """The norm of every conserved quantity."""
    return {law.name: float(moments(law, weights, weights).norm()) for law in laws}
