"""`eq.certify`: evidence, each theorem checked once, and the certificate of what they say about a trained network.

evidence_of_run(run) → check(evidence) of every theorem → claimed(statement, standings) → Certificate
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from torch import Tensor, nn

from equipoise.arguments import checked
from equipoise.laws import Laws
from equipoise.losses import Loss
from equipoise.modes import default_modes
from equipoise.notebook import notebook
from equipoise.references import REFERENCES, Reference
from equipoise.stages import staged
from equipoise.store import finite
from equipoise.theorems import assumptions, formatting
from equipoise.theorems.checks import THEOREMS
from equipoise.theorems.claims import Assumption, Claim, Standing, claimed
from equipoise.theorems.evidence import Evidence
from equipoise.theorems.evidence_builder import ExampleWeights, FinishedRun, evidence_of_model, evidence_of_run
from equipoise.theorems.recheck import Fingerprint, Recheck, compare, fingerprint

_REFERENCES = ("le2022training", "du2018algorithmic", "ji2019gradient", "lyu2020gradient", "ji2020directional")


@dataclass(frozen=True)
class Certificate:
    """The assumptions of the theorems as they were found, their claims about one network, and its fingerprint.

    Distances from rank `r` are `1 - Σ_{i≤r} σ_i²/‖W_k‖_F²` and misalignments `‖sin Θ‖²`, neither by subtraction.

    Attributes:
        assumptions: the hypotheses, each with its standing.
        claims: the statements of the theorems, each with the standing of its worst assumption.
        notes: remarks in words.
        subject: hashes of weights and data.
        stated: the verdicts in the file it was read from: compared by `recheck`, believed nowhere.
    """

    assumptions: tuple[Assumption, ...]
    claims: tuple[Claim, ...]
    notes: tuple[str, ...]
    subject: Fingerprint
    stated: Mapping[str, object] | None = field(default=None, compare=False, repr=False)

    @property
    def holds(self) -> bool:
        """Every claim on verified assumptions is true, an informative one among them, and none rests on a failed one.

        A bound that anything satisfies proves nothing: see `Claim.informative`.
        """
        verified = [claim for claim in self.claims if claim.standing == "verified"]
        return bool(self.proved) and all(claim.holds for claim in verified) and not self.failed

    @property
    def proved(self) -> tuple[Claim, ...]:
        """The informative claims that rest on verified assumptions alone."""
        return tuple(claim for claim in self.claims if claim.standing == "verified" and claim.informative)

    @property
    def failed(self) -> tuple[str, ...]:
        """The failed assumptions that claims rest on, by name."""
        used = {name for claim in self.claims for name in claim.rests_on}
        return tuple(found.name for found in self.assumptions if found.standing == "failed" and found.name in used)

    @property
    def references(self) -> tuple[Reference, ...]:
        """The papers whose theorems these are."""
        return tuple(REFERENCES[key] for key in _REFERENCES)

    def recheck(
        self,
        model: FinishedRun | nn.Module,
        data: object = None,
        *,
        initial: Mapping[str, Tensor] | None = None,
        loss: str | Loss = "exponential",
        laws: Laws | None = None,
        predicted: Mapping[str, Tensor] | None = None,
        example_weights: ExampleWeights | None = None,
    ) -> Recheck:
        """Make the certificate again from the artefacts alone, and compare: weights, data, and every figure.

        Nothing in this certificate is believed.

        Args:
            model: as of `certify`, like all that follow.
            data: the training set.
            initial: the weights at initialisation.
            loss: the loss.
            laws: laws in place of those read from the model.
            predicted: the predicted change of every law.
            example_weights: the weights of the examples.

        Returns:
            The verdict of the new certificate, `holds`, and all `differences` of this one from it.
        """
        again = certify(
            model,
            data,
            initial=initial,
            loss=loss,
            laws=laws,
            predicted=predicted,
            example_weights=example_weights,
        )
        return compare(self, again)

    def verdicts(self) -> dict[str, object]:
        """The verdicts that follow from assumptions and claims; of a certificate that was read, those in its file."""
        return formatting.verdicts(self.to_json()) if self.stated is None else dict(self.stated)

    @classmethod
    def from_json(cls, fields: formatting.Json) -> "Certificate":
        """A certificate from the JSON that `to_json` wrote.

        Raises:
            InputError: for anything else.
        """
        return cls(*formatting.parse(fields))

    def to_json(self) -> dict[str, object]:
        """Everything as JSON can hold it; a figure that is not finite becomes null."""
        return {
            "holds": self.holds,
            "failed": list(self.failed),
            "assumptions": [finite(asdict(found)) for found in self.assumptions],
            "claims": [
                finite({**asdict(claim), "informative": claim.informative, "holds": claim.holds})
                for claim in self.claims
            ],
            "notes": list(self.notes),
            "subject": asdict(self.subject),
            "references": list(_REFERENCES),
        }

    def _repr_html_(self) -> str:
        """The certificate as printed, for a notebook."""
        return notebook(str(self))

    def __str__(self) -> str:
        silent = sum(not claim.informative for claim in self.claims)
        beside = f"; {silent} bounds that anything satisfies say nothing" if silent else ""
        proof = f"holds: {len(self.proved)} informative claims verified{beside}"
        verdict = proof if self.holds else f"does not hold: {', '.join(self.failed) or self._lacks}"
        return formatting.text(f"Certificate {verdict}", self.assumptions, self.claims, self.notes)

    @property
    def _lacks(self) -> str:
        """The shortcoming of a certificate without a failed assumption."""
        if any(not claim.holds for claim in self.claims if claim.standing == "verified"):
            return "a bound is exceeded"
        if any(claim.informative for claim in self.claims):
            return "every informative claim rests on something that was only observed"
        return "no claim is informative, every bound is one that anything satisfies"


@checked
@default_modes()
def certify(
    run: FinishedRun | nn.Module,
    data: object = None,
    *,
    initial: Mapping[str, Tensor] | None = None,
    loss: str | Loss = "exponential",
    laws: Laws | None = None,
    predicted: Mapping[str, Tensor] | None = None,
    example_weights: ExampleWeights | None = None,
) -> Certificate:
    """Check the assumptions of T3, T4, T5.2 and T7 and their bounds for a network that ends in a linear layer.

    Either `certify(run)`, or `certify(model, (X, y))` with the `loss` and, where known, the `initial` weights by
    parameter name. With initial weights every bound comes from the conserved matrices *at initialisation*, with their
    drift since and rounding added; without, from those of today, which holds for any optimizer, and nothing is
    claimed of the way here. Everything is recomputed in float64 from weights and data; of a run, `log R` is compared
    with the record. A certificate is about these artefacts: it does not prove that they came from gradient flow.

    - Every layer of the linear tail, on any network: its residual of rank `r` is at most `D_k/‖W_k‖_F²` (T3.1), its
      misalignment with the next one at most the bound of T3.2; `r = 1` for one score, `C - 1` for `C` classes. In a
      chain without biases its norm is at least what the margins require (T3.3), so that both bounds go to zero.
    - Every class of co-active neurons of the layers below, from the values at the time it became stable (T4.2), and
      each layer by the number of its classes (T4.3), with skips and convolutions too, where what reads it is known to
      tend to low rank; where not, a note says why. Rank one is not claimed of all of a ReLU layer (T4.4). Linear layers
      below the tail that are read by such (a dense skip and what it is added to) tend to low rank as the tail does.
    - Of a network that is quasi-homogeneous but not homogeneous its exponents, and in a note what then is true of the
      limit, on conditions that cannot be seen (T11).
    - Of a network of classes trained by a cross-entropy, plain or adjusted, the geometry of its last layer and of what
      that reads, beside the one predicted for free features, in a note (Behnia et al. 2023).
    - Activity and signs that are decided at the limit have stopped to change (T4.1, T5.2); slackness and stationarity
      of the margins (T7), where the network is homogeneous.

    Claims are named for what they bound, and say whether that is informative: of a network hardly trained the bounds
    are such that anything satisfies them, and the certificate does not hold for want of a claim. Tolerances are those
    of the arithmetic that the weights are stored in, float32 or float64.

    Args:
        run: a run of `eq.flow`, which has all that follows; or a model.
        data: the training set `(X, y)` of a model.
        initial: the weights of a model at initialisation, by parameter name, where known.
        loss: the loss of a model, or its name.
        laws: laws in place of those read from the model.
        predicted: the accumulated T2.2 defect of every law by its name, as the sum of `laws.predict_drift` over the
            steps of gradient descent; the laws must then be where it puts them.
        example_weights: `w_i` of `R = Σ w_i ℓ_i`, divided by their sum; all `1/n` by default. Examples of weight 0 take
            no part in any assumption or bound.

    Returns:
        The certificate.

    Raises:
        InputError: for a network that does not end in a linear layer, weights that are not finite, initial weights of
            other names or shapes, and unusable data.
        CaptureError: for a model that cannot be read.

    >>> import torch
    >>> from equipoise.networks import mlp
    >>> model = mlp([2, 3, 3, 1], linear_tail=2, seed=1)
    >>> X = torch.tensor([[1.0, 0.5], [-1.0, 0.2]])
    >>> certificate = certify(model, (X, [1, -1]), initial=dict(model.named_parameters()))
    >>> certificate.holds, certificate.failed
    (False, ('separated',))
    >>> [(claim.name, claim.informative) for claim in certificate.claims if claim.theorem == "T3.1"]
    [('distance of layer2.weight from rank one', ...), ('distance of layer3.weight from rank one', False)]
    """
    if not isinstance(run, nn.Module):
        return _certificate(evidence_of_run(run))
    evidence = evidence_of_model(
        run,
        dict(run.named_parameters()),
        data,
        loss,
        initial=initial,
        laws=laws,
        predicted=predicted,
        example_weights=example_weights,
    )
    return _certificate(evidence)


def _certificate(evidence: Evidence) -> Certificate:
    """Each theorem checked once on the evidence; its statements judged by the assumptions that were decided."""
    results = [check(evidence) for check in staged(THEOREMS, "checking theorems")]
    found = (
        *assumptions.of_network(evidence),
        *(assumption for result in results for assumption in result.assumptions),
        *assumptions.of_record(evidence),
    )
    standings: dict[str, Standing] = {assumption.name: assumption.standing for assumption in found}
    claims = tuple(claimed(statement, standings) for result in results for statement in result.statements)
    notes = (*(note for result in results for note in result.notes), *_notes(evidence, standings))
    return Certificate(found, claims, notes, fingerprint(evidence))


def _notes(evidence: Evidence, standings: Mapping[str, Standing]) -> tuple[str, ...]:
    notes = []
    if standings["homogeneous"] == "failed":
        notes.append(
            "not homogeneous: growth and convergence are hypotheses here, and nothing is claimed of T3.3, T4.1 and T7"
        )
    if standings["laws conserved"] == "failed":
        notes.append(
            "the laws did not survive: the bounds from today's matrices hold at any point, under any optimizer"
        )
    start = "today, under any optimizer" if evidence.initial is None else "initialisation, drift and rounding added"
    return (*notes, f"bounds from the conserved matrices of {start}")
