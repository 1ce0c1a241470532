import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from equipoise.errors import InputError
from equipoise.graph.chain import Layer, linear_tail
from equipoise.measure.alignment import alignment
from equipoise.measure.spectrum import spectrum
from equipoise.theorems import linear_tail as tail
from equipoise.theorems import spectral_bounds


def layers(depth, bias=False, rectified=1):
    return tuple(Layer(f"w{k}", f"b{k}" if bias else None, 0.0 if k < rectified else None) for k in range(depth))


def weights(widths, seed=0, bias=False, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: scale * torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    shapes = list(zip(widths[1:], widths, strict=False))
    found = {f"w{k}": normal(out, fan_in) for k, (out, fan_in) in enumerate(shapes)}
    return found | ({f"b{k}": normal(out) for k, (out, _) in enumerate(shapes)} if bias else {})


def balanced(widths, seed, spread, scale):
    """A deep linear network near a rank-one, aligned one: large σ₁ along common directions, small noise around."""
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.nn.functional.normalize(torch.randn(d, generator=generator).double(), dim=0) for d in widths]
    noise = weights(widths, seed + 1, scale=spread)
    pairs = zip(directions[1:], directions, strict=False)
    return {f"w{k}": scale * torch.outer(u, v) + noise[f"w{k}"] for k, (u, v) in enumerate(pairs)}


networks = st.builds(
    lambda inner, seed, spread, scale: balanced([*inner, 1], seed, spread, scale),
    st.lists(st.integers(1, 7), min_size=2, max_size=4),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 1e-6, 0.1, 1.0]),
    st.sampled_from([0.0, 1.0, 100.0]),
)


def sines(found, lower, upper, rank=1):
    """`‖sin Θ‖²` between the spaces that one layer writes and the next reads."""
    angles = alignment(found[lower.weight], found[upper.weight], rank, bias=found.get(lower.bias)).angles
    return float(angles.sin().square().sum())


@settings(max_examples=25, deadline=None)
@given(networks)
def test_the_bounds_hold_for_any_weights_whatever_made_them(found):
    """T3.1 and T3.2 from the current matrices are pure algebra."""
    whole = tail.LinearTail(layers(len(found), rectified=0))
    ranks, aligned = tail.certified_bounds(whole, found, found), tail.misalignment_bounds(whole, found, found)
    for lower, upper in pairwise(whole.layers):
        assert spectrum(found[lower.weight]).rank_one_residual <= ranks[lower.weight]
        assert sines(found, lower, upper) <= aligned[lower.weight]
    assert ranks[whole.layers[-1].weight] == 0


@settings(max_examples=25, deadline=None)
@given(networks, st.integers(0, 2**31))
def test_the_bounds_hold_from_any_start_once_the_drift_is_added(found, seed):
    whole = tail.LinearTail(layers(len(found), rectified=0))
    initial = weights([found["w0"].shape[1], *(len(w) for w in found.values())], seed)
    ranks, aligned = tail.certified_bounds(whole, initial, found), tail.misalignment_bounds(whole, initial, found)
    for lower, upper in pairwise(whole.layers):
        assert spectrum(found[lower.weight]).rank_one_residual <= ranks[lower.weight]
        assert sines(found, lower, upper) <= aligned[lower.weight]


def several(widths, outputs, seed, spread, scale):
    """A deep linear network near rank `outputs - 1`, its outputs summing to nearly zero, as after cross-entropy."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    bases = [torch.linalg.qr(normal(d, outputs - 1)).Q for d in widths]
    top = torch.linalg.qr(normal(outputs, outputs) - 1.0).Q[:, 1:]
    top = torch.linalg.qr(top - top.mean(0)).Q
    strengths = torch.diag(scale * (1 + torch.rand(outputs - 1, generator=generator).double()))
    pairs = list(zip([*bases[1:], top], bases, strict=True))
    return {f"w{k}": u @ strengths @ v.T + spread * normal(len(u), len(v)) for k, (u, v) in enumerate(pairs)}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(3, 8), min_size=2, max_size=4),
    st.integers(2, 4),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 1e-6, 0.1, 1.0]),
    st.sampled_from([1.0, 100.0]),
)
def test_with_several_classes_the_rank_is_one_less(widths, outputs, seed, spread, scale):
    found = several(widths, outputs, seed, spread, scale)
    whole = tail.LinearTail.of(layers(len(found), rectified=0), found)
    assert whole.rank == outputs - 1
    ranks, aligned = tail.certified_bounds(whole, found, found), tail.misalignment_bounds(whole, found, found)
    for layer in whole.layers:
        assert spectrum(found[layer.weight]).rank_residual(whole.rank) <= ranks[layer.weight]
    for lower, upper in pairwise(whole.layers):
        assert sines(found, lower, upper, whole.rank) <= aligned[lower.weight]
    if spread == 1e-6 and scale == 100.0:
        assert max(ranks.values()) < 1e-6  # and says something
        assert max(aligned.values(), default=0.0) < 1e-6


def test_the_last_deficit_of_several_classes_is_that_of_their_common_shift():
    last = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, 0.25]], dtype=torch.float64)
    found = {"w0": torch.eye(2).double(), "w1": last}
    whole = tail.LinearTail.of(layers(2, rectified=0), found)
    assert tail.deficit_bounds(whole, found)["w1"] == pytest.approx(0.75**2 / 3, rel=1e-9)
    moved = found | {"w1": last + torch.tensor([[0.0, 1.0]] * 3).double()}
    assert tail.deficit_bounds(whole, found, moved)["w1"] == pytest.approx(3.75**2 / 3, rel=1e-9)


@pytest.mark.parametrize("bias", [False, True])
def test_deficits_are_the_recursion_of_t31(bias):
    chain, start = layers(4, bias), weights([5, 6, 4, 3, 1], bias=bias)
    found = tail.deficit_bounds(tail.LinearTail(linear_tail(chain)), start)
    expected = reference.deficit_bounds([start[f"w{k}"] for k in (1, 2, 3)], [start.get(f"b{k}") for k in (1, 2, 3)])
    assert list(found) == ["w1", "w2", "w3"]
    for name, value in zip(found, expected, strict=True):
        assert found[name] == pytest.approx(value, rel=1e-12, abs=1e-12)
        assert found[name] >= value


def test_biases_count_in_the_rank_and_the_alignment():
    """[W b] is the matrix that aligns: the bound with biases fails for the top vector of W alone."""
    generator = torch.Generator().manual_seed(0)
    chain = layers(2, bias=True, rectified=0)
    v = torch.tensor([1.0, 0.0], dtype=torch.float64)
    weak = 0.1 * torch.randn(2, 2, generator=generator).double()
    found = {"w0": weak, "b0": 10 * v, "w1": 10 * v[None], "b1": torch.ones(1).double()}
    bound = tail.misalignment_bounds(tail.LinearTail(chain), found, found)["w0"]
    assert alignment(found["w0"], found["w1"], bias=found["b0"]).sine ** 2 <= bound < 1e-3
    assert alignment(found["w0"], found["w1"]).sine ** 2 > bound
    assert spectrum(found["w0"]).rank_one_residual <= tail.certified_bounds(tail.LinearTail(chain), found, found)["w0"]


def test_conserved_matrices_give_the_same_deficits_later():
    """Both squares grow by 9999 along one direction: C is the same, the bound falls by the norm, and is attained."""
    chain = layers(2, rectified=0)
    start = {"w0": torch.eye(2).double(), "w1": torch.tensor([[2.0, 0.0]]).double()}
    grown = {
        "w0": torch.diag(torch.tensor([100.0, 1.0])).double(),
        "w1": torch.tensor([[math.sqrt(10003.0), 0.0]], dtype=torch.float64),
    }
    assert tail.deficit_bounds(tail.LinearTail(linear_tail(chain)), start, grown)["w0"] == pytest.approx(1.0, abs=1e-9)
    assert tail.certified_bounds(tail.LinearTail(chain), start, grown)["w0"] == pytest.approx(1 / 10001, rel=1e-6)
    assert spectrum(grown["w0"]).rank_one_residual == pytest.approx(1 / 10001)


def test_drift_is_added_to_the_deficit():
    chain = layers(2, rectified=0)
    start = {"w0": torch.eye(2).double(), "w1": torch.tensor([[2.0, 0.0]]).double()}
    drifted = {"w0": torch.diag(torch.tensor([1.0, 2.0])).double(), "w1": start["w1"]}
    assert tail.deficit_bounds(tail.LinearTail(linear_tail(chain)), start, drifted)["w0"] == pytest.approx(
        1 + 3, abs=1e-9
    )


def test_rounding_is_within_its_bound_where_nothing_else_is():
    """An exactly balanced pair: C = 0, so the bound is rounding alone, and the measured residual is below it."""
    chain = layers(2, rectified=0)
    u = torch.nn.functional.normalize(weights([1, 60])["w0"].squeeze(1), dim=0)
    found = {"w0": torch.outer(u, u), "w1": u[None].clone()}
    bound = tail.certified_bounds(tail.LinearTail(chain), found, found)["w0"]
    assert spectrum(found["w0"]).rank_one_residual <= bound < 1e-11
    computed = spectral_bounds.conserved_matrix(*chain, found)
    exact = found["w1"].T.to(torch.float64) @ found["w1"] - found["w0"] @ found["w0"].T
    assert float((computed - exact).norm()) <= spectral_bounds.law_rounding(*chain, found)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.1, 1.0, 30.0]))
def test_margins_force_the_norms_up(seed, scale):
    """T3.3 from any start: the drift of the differences of squares is taken off the bound."""
    chain = layers(3, rectified=1)
    initial, found = weights([4, 5, 3, 1], seed), weights([4, 5, 3, 1], seed + 1, scale=scale)
    x = weights([1, 4], seed + 2)["w0"].squeeze(1)
    score = float((found["w2"] @ found["w1"] @ torch.relu(found["w0"] @ x)).abs())
    bounds = tail.norm_bounds(chain, initial, found, score, float(x.norm()))
    assert all(bound <= float(found[name].norm()) for name, bound in bounds.items())


def test_the_norm_bound_is_reached_by_a_balanced_rank_one_network():
    found = balanced([4, 5, 3, 1], seed=3, spread=0.0, scale=10.0)
    chain, x = layers(3, rectified=0), torch.linalg.svd(found["w0"]).Vh[0]
    score = float((found["w2"] @ found["w1"] @ found["w0"] @ x).abs())
    for name, bound in tail.norm_bounds(chain, found, found, score, 1.0).items():
        assert bound == pytest.approx(float(found[name].norm()), rel=1e-6)


def test_the_first_difference_between_two_sets_of_weights_is_named():
    with pytest.raises(InputError, match=r"w0: \(3, 2\) initially, \(4, 2\) now"):
        tail.certified_bounds(tail.LinearTail(layers(2)), weights([2, 3, 1]), weights([2, 4, 1]))


def test_a_network_without_a_tail_is_refused():
    with pytest.raises(InputError, match="ends in a linear layer; found an activation"):
        tail.LinearTail.of((), weights([2, 3, 2]))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.integers(2, 5),
    st.booleans(),
    st.sampled_from([0.0, 1e-3, 1.0]),
    st.integers(0, 2**31),
)
def test_layers_narrower_than_the_rank_against_numpy(inner, outputs, bias, spread, seed):
    """Of `C - 1` directions, a layer has as many as its shape allows: residuals and angles by numpy, however narrow."""
    low = [min(outputs - 1, *inner)] * (len(inner) + 2)  # near the product of matrices of one inner width
    shared = list(weights([*inner, outputs], seed).values())
    bases = weights([low[0], *inner, outputs], seed + 1)
    found = {}
    for k, w in enumerate(shared):
        left, right = (
            torch.randn(n, low[0], generator=torch.Generator().manual_seed(seed + n)).double() for n in w.shape
        )
        found[f"w{k}"] = 3 * left @ right.T + spread * w
    if bias:
        found |= {f"b{k}": spread * bases[f"w{k + 1}"][:, 0] for k in range(len(shared))}
    whole = tail.LinearTail.of(layers(len(shared), bias=bias, rectified=0), found)
    assert whole.rank == outputs - 1
    bounds, aligned = tail.certified_bounds(whole, found, found), tail.misalignment_bounds(whole, found, found)
    for name, rank in whole.ranks(found).items():
        squares = np.linalg.svd(found[name].numpy(), compute_uv=False) ** 2
        assert squares[rank:].sum() / squares.sum() <= bounds[name]
    for lower, upper in pairwise(whole.layers):
        writes, reads = spectral_bounds.incoming(lower, found).numpy(), found[upper.weight].numpy()
        rank = min(outputs - 1, *writes.shape, *reads.shape)
        assert rank == whole.directions(lower, upper, found)
        u, v = np.linalg.svd(writes)[0][:, :rank], np.linalg.svd(reads)[2][:rank].T
        assert np.square(v - u @ (u.T @ v)).sum() <= aligned[lower.weight]


def test_a_bottleneck_bounds_the_rank_of_what_is_below():
    """Three classes more than the bottleneck has neurons: below it one direction is all there is."""
    found = weights([5, 3, 1, 4])
    whole = tail.LinearTail.of(layers(3, rectified=0), found)
    assert whole.ranks(found) == {"w0": 1, "w1": 1, "w2": 1}
    conserved = found["w1"].T @ found["w1"] - found["w0"] @ found["w0"].T
    expected = float(torch.linalg.eigvalsh(conserved)[-1] - conserved.trace())
    assert tail.deficit_bounds(whole, found)["w0"] == pytest.approx(expected, rel=1e-9)
    u, v = np.linalg.svd(found["w0"].numpy())[0][:, 0], found["w1"].numpy()[0]
    assert spectral_bounds.sines(found["w0"], found["w1"], 1) == pytest.approx(1 - (u @ v) ** 2 / (v @ v))
