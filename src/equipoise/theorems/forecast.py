"""How much further the layers of a linear tail must grow until they are as near to low rank as one asks (T3.1)."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.graph.chain import read_tail
from equipoise.integrate.validation import require_real
from equipoise.laws import invariances
from equipoise.theorems.gather import FinishedRun, doubles, gather_run, lawful
from equipoise.theorems.tail import Tail, deficit_bounds, matrix, ratio

COLUMNS = ["layer", "deficit", "square_norm", "bound", "residual", "growth"]


def forecast(
    model: FinishedRun | nn.Module,
    residual: float = 1e-2,
    example_inputs: Any = None,
    *,
    initial: Mapping[str, Tensor] | None = None,
) -> pd.DataFrame:
    """Forecast by how much every linear layer must grow until its rank residual is certain to be below `residual`.

    `Δ_k = Σ_{i>r} σ_i(W_k)²` stays below `D_k` as long as the laws are conserved (docs/theory.md, T3.1), so that
    `1 - Σ_{i≤r} σ_i²/‖W_k‖_F²` is below `residual` once `‖W_k‖_F² ≥ D_k / residual`: after a further growth
    `½ log(D_k / (residual ‖W_k‖_F²))` of `log ‖W_k‖_F`. What is measured may be there long before.

    Args:
        model: a run of `eq.flow`, whose laws are those of its initial weights; or any network, trained by whatever
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


def _read(model: Any, example_inputs: Any, initial: Any) -> tuple[Tail, Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The tail, the weights that its laws are taken from, and the present ones, in float64."""
    if not isinstance(model, nn.Module):
        evidence = gather_run(model)
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
    final = doubles(dict(model.named_parameters()), "weights")
    start = final if initial is None else doubles(initial, "initial weights")
    return Tail.of(lawful(read_tail(laws.captured), laws), final), start, final
