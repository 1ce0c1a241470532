"""Certificates of the flow's showcase runs, deep into the limit: skip connections, convolutions, several classes."""

import json

import pytest

from equipoise import data
from equipoise.integrate.goals import LogLoss
from equipoise.integrate.loop import flow
from equipoise.integrate.steppers import EntropicMidpoint
from equipoise.networks import convnet, mlp, residual_mlp
from equipoise.theorems.certificate import Certificate, certify

RUNS = {
    "residual": (lambda: residual_mlp(64, 12, 12, blocks=2, linear_tail=3, seed=0), (0, 1), "exponential", -1e8, 1),
    "convnet": (lambda: convnet((8, 8), (2, 3), width=8, linear_tail=3, seed=0), (0, 1), "exponential", -1e8, 1),
    "classes": (lambda: mlp([64, 12, 12, 4], linear_tail=2, seed=0), (0, 1, 2, 3), "cross_entropy", -1e4, 3),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name == "classes" else pytest.mark.slow) for name in RUNS],
)
def certified(request):
    network, classes, loss, goal, rank = RUNS[request.param]
    examples = data.load("digits", classes=classes, n=12, seed=0)
    run = flow(network(), examples, loss=loss, until=LogLoss(goal), stepper=EntropicMidpoint(step_size=0.2))
    return run, certify(run), rank


def test_the_run_is_certified_to_its_goal(certified):
    run, certificate, rank = certified
    assert run.status == "reached"
    assert certificate.holds
    tail = [claim for claim in certificate.claims if claim.theorem in ("T3.1", "T3.2")]
    assert tail
    assert {claim.standing for claim in tail} == {"verified"}
    assert all(claim.holds for claim in tail)
    ranks = [claim for claim in tail if claim.theorem == "T3.1"]
    assert all(claim.name.endswith("rank one" if rank == 1 else f"rank {rank}") for claim in ranks)
    assert max(claim.bound for claim in ranks) < 0.5  # says something


def test_it_is_the_same_when_made_again_from_its_file(certified):
    run, certificate, _ = certified
    stored = Certificate.from_json(json.loads(json.dumps(certificate.to_json())))
    recheck = stored.recheck(run)
    assert recheck.differences == ()
    assert recheck.holds


def test_tampering_below_the_tail_and_in_it_is_named(certified):
    run, certificate, _ = certified
    for name in (next(iter(run.final)), list(run.final)[-1]):
        final = run.final | {name: run.final[name] * (1 + 1e-7)}
        tampered = certify(type(run)(**{**vars(run), "final": final}))
        assert not tampered.holds
        assert "weights of the run" in tampered.failed
        assert not certificate.recheck(type(run)(**{**vars(run), "final": final})).holds
