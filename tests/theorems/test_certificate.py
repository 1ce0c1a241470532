import copy
import json
import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn

from equipoise import data
from equipoise.errors import InputError
from equipoise.graph.capture import capture
from equipoise.integrate.goals import Steps
from equipoise.integrate.loop import flow
from equipoise.integrate.margins.protocol import ParameterLayout
from equipoise.integrate.margins.readout import BinaryReadout
from equipoise.integrate.objective import Objective
from equipoise.integrate.problem import build_margins
from equipoise.integrate.steppers import EntropicMidpoint
from equipoise.losses import Exponential
from equipoise.networks import mlp
from equipoise.theorems.certificate import certify
from equipoise.theorems.evidence import LAW_TOLERANCE
from equipoise.theorems.evidence_builder import evidence_of_run

LAYERS = ["layer2.weight", "layer3.weight", "layer4.weight"]


@dataclass(frozen=True)
class Finished:
    """A run as the certificate sees it."""

    model: nn.Module
    initial: dict
    final: dict
    data: tuple
    log_loss: float
    loss: object = Exponential()
    saved: dict = field(default_factory=dict)
    defects: dict = field(default_factory=dict)
    example_weights: torch.Tensor | None = None
    missed: float = 0.0

    def last(self, observer, quantity, place=""):
        """Nothing on record."""


def flowed(bias=False, goal=-300.0):
    """Gradient flow of a small ReLU network with three linear layers, by entropic midpoint steps."""
    X, y = data.load("separable", n=30, d=10, seed=0)
    model = mlp([10, 8, 8, 8, 1], linear_tail=3, bias=bias, seed=0)
    initial = copy.deepcopy(model.state_dict())
    layout = ParameterLayout.of(initial)
    objective = Objective(build_margins(capture(model, X[:2]), layout, X, BinaryReadout(y)), Exponential())
    stepper = EntropicMidpoint(step_size=0.2, rtol=0.1)
    state = stepper.init(objective, layout.flatten(initial))
    while (log_loss := objective.log_risk(state.evaluation)) > goal:
        state, _ = stepper.step(objective, state)
    final = {name: tensor.clone() for name, tensor in layout.views(state.weights).items()}
    model.load_state_dict(final)
    return Finished(model, initial, final, (X, y), log_loss)


@pytest.fixture(scope="module")
def run():
    return flowed()


def standing(certificate):
    return {found.name: found.standing for found in certificate.assumptions}


def claims(certificate):
    return {claim.name: claim for claim in certificate.claims}


def test_a_run_of_gradient_flow_is_certified(run):
    certificate = certify(run)
    assert certificate.holds
    assert certificate.failed == ()
    found = standing(certificate)
    found.pop("classes stay", None)  # a pair of neurons may be co-active at the end by chance
    assert found == {
        "homogeneous": "verified",
        "exponential tail": "verified",
        "separated": "verified",
        "laws conserved": "verified",
        "directional convergence": "observed",
        "weights of the run": "verified",
    }
    found = claims(certificate)
    assert [f"distance of {name} from rank one" in found and f"norm of {name}" in found for name in LAYERS] == [
        True
    ] * 3
    assert all(claim.holds for claim in certificate.claims)
    assert found["distance of layer2.weight from rank one"].bound < 0.5  # says something at this short a run
    assert found["misalignment of layer3.weight with layer4.weight"].bound < 0.5  # says something at this short a run
    assert found["distance of layer2.weight from rank one"].measured > 0
    assert not any("layer1" in name for name, claim in found.items() if claim.theorem.startswith("T3"))
    assert "layer1.weight" in certificate.notes[0]


def test_what_rests_on_an_observed_assumption_is_observed(run):
    limit = claims(certify(run))["distance of the limit from rank one"]
    assert "directional convergence" in limit.rests_on
    assert limit.standing == "observed"


def test_it_prints_and_goes_through_json(run):
    certificate = certify(run)
    assert json.loads(json.dumps(certificate.to_json(), allow_nan=False))["holds"] is True
    text = str(certificate)
    assert text.startswith("Certificate holds")
    for name in [*standing(certificate), *claims(certificate)]:
        assert name in text
    assert "le2022training" in [reference.key for reference in certificate.references]


@pytest.mark.parametrize("layer", ["layer1.weight", "layer3.weight"])
def test_weights_tampered_with_are_found_against_the_record(run, layer):
    final = run.final | {layer: run.final[layer] * (1 + 1e-9)}
    certificate = certify(replace(run, final=final))
    assert not certificate.holds
    assert "weights of the run" in certificate.failed


def test_weights_rescaled_without_changing_the_function_are_found_by_the_laws(run):
    final = run.final | {
        "layer2.weight": 2 * run.final["layer2.weight"],
        "layer3.weight": run.final["layer3.weight"] / 2,
    }
    certificate = certify(replace(run, final=final))
    assert certificate.failed == ("laws conserved",)
    assert not certificate.holds


def test_another_initialisation_is_found_by_the_laws(run):
    other = mlp([10, 8, 8, 8, 1], linear_tail=3, seed=1).state_dict()
    assert certify(replace(run, initial=other)).failed == ("laws conserved",)


def test_adam_fails_by_the_laws_and_by_nothing_else(run):
    model = mlp([10, 8, 8, 8, 1], linear_tail=3, seed=0)
    X, y = run.data
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        torch.exp(-y * model(X).squeeze(1)).mean().backward()
        optimizer.step()
    certificate = certify(model, run.data, initial=run.initial)
    assert certificate.failed == ("laws conserved",)
    assert not certificate.holds
    assert next(found for found in certificate.assumptions if found.name == "laws conserved").measured > 1e-4


def test_data_that_are_not_separated_fail_by_that_name(run):
    X, y = run.data
    flipped = y.clone()
    flipped[0] = -flipped[0]
    certificate = certify(run.model, (X, flipped), initial=run.initial)
    assert certificate.failed == ("separated",)
    assert not certificate.holds


def test_the_threshold_of_separation_is_the_losses_own():
    """One example with margin m, one with a large one: separated means e^{-m} < 1, resp. log(1 + e^{-m}) < log 2."""
    model = mlp([1, 1], linear_tail=1)
    with torch.no_grad():
        model.layer1.weight.fill_(1.0)
    for margin, verdict in [(1e-6, "verified"), (-1e-6, "failed")]:
        points = (torch.tensor([[margin], [-60.0]]), torch.tensor([1, -1]))
        for loss in ("exponential", "logistic"):
            assert standing(certify(model, points, loss=loss))["separated"] == verdict


def test_without_initial_weights_the_bounds_are_those_of_today(run):
    certificate = certify(run.model, run.data)
    assert certificate.holds
    assert standing(certificate)["laws conserved"] == "observed"
    assert "today" in certificate.notes[-1]
    assert claims(certificate)["distance of layer2.weight from rank one"].rests_on == ()


def test_biases_break_homogeneity_and_leave_the_bounds():
    run = flowed(bias=True, goal=-10.0)
    certificate = certify(run)
    assert certificate.holds
    assert standing(certificate)["homogeneous"] == "failed"
    assert standing(certificate)["laws conserved"] == "verified"
    assert not any(claim.name.startswith("norm") for claim in certificate.claims)
    found = {found.name: found for found in certificate.assumptions}
    assert found["homogeneous"].why == "no degree: linear: terms of degrees 2 and 1"
    assert found["laws conserved"].measured < LAW_TOLERANCE
    assert any(note.startswith("not homogeneous") for note in certificate.notes)


def test_the_rate_of_turning_is_that_of_the_weights_saved_last(run):
    scaled = {name: 0.5 * w for name, w in run.final.items()}
    saved = {"growth=later": scaled | {"layer4.weight": -scaled["layer4.weight"]}}
    flat = torch.cat([w.flatten() for w in run.final.values()])
    expected = 2 * float(run.final["layer4.weight"].norm() / flat.norm()) / math.log(2)
    found = {a.name: a for a in certify(replace(run, saved=saved)).assumptions}["directional convergence"]
    assert found.measured == pytest.approx(expected, rel=1e-9)
    assert found.standing == "observed"


def test_float32_models_are_read_in_float64_and_left_alone(run):
    model = copy.deepcopy(run.model).float()
    certificate = certify(model, run.data)
    assert certificate.holds
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 3)),
            "one score, as the exponential .* found 3 scores",
        ),
        (nn.Sequential(nn.Linear(10, 1), nn.ReLU()), "an activation, or another operation, after the last layer"),
    ],
)
def test_networks_outside_the_theorem_are_refused(run, model, message):
    with pytest.raises(InputError, match=message):
        certify(model, run.data)


def test_weights_that_do_not_belong_are_refused(run):
    with pytest.raises(InputError, match=r"layer1.weight: \(5, 10\) initially, \(8, 10\) now"):
        certify(run.model, run.data, initial=mlp([10, 5, 8, 8, 1], linear_tail=3).state_dict())
    spoilt = run.initial | {"layer2.weight": torch.full((8, 8), math.nan, dtype=torch.float64)}
    with pytest.raises(InputError, match=r"finite initial weights; found NaN or infinite entries in layer2\.weight"):
        certify(run.model, run.data, initial=spoilt)


def test_an_untrained_network_that_labels_its_own_data_is_certified_of_nothing():
    model, X = mlp([20, 30, 30, 30, 1], linear_tail=3, seed=3, scale=3), torch.randn(3, 20, dtype=torch.float64)
    with torch.no_grad():
        y = torch.where(model(X).flatten() > model(X).median(), 1, -1)
    certificate = certify(model, (X, y))
    ranks = [claim for claim in certificate.claims if claim.theorem in ("T3.1", "T3.2")]
    assert all(claim.holds and claim.standing == "verified" for claim in ranks)
    assert not any(claim.informative for claim in ranks)
    assert [claim.trivial for claim in ranks[:3]] == [1 - 1 / 30, 1 - 1 / 30, 0.0]
    assert not certificate.holds
    assert certificate.proved == ()
    assert "does not hold" in str(certificate)
    assert "trivially" in str(certificate)


def test_a_bound_is_informative_where_it_excludes_something(run):
    certificate = certify(run)
    found = claims(certificate)
    assert found["distance of layer2.weight from rank one"].informative
    assert not found["distance of layer4.weight from rank one"].informative  # one row has rank one whatever it is
    assert not found["slackness of the margins"].informative
    for name in LAYERS:
        assert found[f"norm of {name}"].trivial == float(run.initial[name].norm())
    silent = sum(not claim.informative for claim in certificate.claims)
    head = f"Certificate holds: {len(certificate.proved)} informative claims verified; {silent} bounds that anything"
    assert str(certificate).startswith(head)


def test_example_weights_are_those_of_the_run():
    X, y = data.load("separable", n=12, d=5)
    shares = torch.linspace(0.1, 3, 12, dtype=torch.float64)
    run = flow(
        mlp([5, 6, 5, 1], linear_tail=2, seed=1), (X, y), until="log_loss=-100", example_weights=shares, observe=()
    )
    certificate = certify(run)
    assert certificate.failed == ()
    assert certificate.holds
    margins = y * run.model(X).flatten().detach()
    least = float(shares.min() / shares.sum())
    separated = next(found for found in certificate.assumptions if found.name == "separated")
    assert separated.tolerance == pytest.approx(math.log(least))
    assert separated.measured == pytest.approx(float(torch.logsumexp(torch.log(shares / shares.sum()) - margins, 0)))
    again = certify(run.model, (X, y), initial=run.initial, example_weights=5 * shares)
    assert again.subject.example_weights == certificate.subject.example_weights
    unweighted = certify(run.model, (X, y), initial=run.initial)
    assert unweighted.subject.example_weights is None
    assert standing(certify(replace(run, example_weights=None)))["weights of the run"] == "failed"
    with pytest.raises(InputError, match="12 weights, one for each example"):
        certify(run.model, (X, y), example_weights=-shares)


def test_float32_is_judged_by_its_own_rounding():
    examples, kept = data.load("separable", n=12, d=5), {"dtype": torch.float32, "observe": ()}
    run = flow(mlp([5, 6, 5, 1], linear_tail=2, seed=1), examples, until="log_loss=-100", **kept)
    certificate = certify(run)
    assert certificate.failed == ()
    assert certificate.holds
    law = next(found for found in certificate.assumptions if found.name == "laws conserved")
    assert law.tolerance == pytest.approx(LAW_TOLERANCE * 2.0**29, rel=1e-2)  # and what midpoints missed
    final = run.final | {"layer1.weight": run.final["layer1.weight"] * 1.01}
    assert "weights of the run" in certify(replace(run, final=final)).failed


def test_the_slack_of_a_law_is_twice_what_missed_midpoints_may_move_it_by():
    digits, network = data.load("digits", classes=(0, 1, 2), n=12), mlp([64, 5, 3], seed=0)
    run = flow(network, digits, loss="cross_entropy", until=Steps(3), observe=[])
    evidence = replace(evidence_of_run(run), missed=1e-6)
    norm = math.sqrt(sum(float(each.square().sum()) for each in evidence.final.values()))
    rows = max(map(len, evidence.final.values()))
    assert {law.kind for law in evidence.exact_laws} == {"vertex", "shift"}
    for law in evidence.exact_laws:
        most = 2e-6 * math.sqrt(rows) / norm if law.kind == "shift" else 4e-6 / norm
        assert evidence.slack(law.name) == pytest.approx(most, rel=0.02)
