"""Co-active neurons of networks with skips and convolutions: T4.2 by the laws of the present piece."""

from dataclasses import replace

import pytest
import torch

from equipoise import data
from equipoise.integrate.goals import LogLoss
from equipoise.integrate.loop import flow
from equipoise.networks import convnet, mlp, residual_mlp
from equipoise.theorems.blocks import co_active_blocks
from equipoise.theorems.certificate import certify
from equipoise.theorems.gather import gather_run


def positive(model, *names):
    """With these weights made non-negative: on inputs that are, the neurons above are on together."""
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).abs_()
    return model


def residual_run():
    X, y = data.load("separable", n=12, d=6, seed=0)
    model = residual_mlp(6, 5, 6, linear_tail=2, seed=0)
    return flow(positive(model, "embed.weight", "block1.up.weight"), (X - X.min(), y), until=LogLoss(-30))


def convolutional_run():
    X, y = data.load("digits", classes=(0, 1), n=8, seed=0)
    model = positive(convnet((8, 8), (3,), width=4, seed=0), "conv1.weight")
    return flow(model, (X - X.min(), y), until=LogLoss(-30))


@pytest.fixture(scope="module", params=[residual_run, convolutional_run])
def run(request):
    return request.param()


def slow_bound(run, start, writer, reader, members):
    """The bound with everything written out, from the weights at `start`; the reader's columns one above the other."""
    rows = [w[writer].flatten(1)[members] for w in (start, run.final)]
    width = len(run.final[writer])
    columns = [w[reader].reshape(len(w[reader]), width, -1)[:, members] for w in (start, run.final)]
    columns = [c.movedim(1, 0).flatten(1) for c in columns]
    conserved = columns[0] @ columns[0].T - rows[0] @ rows[0].T
    beyond = float(torch.linalg.svdvals(columns[1])[1:].square().sum())
    return (beyond - float(torch.linalg.eigvalsh(conserved)[:-1].sum())) / float(rows[1].square().sum())


def test_a_class_is_within_its_bound_from_the_time_it_became_stable(run):
    certificate = certify(run)
    assert certificate.holds
    found = {claim.name: claim for claim in certificate.claims if claim.theorem == "T4.2"}
    known = [block for block in co_active_blocks(gather_run(run)) if block.since is not None]
    assert known
    points = {0.0: run.initial} | {float(name.partition("=")[2]): weights for name, weights in run.saved.items()}
    for block in known:
        ((writer, members),) = block.members
        (reader,) = block.law.consumers
        start = points[min(points, key=lambda growth: abs(growth - block.since))]
        assert block.drift < 1e-12
        (claim,) = (c for name, c in found.items() if f"{len(members)} co-active neurons of {writer}" in name)
        assert claim.standing == "verified"
        assert 0 < claim.measured <= claim.bound < 1
        assert claim.bound == pytest.approx(slow_bound(run, start, writer, reader, list(members)), rel=1e-6)


def test_a_start_that_is_not_that_of_the_class_is_not_believed(run):
    moved = {name: 1.1 * weights for name, weights in run.initial.items()}
    blocks = co_active_blocks(gather_run(replace(run, initial=moved, saved={})))
    assert blocks
    assert all(block.since is None for block in blocks)


def test_chains_have_none_of_these():
    run = flow(mlp([5, 4, 1]), data.load("separable", n=12, d=5), until=LogLoss(-10))
    assert co_active_blocks(gather_run(run)) == ()
