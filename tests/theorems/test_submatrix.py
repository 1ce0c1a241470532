from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from equipoise import data
from equipoise.integrate.goals import LogLoss
from equipoise.integrate.loop import flow
from equipoise.networks import mlp
from equipoise.theorems.certificate import certify
from equipoise.theorems.checks.coactive_classes import bounded_classes
from equipoise.theorems.checks.coactive_layers import ranked_layers, rectified_layers
from equipoise.theorems.evidence_builder import evidence_of_model, evidence_of_run


def positive_features(seed=0):
    """Inputs in the positive orthant and a positive first layer: many neurons are on for every example."""
    generator = torch.Generator().manual_seed(seed)
    X = 1 + 0.2 * torch.randn(24, 6, generator=generator).double()
    direction = torch.randn(6, generator=generator).double()
    y = torch.sign(X @ direction - (X @ direction).median() - 1e-9)
    model = mlp([6, 8, 4, 1], linear_tail=2, seed=seed)
    with torch.no_grad():
        model.layer1.weight.abs_()
    return model, (X, y)


def patterned_layers(evidence):
    return ranked_layers(evidence, rectified_layers(evidence)[0])


@pytest.fixture(scope="module")
def run():
    return flow(*positive_features(), until=LogLoss(-1000))


def of_theorem(certificate, number):
    return [claim for claim in certificate.claims if claim.theorem == number]


def test_a_class_is_certified_from_the_values_at_the_time_it_became_stable(run):
    certificate = certify(run)
    assert certificate.holds
    classes = of_theorem(certificate, "T4.2")
    known = [claim for claim in classes if "from the values at" in claim.quantity]
    assert known
    assert all(claim.standing == "verified" and claim.holds and claim.bound < 0.5 for claim in known)
    assert all(claim.measured > 0 for claim in known)
    for claim in classes:
        assert claim.standing == ("verified" if claim in known else "observed")


def test_with_only_the_final_weights_classes_are_observed(run):
    certificate = certify(run.model, run.data)
    assert of_theorem(certificate, "T4.2")
    assert {claim.standing for claim in of_theorem(certificate, "T4.2")} == {"observed"}
    assert all(claim.holds for claim in of_theorem(certificate, "T4.2"))


@pytest.mark.parametrize("moment", ["initial", "final"])
def test_the_bounds_are_those_of_the_slow_twin(run, moment):
    """From the matrices of one point: classes by comparing every pair, eigenvalues of matrices written out."""
    weights = getattr(run, moment)
    evidence = evidence_of_model(run.model, weights, run.data, "exponential")
    (found,) = patterned_layers(evidence)
    layer = found.layer
    X, _ = run.data
    W1, W2, W3 = (weights[f"layer{k}.weight"] for k in (1, 2, 3))
    classes = reference.pattern_classes(X @ W1.T)
    assert {tuple(found.members.tolist()) for found in layer.classes} == classes
    above = reference.deficit_bounds([W2, W3], [None, None])[0]
    spilt = 0.0
    for bounded in bounded_classes(evidence, found):
        rows = bounded.found.members
        conserved = W2[:, rows].T @ W2[:, rows] - W1[rows] @ W1[rows].T
        excess = float(torch.linalg.eigvals(conserved).real.max() - conserved.trace())
        assert bounded.deficit == pytest.approx(above + excess, rel=1e-9, abs=1e-9)
        assert bounded.deficit >= above + excess
        spilt += excess
    off = [u for u in range(8) if not any(u in members for members in classes)]
    assert layer.off.tolist() == off
    assert found.written.rank == len(classes)
    deficit = above + spilt + float(W1[off].square().sum()) if len(classes) < min(W1.shape) else 0.0
    assert found.written.deficit == pytest.approx(deficit, rel=1e-9)


@settings(max_examples=5, deadline=None)
@given(
    st.integers(0, 2**31),
    st.booleans(),
    st.sampled_from([0.01, 1.0]),
    st.sampled_from([[4, 6, 6, 5, 1], [3, 8, 4, 1], [4, 6, 1]]),
)
def test_class_bounds_hold_for_any_weights_whatever_made_them(seed, bias, spread, widths):
    """T4.2 and T4.3 from the current matrices are pure algebra; near rank one, and with few distinct patterns."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    model = mlp(widths, linear_tail=1 if len(widths) == 3 else 2, bias=bias)
    with torch.no_grad():
        for parameter in model.parameters():
            shared = normal(parameter.shape[0], 1) * (normal(1, parameter.shape[1]) if parameter.ndim > 1 else 1.0)
            parameter.copy_(3 * shared.reshape(parameter.shape) + spread * normal(*parameter.shape))
    X = normal(6, widths[0])
    certificate = certify(model, (X, [1, -1, 1, -1, 1, -1]))
    for claim in (*of_theorem(certificate, "T4.2"), *of_theorem(certificate, "T4.3")):
        assert claim.measured <= claim.bound


def test_classes_that_mix_break_their_law_and_are_taken_from_a_later_point(run):
    """Weights tampered with in the past: the law of a class has drifted since, so its values there do not count."""
    early = min(run.saved)
    turned = dict(run.saved[early])
    turned["layer1.weight"] = turned["layer1.weight"] * 1.01
    evidence = evidence_of_run(run)
    since = [found.since for found in patterned_layers(evidence)[0].layer.classes if found.since is not None]
    assert min(since) == 0.0
    moved = evidence_of_run(replace(run, saved=run.saved | {early: turned}))
    later = [found.since for found in patterned_layers(moved)[0].layer.classes if found.since is not None]
    assert later
    assert min(later) > 0.25


def test_leaky_layers_have_no_neurons_that_are_off():
    X, y = data.load("separable", n=30, d=10, seed=0)
    model = torch.nn.Sequential(
        torch.nn.Linear(10, 8, bias=False), torch.nn.LeakyReLU(0.1), torch.nn.Linear(8, 1, bias=False)
    ).double()
    with torch.no_grad():
        model[0].weight[:3] = -X.sum(0).sign()  # not all off, but three alike
    (found,) = patterned_layers(evidence_of_model(model, dict(model.named_parameters()), (X, y), "exponential"))
    assert len(found.layer.off) == 0
    assert sum(len(each.members) for each in found.layer.classes) == 8


def test_a_linear_layer_below_a_relu_tends_to_the_rank_of_its_classes():
    """`W_1` is read by `W_2` alone, whose rank is that of its pattern classes: few, with few examples."""
    linear = lambda *sizes: torch.nn.Linear(*sizes, bias=False)  # noqa: E731
    torch.manual_seed(0)
    model = torch.nn.Sequential(linear(5, 6), linear(6, 8), torch.nn.ReLU(), linear(8, 1)).double()
    X = torch.randn(2, 5, generator=torch.Generator().manual_seed(1)).double()
    certificate = certify(model, (X, [1, -1]))
    classes = reference.pattern_classes(X @ (model[1].weight @ model[0].weight).detach().T)
    (claim,) = (claim for claim in of_theorem(certificate, "T3.1") if "0.weight" in claim.name)
    assert claim.name == f"distance of 0.weight from rank {len(classes)}"
    assert 0 < claim.measured <= claim.bound


def test_classes_read_by_neurons_that_are_all_off_have_no_directions_to_align():
    """A second ReLU layer that no example turns on: of rank zero on the data, and nothing is said of its alignment."""
    X = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).double() + 0.1
    y = torch.tensor([1.0, -1, 1, -1, 1, -1], dtype=torch.float64)
    model = mlp([3, 4, 4, 1], linear_tail=1, seed=0)
    with torch.no_grad():
        model.layer1.weight.abs_()
        model.layer2.weight.abs_().neg_()
    certificate = certify(model, (X, y), initial=dict(model.named_parameters()))
    assert of_theorem(certificate, "T4.2")
    assert not of_theorem(certificate, "T4.6")
