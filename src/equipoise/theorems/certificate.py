"""From assumptions to claims: what T3 says about a trained network, its bounds beside what was measured."""

import copy
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from equipoise.data.dataset import validate
from equipoise.errors import InputError
from equipoise.graph.capture import capture
from equipoise.graph.chain import read_chain
from equipoise.integrate.losses import named_loss
from equipoise.measure.alignment import alignment
from equipoise.measure.spectrum import spectra
from equipoise.references import REFERENCES, Reference
from equipoise.store import Store
from equipoise.theorems import assumptions, tail
from equipoise.theorems.assumptions import Assumption, Evidence, Standing

_REFERENCES = ("le2022training", "du2018algorithmic", "ji2019gradient", "lyu2020gradient", "ji2020directional")
_LIMIT = ("homogeneous", "exponential tail", "separated", "laws conserved", "weights of the run")


@runtime_checkable
class FinishedRun(Protocol):
    """What a certificate needs of a run: the network, its weights before and after, and what the run recorded."""

    @property
    def model(self) -> nn.Module:
        """The trained network."""
        ...

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """Parameters at initialisation, by name."""
        ...

    @property
    def final(self) -> Mapping[str, Tensor]:
        """Parameters at the end, by name."""
        ...

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """The training set."""
        ...

    @property
    def loss(self) -> Any:
        """The loss, or its name."""
        ...

    @property
    def log_loss(self) -> float:
        """`log R` at the end, as recorded."""
        ...

    @property
    def folder(self) -> Path | None:
        """Where weights were saved on the way."""
        ...


@dataclass(frozen=True)
class Claim:
    """One statement of a theorem about this network: `measured ≤ bound`, or `≥` where `relation` says so.

    It stands no better than the worst of the assumptions it rests on.
    """

    name: str
    theorem: str
    quantity: str
    measured: float
    relation: Literal["≤", "≥"]
    bound: float
    rests_on: tuple[str, ...]
    standing: Standing

    @property
    def holds(self) -> bool:
        """Whether the inequality is satisfied and no assumption has failed; a NaN satisfies nothing."""
        satisfied = self.measured <= self.bound if self.relation == "≤" else self.measured >= self.bound
        return satisfied and self.standing != "failed"


@dataclass(frozen=True)
class Certificate:
    """The assumptions of T3 as they were found, and its claims about the linear tail of one network.

    Rank-one residuals are `1 - σ_1²/‖W_k‖_F²` and misalignments `1 - ⟨v_{k+1}, u_k⟩²`, neither by subtraction.
    """

    assumptions: tuple[Assumption, ...]
    claims: tuple[Claim, ...]
    notes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Every claim that rests on verified assumptions is true, there is one, and none rests on a failed one."""
        verified = [claim for claim in self.claims if claim.standing == "verified"]
        return bool(verified) and all(claim.holds for claim in verified) and not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """The failed assumptions that claims rest on, by name."""
        used = {name for claim in self.claims for name in claim.rests_on}
        return tuple(found.name for found in self.assumptions if found.standing == "failed" and found.name in used)

    @property
    def references(self) -> tuple[Reference, ...]:
        """The papers whose theorems these are."""
        return tuple(REFERENCES[key] for key in _REFERENCES)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON can hold it; a figure that is not finite becomes null."""
        return {
            "holds": self.holds,
            "failed": list(self.failed),
            "assumptions": [_finite_fields(asdict(found)) for found in self.assumptions],
            "claims": [_finite_fields({**asdict(claim), "holds": claim.holds}) for claim in self.claims],
            "notes": list(self.notes),
            "references": list(_REFERENCES),
        }

    def __str__(self) -> str:
        verdict = "holds" if self.holds else f"does not hold: {', '.join(self.failed) or 'a bound is exceeded'}"
        return "\n".join(
            [f"Certificate {verdict}", _text(_assumption_rows(self)), _text(_claim_rows(self)), *self.notes]
        )


def certify(
    run: FinishedRun | nn.Module,
    data: Any = None,
    *,
    initial: Mapping[str, Tensor] | None = None,
    loss: Any = "exponential",
) -> Certificate:
    """Check the assumptions of T3 and its bounds for the linear tail of a feedforward network with one score.

    Either `certify(run)`, or `certify(model, (X, y))` with the `loss` and, where known, the `initial` weights by
    parameter name. With initial weights every bound comes from the conserved matrices *at initialisation*, with their
    drift since and rounding added; without, from those of today, which holds whatever the optimizer, and nothing is
    claimed of the way here. Everything is recomputed in float64 from weights and data; of a run, `log R` is compared
    with the record. A certificate is about these artefacts: it does not prove that they came from gradient flow.

    For every tail layer: its rank-one residual is at most `D_k / ‖W_k‖_F²` (T3.1), its misalignment with the next one
    at most the bound of T3.2, and, without biases, its norm is at least what the margins require (T3.3), so that both
    bounds go to zero with the loss. ReLU layers carry no claim (T4.4).

    Raises `InputError` for a network that is not a feedforward chain ending in a linear layer with one score, weights
    that are not finite, initial weights of other names or shapes, and unusable data; `CaptureError` for a model that
    cannot be read.

    >>> from equipoise.networks import mlp
    >>> model = mlp([2, 3, 3, 1], linear_tail=2, seed=1)
    >>> X = torch.tensor([[1.0, 0.5], [-1.0, 0.2]])
    >>> certificate = certify(model, (X, [1, -1]), initial=dict(model.named_parameters()))
    >>> certificate.holds, certificate.failed
    (False, ('separated',))
    >>> [claim.name for claim in certificate.claims if claim.holds][:2]
    ['rank one of layer2.weight', 'rank one of layer3.weight']
    """
    if isinstance(run, nn.Module):
        evidence = _gather(run, dict(run.named_parameters()), initial, data, loss, ())
        found = _assumptions(evidence)
    else:
        evidence = _gather(run.model, run.final, run.initial, run.data, run.loss, _snapshots(run.folder))
        found = (*_assumptions(evidence), assumptions.weights_of_the_run(evidence, run.log_loss))
    return Certificate(found, _claims(evidence, found), _notes(evidence))


def _gather(
    model: nn.Module,
    final: Mapping[str, Tensor],
    initial: Mapping[str, Tensor] | None,
    data: Any,
    loss: Any,
    snapshots: tuple[dict[str, Tensor], ...],
) -> Evidence:
    final = _doubles(final, "weights")
    device = next((tensor.device for tensor in final.values()), torch.device("cpu"))
    X, y = (tensor.to(device) for tensor in validate(data))
    captured = capture(copy.deepcopy(model).double(), X[:2])
    chain = read_chain(captured)
    if initial is not None:
        initial = _doubles(initial, "initial weights")
        tail.require_same_shapes(initial, final)
    return Evidence(captured, _required(chain, final), final, initial, X, y, named_loss(loss), snapshots)


def _required(chain: tail.Chain | None, weights: Mapping[str, Tensor]) -> tail.Chain:
    if chain is None:
        raise InputError(
            expected="a feedforward chain: linear layers one after another, activations between",
            found="a network with branches, other operations, or layers used twice",
            remedy="certify an nn.Sequential of nn.Linear and nn.ReLU",
        )
    tail.require_one_score(chain, weights)
    return chain


def _doubles(weights: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    doubles = {name: tensor.detach().double() for name, tensor in weights.items()}
    for name, tensor in doubles.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                expected=f"finite {what}",
                found=f"NaN or infinite entries in {name}",
                remedy="find the step at which training diverged",
            )
    return doubles


def _snapshots(folder: Path | None) -> tuple[dict[str, Tensor], ...]:
    """The weights saved in a run folder, in order of their norm, which is that of growth."""
    if folder is None:
        return ()
    with Store.open(folder) as store:
        saved = [store.load_weights(name)[0] for name in store.weights()]
    return tuple(sorted(saved, key=lambda weights: sum(float(tensor.square().sum()) for tensor in weights.values())))


def _assumptions(evidence: Evidence) -> tuple[Assumption, ...]:
    return (
        assumptions.homogeneous(evidence),
        assumptions.exponential_tail(evidence),
        assumptions.separated(evidence),
        assumptions.laws_conserved(evidence),
        assumptions.directional_convergence(evidence),
    )


@dataclass(frozen=True)
class _Claimer:
    """Makes claims that stand as well as the assumptions they rest on."""

    standings: dict[str, Standing]

    def __call__(self, name, theorem, quantity, measured, relation, bound, rests_on) -> Claim:
        rests_on = tuple(assumption for assumption in rests_on if assumption in self.standings)
        standings = {self.standings[assumption] for assumption in rests_on}
        worst: Standing = "failed" if "failed" in standings else "observed" if "observed" in standings else "verified"
        return Claim(name, theorem, quantity, measured, relation, bound, rests_on, worst)


def _claims(evidence: Evidence, found: tuple[Assumption, ...]) -> tuple[Claim, ...]:
    claim = _Claimer({assumption.name: assumption.standing for assumption in found})
    ranks = _rank_claims(evidence, claim)
    return (
        *ranks,
        *_alignment_claims(evidence, claim),
        *_growth_claims(evidence, claim),
        _limit(evidence, ranks, claim),
    )


def _start(evidence: Evidence) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights that bounds come from, and what they then rest on: nothing where they are the current ones."""
    if evidence.initial is None:
        return evidence.final, ()
    return evidence.initial, ("laws conserved", "weights of the run")


def _rank_claims(evidence: Evidence, claim: _Claimer) -> tuple[Claim, ...]:
    start, rests_on = _start(evidence)
    bounds = tail.certified_bounds(evidence.chain, start, evidence.final)
    measured = spectra({name: evidence.final[name] for name in bounds})
    return tuple(
        claim(
            f"rank one of {name}",
            "T3.1",
            "1 - σ₁²/‖W‖²",
            measured[name].rank_one_residual,
            "≤",
            bound,
            rests_on,
        )
        for name, bound in bounds.items()
    )


def _alignment_claims(evidence: Evidence, claim: _Claimer) -> tuple[Claim, ...]:
    start, rests_on = _start(evidence)
    bounds = tail.misalignment_bounds(evidence.chain, start, evidence.final)
    claims = []
    for lower, upper in pairwise(tail.linear_tail(evidence.chain)):
        bias = None if lower.bias is None else evidence.final[lower.bias]
        sine = alignment(evidence.final[lower.weight], evidence.final[upper.weight], bias=bias).sine
        name = f"alignment of {lower.weight} with {upper.weight}"
        claims.append(claim(name, "T3.2", "1 - ⟨v₊, u⟩²", sine**2, "≤", bounds[lower.weight], rests_on))
    return tuple(claims)


def _growth_claims(evidence: Evidence, claim: _Claimer) -> tuple[Claim, ...]:
    """None where there are biases (the bound needs homogeneity) or no initial weights (it would say nothing)."""
    if evidence.has_biases or evidence.initial is None:
        return ()
    bounds = tail.norm_bounds(
        evidence.chain, evidence.initial, evidence.final, evidence.certain_margin, evidence.radius
    )
    return tuple(
        claim(f"growth of {name}", "T3.3", "‖W‖_F", float(evidence.final[name].norm()), "≥", bound, _LIMIT)
        for name, bound in bounds.items()
    )


def _limit(evidence: Evidence, ranks: tuple[Claim, ...], claim: _Claimer) -> Claim:
    """What gradient flow does from here on: with biases, growth and convergence are hypotheses, not theorems (§0)."""
    rests_on = (*(_LIMIT[1:] if evidence.has_biases else _LIMIT), "directional convergence")
    measured, bound = max(found.measured for found in ranks), max(found.bound for found in ranks)
    return claim("limit direction, its tail of rank one", "T3.4", "worst 1 - σ₁²/‖W‖²", measured, "≤", bound, rests_on)


def _notes(evidence: Evidence) -> tuple[str, ...]:
    rectified = [layer.weight for layer in evidence.chain if layer.kind != "linear"]
    notes = []
    if rectified:
        notes.append(f"{', '.join(rectified)}: followed by an activation, no claim (T4.4)")
    start = "today, whatever the optimizer" if evidence.initial is None else "initialisation, drift and rounding added"
    return (*notes, f"bounds from the conserved matrices of {start}")


def _assumption_rows(certificate: Certificate) -> Table:
    table = Table("assumption", "standing", "measured", "tolerance", "compared", box=box.SIMPLE)
    for found in certificate.assumptions:
        table.add_row(found.name, found.standing, _figure(found.measured), _figure(found.tolerance), found.why)
    return table


def _claim_rows(certificate: Certificate) -> Table:
    table = Table("claim", "theorem", "quantity", "measured", "", "bound", "standing", "holds", box=box.SIMPLE)
    for claim in certificate.claims:
        figures = (_figure(claim.measured), claim.relation, _figure(claim.bound))
        table.add_row(
            claim.name, claim.theorem, claim.quantity, *figures, claim.standing, "yes" if claim.holds else "NO"
        )
    return table


def _text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=140, color_system=None, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _finite_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in fields.items()}
