"""ReLU layers of networks that are no chain, with skips and convolutions: T4.2, and T4.3 where a rank is promised."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import reference
from equipoise import data
from equipoise.integrate.goals import LogLoss
from equipoise.integrate.loop import flow
from equipoise.networks import convnet, residual_mlp
from equipoise.theorems.certificate import certify
from equipoise.theorems.checks.coactive_layers import ranked_layers, rectified_layers
from equipoise.theorems.evidence_builder import evidence_of_model, evidence_of_run


def positive(model, *names):
    """With these weights made non-negative: on inputs that are, the neurons above are on together."""
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).abs_()
    return model


def on_positive(examples):
    X, y = examples
    return X - X.min(), y


def layers_of(evidence):
    return ranked_layers(evidence, rectified_layers(evidence)[0])


def rectified_of(evidence):
    return [one for one in layers_of(evidence) if not one.layer.linear]


def of_theorem(certificate, number):
    return [claim for claim in certificate.claims if claim.theorem == number]


# --- T4.2: as near to rank one as what reads them ---


def residual_run():
    model = positive(residual_mlp(6, 5, 6, linear_tail=2, seed=0), "embed.weight", "block1.up.weight")
    return flow(model, on_positive(data.load("separable", n=12, d=6, seed=0)), until=LogLoss(-30))


def convolutional_run():
    model = positive(convnet((8, 8), (3,), width=4, seed=0), "conv1.weight")
    return flow(model, on_positive(data.load("digits", classes=(0, 1), n=8, seed=0)), until=LogLoss(-30))


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
    claims = {claim.name: claim for claim in of_theorem(certificate, "T4.2")}
    (layer,) = (one.layer for one in rectified_of(evidence_of_run(run)))
    known = [found for found in layer.classes if found.since is not None]
    assert known
    points = {0.0: run.initial} | {float(name.partition("=")[2]): weights for name, weights in run.saved.items()}
    for found in known:
        start = points[min(points, key=lambda growth: abs(growth - found.since))]
        assert found.drift < 1e-12
        (claim,) = (c for n, c in claims.items() if f"{len(found.members)} co-active neurons of {layer.name}" in n)
        assert claim.standing == "verified"
        assert 0 < claim.measured <= claim.bound < 1
        slow = slow_bound(run, start, layer.name, layer.law.consumers[0], found.members.tolist())
        assert claim.bound == pytest.approx(slow, rel=1e-6)


def test_a_start_that_is_not_that_of_the_class_is_not_believed(run):
    moved = {name: 1.1 * weights for name, weights in run.initial.items()}
    (one,) = rectified_of(evidence_of_run(replace(run, initial=moved, saved={})))
    assert one.layer.classes
    assert all(found.since is None for found in one.layer.classes)


# --- T4.3: rank by patterns, where what reads the layer is promised to tend to low rank ---


def dense_skip():
    """Four neurons are on for all examples at the start, one is off, the others are as they come."""
    model = residual_mlp(6, 5, 8, skip="dense", linear_tail=2, bias=True, seed=0)
    positive(model, "embed.weight")
    with torch.no_grad():
        model[1].up.weight[:4].abs_()
        model[1].up.weight[-1] = -model[1].up.weight[-1].abs()
    return model, on_positive(data.load("separable", n=8, d=6, seed=0))


def pooled_to_one_place():
    """All channels are on everywhere at the start, but one is off."""
    model = positive(convnet((2, 2), (8,), width=5, seed=0), "conv1.weight")
    with torch.no_grad():
        model.conv1.weight[-1] *= -1
    return model, on_positive(data.load("separable", n=8, d=4, seed=0))


DEPTHS = {dense_skip: -1e5, pooled_to_one_place: -1e3}  # where the bound from the start says something


@cache
def deep_run(network):
    return flow(*network(), until=LogLoss(DEPTHS[network]), observe=())


@pytest.fixture(params=[dense_skip, pooled_to_one_place])
def deep(request):
    return deep_run(request.param)


def enumerated(weights, X, bias):
    """`W`, `(R, D)` of the ReLU layer by the slow twin: what reads it is descended to by hand."""
    tail = [weights["layer1.weight"], weights["layer2.weight"]]
    if "conv1.weight" in weights:
        written, read = weights["conv1.weight"].flatten(1), tail[0]
        images = nn.functional.pad(X.reshape(-1, 2, 2), (1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)
        z = images.reshape(-1, 9) @ written.T  # a row for each example and position
        return written, reference.rank_by_patterns(written, read, z, reference.deficit_bounds(tail, [None, None])[0])
    stream = X @ weights["embed.weight"].T + weights["embed.bias"]
    written = torch.cat([weights["block1.up.weight"], weights["block1.up.bias"][:, None]], 1)
    read = weights["block1.down.weight"]
    both = torch.cat([read, weights["block1.skip.weight"]], 1)
    biases = [weights["block1.down.bias"], weights["layer1.bias"], None]
    above = reference.deficit_bounds([both, *tail], biases)[0]
    z = stream @ weights["block1.up.weight"].T + weights["block1.up.bias"]
    return written, reference.rank_by_patterns(written, read, z, above)


def test_rank_by_patterns_is_that_of_direct_enumeration(deep):
    """From today's matrices."""
    evidence = evidence_of_model(deep.model, deep.final, deep.data, "exponential")
    (one,) = rectified_of(evidence)
    written, (rank, deficit) = enumerated(deep.final, deep.data[0], evidence.chain)
    assert one.written.rank == rank < min(written.shape)
    assert len(one.layer.off) > 0
    assert one.written.deficit == pytest.approx(deficit, rel=1e-6)
    (claim,) = of_theorem(certify(deep.model, deep.data), "T4.3")
    assert claim.name.startswith(f"distance of {one.layer.name} from rank {rank}, by its {rank} pattern classes")
    assert claim.measured == pytest.approx(
        float(torch.linalg.svdvals(written)[rank:].square().sum() / written.square().sum()), rel=1e-9
    )
    assert claim.measured <= claim.bound == pytest.approx(deficit / float(written.square().sum()), rel=1e-6)


def test_what_a_dense_skip_is_added_to_tends_to_rank_one_with_it():
    """`[V Z]` of `h' = V σ(U h) + Z h` is a linear layer that the tail alone reads (T2.5, T3.1)."""
    run = deep_run(dense_skip)
    (claim,) = (claim for claim in of_theorem(certify(run), "T3.1") if "block1" in claim.name)
    assert claim.name == "distance of block1.skip.weight + block1.down.weight from rank one"
    assert claim.standing == "verified"
    both, bias = ("block1.down.weight", "block1.skip.weight"), "block1.down.bias"
    start = [torch.cat([run.initial[name] for name in both], 1), *(run.initial[f"layer{k}.weight"] for k in (1, 2))]
    deficit = reference.deficit_bounds(start, [run.initial[bias], run.initial["layer1.bias"], None])[0]
    written = torch.cat([*(run.final[name] for name in both), run.final[bias][:, None]], 1)
    values = torch.linalg.svdvals(written).square()
    assert claim.measured == pytest.approx(float(values[1:].sum() / values.sum()), rel=1e-9)
    assert claim.measured <= claim.bound == pytest.approx(deficit / float(values.sum()), rel=1e-6)


def test_rank_by_patterns_is_certified_from_the_start_of_the_run(deep):
    certificate = certify(deep)
    (claim,) = of_theorem(certificate, "T4.3")
    assert certificate.holds
    assert claim.holds
    assert 0 < claim.measured <= claim.bound < 0.2
    assert certificate.recheck(deep).holds


def test_tampered_weights_leave_the_bound(deep):
    """A component beyond the rank, small enough for log R to hide it: the law of the class tells."""
    name = "conv1.weight" if "conv1.weight" in deep.final else "block1.up.weight"
    tampered = dict(deep.final)
    noise = torch.randn(tampered[name].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tampered[name] = tampered[name] + 1e-4 * tampered[name].norm() * noise / noise.norm()
    certificate = certify(replace(deep, final=tampered))
    assert not certificate.holds
    assert {"laws conserved", "weights of the run"} <= set(certificate.failed)
    (claim,) = of_theorem(certificate, "T4.3")
    assert claim.standing == "failed"
    stale = certify(deep).recheck(replace(deep, final=tampered))
    assert any("pattern classes" in line for line in stale.differences)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.01, 1.0]), st.sampled_from(["dense", "conv", "pointwise", "tokens"]))
def test_the_bounds_hold_for_any_weights_whatever_made_them(seed, spread, kind):
    """Pure algebra, near rank one and far from it."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    shape, model = {
        "dense": ((6, 6), residual_mlp(6, 5, 6, skip="dense", blocks=2, bias=True)),
        "conv": ((6, 16), convnet((4, 4), (3, 6), width=4, bias=True)),
        "pointwise": (
            (6, 2, 3, 3),
            nn.Sequential(
                *(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 1), nn.LeakyReLU(0.1), nn.Conv2d(6, 3, 1)),
                *(nn.Flatten(), nn.Linear(3, 1)),
            ),
        ),
        "tokens": (
            (6, 2, 4),
            nn.Sequential(
                *(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.Flatten()),
                *(nn.Linear(6, 2), nn.Linear(2, 1)),
            ),
        ),
    }[kind]
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.reshape(len(parameter), -1)
            shared = normal(len(flat), 1) * (normal(1, flat.shape[1]) if flat.shape[1] > 1 else 1.0)
            parameter.copy_((3 * shared + spread * normal(*flat.shape)).reshape(parameter.shape))
    certificate = certify(model.double(), (normal(*shape), [1, -1] * 3))
    claims = [*of_theorem(certificate, "T4.2"), *of_theorem(certificate, "T4.3")]
    assert all(claim.measured <= claim.bound for claim in claims)


# --- where nothing is promised, and why ---


@pytest.mark.parametrize(
    ("model", "shape", "note"),
    [
        (residual_mlp(6, 5, 6), (6,), r"of block1.up.weight: block1.down.weight, which reads it, is not known to tend"),
        (convnet((8, 8), (3,), width=4), (64,), r"of conv1.weight: layer1.weight reads it at several places"),
        (convnet((4, 4), (3,), width=4, pool="maximum"), (16,), r"together \(T4.2, T4.3\) of conv2d: .* apart"),
    ],
)
def test_where_the_premise_fails_a_line_says_why(model, shape, note):
    X = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0)).double()
    certificate = certify(model, (X, [1, -1] * 4))
    assert of_theorem(certificate, "T4.3") == []
    assert len([line for line in certificate.notes if re.search(note, line)]) == 1
