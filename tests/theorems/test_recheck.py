import copy
import json
from dataclasses import replace

import pytest
import torch

from equipoise import data
from equipoise.errors import InputError
from equipoise.integrate.goals import LogLoss
from equipoise.integrate.loop import flow
from equipoise.networks import mlp
from equipoise.theorems.certificate import Certificate, certify
from helpers.sampling import sampled


@pytest.fixture(scope="module")
def run():
    return flow(
        mlp([10, 8, 8, 1], linear_tail=2, seed=0), data.load("separable", n=30, d=10, seed=0), until=LogLoss(-1e4)
    )


@pytest.fixture(scope="module")
def stored(run):
    """What a file would hold."""
    return json.loads(json.dumps(certify(run).to_json()))


def test_it_is_the_same_when_made_again(run, stored):
    found = Certificate.from_json(stored).recheck(run)
    assert found.holds
    assert found.differences == ()


def test_the_model_and_the_data_alone_will_do(run):
    certificate = certify(run.model, run.data, initial=run.initial)
    assert certificate.recheck(run.model, run.data, initial=run.initial).holds
    without = certificate.recheck(run.model, run.data)
    assert not without.holds
    assert any(line.startswith("initial: ") for line in without.differences)


def forged(stored, **fields):
    """The same certificate with the first claim changed."""
    changed = copy.deepcopy(stored)
    changed["claims"][0] |= fields
    return Certificate.from_json(changed)


@pytest.mark.parametrize("fields", [{"bound": 1e-9}, {"measured": 1e-9}, {"standing": "observed"}, {"rests_on": []}])
def test_a_forged_figure_is_named(run, stored, fields):
    (difference,) = forged(stored, **fields).recheck(run).differences
    assert difference.startswith(f"claim distance of layer2.weight from rank one: {next(iter(fields))} ")


@pytest.mark.parametrize("field", ["measured", "bound"])
def test_a_figure_forged_by_a_ten_thousandth_is_named(run, stored, field):
    claim = stored["claims"][0]
    (difference,) = forged(stored, **{field: claim[field] * (1 + 1e-4)}).recheck(run).differences
    assert difference.startswith(f"claim distance of layer2.weight from rank one: {field} ")


def test_a_figure_that_was_struck_out_is_named(run, stored):
    assert forged(stored, measured=None).recheck(run).differences
    changed = copy.deepcopy(stored)
    law = next(found for found in changed["assumptions"] if found["name"] == "laws conserved")
    law["measured"] = None
    (difference,) = Certificate.from_json(changed).recheck(run).differences
    assert difference.startswith("assumption laws conserved: measured None in the certificate")


def test_an_honest_certificate_of_what_does_not_hold_does_not_hold(run):
    X, y = run.data
    flipped = (X, -y)
    recheck = certify(run.model, flipped).recheck(run.model, flipped)
    assert recheck.differences == ()
    assert not recheck.holds
    assert str(recheck).endswith("does not hold")


def test_a_claim_that_was_added_or_left_out_is_named(run, stored):
    missing = stored | {"claims": stored["claims"][1:]}
    assert Certificate.from_json(missing).recheck(run).differences == (
        "claim distance of layer2.weight from rank one: missing",
    )
    added = stored | {"claims": [*stored["claims"], stored["claims"][0] | {"name": "distance of all from rank one"}]}
    assert Certificate.from_json(added).recheck(run).differences == (
        "claim distance of all from rank one: not there when made again",
    )


def test_a_failed_assumption_that_was_turned_is_named(run, stored):
    X, y = run.data
    flipped = y.clone()
    flipped[0] = -flipped[0]
    failing = json.loads(json.dumps(certify(run.model, (X, flipped)).to_json()))
    for found in failing["assumptions"]:
        found["standing"] = "verified"
    recheck = Certificate.from_json(failing).recheck(run.model, (X, flipped))
    assert not recheck.holds
    assert any("assumption separated: standing verified" in line for line in recheck.differences)


def test_other_weights_and_other_data_are_named(run, stored):
    stale = replace(run, final=run.saved["growth=0.25"])
    differences = Certificate.from_json(stored).recheck(stale).differences
    assert any(line.startswith("weights: ") for line in differences)
    tampered = replace(run, final=run.final | {"layer3.weight": run.final["layer3.weight"] * (1 + 1e-15)})
    assert any(line.startswith("weights: ") for line in Certificate.from_json(stored).recheck(tampered).differences)
    X, y = run.data
    moved = Certificate.from_json(stored).recheck(replace(run, data=(X + 1e-13, y)))
    assert any(line.startswith("data: ") for line in moved.differences)


def test_what_is_no_certificate_is_refused():
    with pytest.raises(InputError, match="the JSON of a certificate; found KeyError: 'assumptions'"):
        Certificate.from_json({"status": "reached"})


TAMPERED = {
    "holds": lambda s: s.update(holds=False),
    "failed": lambda s: s.update(failed=["separated"]),
    "holds of a claim": lambda s: s["claims"][0].update(holds=False),
    "informative": lambda s: s["claims"][1].update(informative=True),
    "trivial": lambda s: s["claims"][1].update(trivial=1.0),
    "theorem": lambda s: s["claims"][0].update(theorem="T3.2"),
    "quantity": lambda s: s["claims"][0].update(quantity="1 - σ₁²/‖W‖², of every layer"),
    "statement": lambda s: s["assumptions"][0].update(statement="f(x; a w) = a^4 f(x; w) for a > 0"),
    "a note": lambda s: s["notes"].__setitem__(0, "rank one is claimed of layer1.weight"),
    "a note more": lambda s: s["notes"].append("rank one everywhere"),
    "a claim twice": lambda s: s["claims"].insert(0, s["claims"][0] | {"bound": 1e-20}),
}


MORE = ["failed", "informative", "trivial", "quantity", "statement", "a note more", "holds of a claim"]


@pytest.mark.parametrize("what", sampled(TAMPERED, MORE))
def test_whatever_the_file_says_is_compared(run, stored, what):
    changed = copy.deepcopy(stored)
    TAMPERED[what](changed)
    recheck = Certificate.from_json(changed).recheck(run)
    assert recheck.differences
    assert not recheck.holds


def test_other_points_another_start_another_loss_and_examples_twice_are_named(run, stored):
    certificate, (first, second) = Certificate.from_json(stored), list(run.saved)[:2]
    X, y = run.data
    changes = {
        "points": {"saved": run.saved | {first: run.saved[second], second: run.saved[first]}},
        "initial": {"initial": run.final},
        "loss": {"loss": "logistic"},
        "data": {"data": (torch.cat([X, X]), torch.cat([y, y]))},
        "example_weights": {"example_weights": torch.ones(len(y)).double()},
    }
    for part, change in changes.items():
        lines = certificate.recheck(replace(run, **change)).differences
        assert any(line.startswith(f"{part}: ") for line in lines), part
    shuffled = torch.arange(len(y)).flip(0)
    lines = certificate.recheck(replace(run, data=(X[shuffled], y[shuffled]))).differences
    assert any(line.startswith("data: ") for line in lines)
