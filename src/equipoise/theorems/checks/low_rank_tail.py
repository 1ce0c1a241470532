"""T3: the linear tail tends to low rank, its layers align and grow; and how much growth a given rank residual takes."""

import copy
import math
from collections.abc import Iterator
from itertools import pairwise

import pandas as pd
import torch
from torch import nn

from equipoise.arguments import checked, require_real
from equipoise.errors import InputError
from equipoise.graph.capture import Inputs
from equipoise.graph.chain import read_tail
from equipoise.laws import invariances
from equipoise.measure.spectrum import spectra
from equipoise.modes import default_modes
from equipoise.theorems.assumptions import start_is_lost
from equipoise.theorems.claims import (
    LIMIT,
    SINCE_START,
    CheckResult,
    Statement,
    beyond_rank,
    from_rank,
    largest_residual,
    turned,
)
from equipoise.theorems.evidence import Evidence
from equipoise.theorems.evidence_builder import FinishedRun, evidence_of_run, lawful
from equipoise.theorems.linear_tail import (
    LinearTail,
    certified_bounds,
    deficit_bounds,
    misalignment_bounds,
    norm_bounds,
)
from equipoise.theorems.spectral_bounds import angles, incoming, matrix, ratio, sines
from equipoise.theorems.weights import Weights, finite_doubles


def check(evidence: Evidence) -> CheckResult:
    """T3.1 for every layer of the tail, T3.2 for every pair, T3.3 for chains, T3.4 for the limit.

    From the matrices at initialisation, where they are known. If the laws did not survive since, the bounds from
    today's matrices are given too: those hold at any point, whichever the optimizer.
    """
    start, rests_on = (evidence.final, ()) if evidence.initial is None else (evidence.initial, SINCE_START)
    ranks = _ranks(evidence, start, rests_on)
    found = [*ranks, *_alignments(evidence, start, rests_on), *_growths(evidence)]
    if start_is_lost(evidence):
        found += _ranks(evidence, evidence.final, (), " from today's matrices")
        found += _alignments(evidence, evidence.final, (), " from today's matrices")
    return CheckResult((*found, _limit(evidence, ranks)))


def _ranks(evidence: Evidence, start: Weights, rests_on: tuple[str, ...], suffix: str = "") -> list[Statement]:
    bounds, ranks = certified_bounds(evidence.tail, start, evidence.final), evidence.tail.ranks(start)
    measured = spectra({name: evidence.final[name] for name in bounds})
    return [
        Statement(
            name=f"distance of {name} from {from_rank(rank)}{suffix}",
            theorem="T3.1",
            quantity=beyond_rank(rank),
            measured=measured[name].rank_residual(rank),
            relation="≤",
            bound=bounds[name],
            trivial=largest_residual(evidence.final[name], rank),
            rests_on=rests_on,
        )
        for name, rank in ranks.items()
    ]


def _alignments(evidence: Evidence, start: Weights, rests_on: tuple[str, ...], suffix: str = "") -> Iterator[Statement]:
    bounds = misalignment_bounds(evidence.tail, start, evidence.final)
    for lower, upper in pairwise(evidence.tail.layers):
        writes, reads = incoming(lower, evidence.final), matrix(evidence.final[upper.weight])
        rank = evidence.tail.directions(lower, upper, evidence.final)
        yield Statement(
            name=f"misalignment of {lower.weight} with {upper.weight}{suffix}",
            theorem="T3.2",
            quantity=turned(rank),
            measured=sines(writes, reads, rank),
            relation="≤",
            bound=bounds[lower.weight],
            trivial=float(angles(len(writes), rank)),
            rests_on=rests_on,
        )


def _growths(evidence: Evidence) -> list[Statement]:
    """None but for chains without biases (the bound needs homogeneity), and none without a start (all are trivial)."""
    if evidence.chain is None or evidence.has_biases or evidence.initial is None:
        return []
    margin, radius = evidence.certain_margin, evidence.radius
    bounds = norm_bounds(evidence.chain, evidence.initial, evidence.final, margin, radius)
    return [
        Statement(
            name=f"norm of {layer.weight}",
            theorem="T3.3",
            quantity="‖W‖_F, and at the start",
            measured=float(evidence.final[layer.weight].norm()),
            relation="≥",
            bound=bounds[layer.weight],
            trivial=float(evidence.initial[layer.weight].norm()),
            rests_on=LIMIT,
        )
        for layer in evidence.tail.layers
    ]


def _limit(evidence: Evidence, ranks: list[Statement]) -> Statement:
    """The limit of gradient flow from here on: growth and convergence are hypotheses where f is not homogeneous."""
    rests_on = LIMIT[1:] if evidence.homogeneity.degree is None else LIMIT
    return Statement(
        name=f"distance of the limit from {from_rank(evidence.tail.rank)}",
        theorem="T3.4",
        quantity=f"worst {beyond_rank(evidence.tail.rank)} so far",
        measured=max(found.measured for found in ranks),
        relation="≤",
        bound=max(found.bound for found in ranks),
        trivial=max(found.trivial for found in ranks),
        rests_on=(*rests_on, "directional convergence"),
    )


# --- the growth that is still needed ---

COLUMNS = ["layer", "deficit", "square_norm", "bound", "residual", "growth"]


@checked
@default_modes()
def forecast(
    model: FinishedRun | nn.Module,
    residual: float = 1e-2,
    example_inputs: Inputs | None = None,
    *,
    initial: Weights | None = None,
) -> pd.DataFrame:
    """Forecast by how much every linear layer must grow until its rank residual is certain to be below `residual`.

    `Δ_k = Σ_{i>r} σ_i(W_k)²` stays below `D_k` as long as the laws are conserved (docs/theory.md, T3.1), so that
    `1 - Σ_{i≤r} σ_i²/‖W_k‖_F²` is below `residual` once `‖W_k‖_F² ≥ D_k / residual`: after a further growth
    `½ log(D_k / (residual ‖W_k‖_F²))` of `log ‖W_k‖_F`. What is measured may be there long before.

    Args:
        model: a run of `eq.flow`, whose laws are those of its initial weights; or any network, trained by any
            optimizer (as inside `eq.watch`), whose laws are taken from its present weights.
        residual: what the rank residual is to fall below, between 0 and 1.
        example_inputs: inputs that a network accepts, as for `eq.invariances`; a run has its own.
        initial: the weights at the start of training, by name, where those of a network are to count in place of the
            present ones.

    Returns:
        One row for each layer of the linear tail, from the input up: `layer`, `deficit` (`D_k`), `square_norm`
        (`‖W_k‖_F²`), `bound` (`D_k/‖W_k‖_F²`), `residual` as measured now, and `growth`, 0 where it is certain already
        and infinite for a layer that is zero.

    Raises:
        InputError: for a residual outside (0, 1), a network without example inputs, or one that does not end in a
            linear layer.

    >>> from equipoise.networks import mlp
    >>> table = forecast(mlp([5, 4, 4, 1], linear_tail=3), 0.01, torch.ones(2, 5).double())
    >>> table.growth.round(2).tolist()
    [2.43, 2.27, 0.0]
    """
    require_real("residual", residual, "pass residual=1e-2", above=0, below=1)
    tail, start, final = _read(model, example_inputs, initial)
    rows = []
    for name, deficit in deficit_bounds(tail, start, final).items():
        square, values = float(final[name].square().sum()), torch.linalg.svdvals(matrix(final[name]))
        now, bound = float(values[tail.rank :].square().sum()), ratio(deficit, square)
        growth = max(0.0, math.log(bound / residual) / 2) if bound > 0 else 0.0
        rows.append((name, deficit, square, bound, ratio(now, square), growth))
    return pd.DataFrame(rows, columns=COLUMNS)


def _read(
    model: FinishedRun | nn.Module, example_inputs: Inputs | None, initial: Weights | None
) -> tuple[LinearTail, Weights, Weights]:
    """The tail, the weights that its laws are taken from, and the present ones, in float64."""
    if not isinstance(model, nn.Module):
        evidence = evidence_of_run(model)
        assert evidence.initial is not None  # every run has its own
        return evidence.tail, evidence.initial, evidence.final
    if example_inputs is None:
        raise InputError(
            expected="inputs to read the network with",
            found="none",
            remedy="pass example_inputs=X[:2], or a run of eq.flow in place of the network",
        )
    laws = invariances(copy.deepcopy(model), example_inputs)
    assert laws.captured is not None  # these laws were read, not stated
    final = finite_doubles(dict(model.named_parameters()), "weights")
    start = final if initial is None else finite_doubles(initial, "initial weights")
    return LinearTail.of(lawful(read_tail(laws.captured), laws), final), start, final
