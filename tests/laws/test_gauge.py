"""Laws read through a gauge, against the laws themselves."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.graph.interface import Member
from equipoise.laws import invariances
from equipoise.laws.gauge import Gauge
from equipoise.laws.panel import sketched
from equipoise.laws.predict import predict_drift
from equipoise.laws.reductions import Matrix, runs
from equipoise.laws.scratch import Scratch


def close(flat, value):
    """Numbers of a panel against a value of a law."""
    torch.testing.assert_close(torch.from_numpy(flat), value.reshape(-1))


@pytest.fixture(scope="module")
def scene():
    """A network with vertex, matrix and shift laws, its gradients, and the optimizer that moves it."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 40), nn.Linear(40, 12), nn.LayerNorm(12), nn.Linear(12, 3)]
    model = nn.Sequential(*layers).double()
    laws = invariances(model, torch.ones(4, 5).double())
    model(torch.randn(9, 5).double()).square().sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.1)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert {"vertex", "linear", "shift"} <= {law.kind for law in laws}
    return model, laws, optimizer, weights, gradients


def test_without_a_sketch_it_says_what_the_laws_say(scene):
    model, laws, optimizer, weights, gradients = scene
    predicted = predict_drift(laws, model, optimizer, {})
    panel = Gauge(tuple(laws)).read(weights, gradients)
    exact = [predicted[law.name].exact for law in panel.laws]
    changes = panel.predicted([(0.01, 0.1) if known else None for known in exact])
    assert {law.name for law in panel.laws} == {law.name for law in laws}
    for i, (law, own) in enumerate(zip(panel.laws, panel.layout.places, strict=True)):
        close(panel.values[own], law.value(weights))
        assert panel.residuals[i] == pytest.approx(float(law.residual(weights, gradients)), abs=1e-15)
        assert panel.scales[i] == pytest.approx(float(law.scale(weights, gradients)))
        if exact[i]:
            close(changes[own], predicted[law.name].change)
        else:
            assert np.isnan(changes[own]).all()


def test_a_sketch_is_a_congruence_of_the_whole_matrix(scene):
    _, laws, _, weights, gradients = scene
    gauge = Gauge.sketch(laws)
    panel, whole = gauge.read(weights, gradients), {law.name: law for law in laws}
    for thin, own, residual in zip(panel.laws, panel.layout.places, panel.residuals, strict=True):
        law = whole[thin.name]
        assert sketched(thin) == (law.kind == "linear" and law.interface.width > 16)
        if sketched(thin):
            through = thin.interface.members[0].directions
            close(panel.values[own], through.T @ law.value(weights) @ through)
            assert residual < 1e-14


def test_a_sketch_sees_a_wrong_gradient_and_the_size_of_a_drift(scene):
    _, laws, _, weights, gradients = scene
    wrong = gradients | {"2.weight": 1.01 * gradients["2.weight"]}
    panel = Gauge.sketch(laws).read(weights, wrong)
    ((seen_law, residual),) = (
        (law, size) for law, size in zip(panel.laws, panel.residuals, strict=True) if sketched(law)
    )
    assert residual > 1e-4
    torch.manual_seed(1)
    moved = weights | {"2.weight": weights["2.weight"] + 0.1 * torch.randn(40, 6).double()}
    (law,) = (law for law in laws if law.name == seen_law.name)
    true = float((law.value(moved) - law.value(weights)).norm())
    seen = []
    for seed in range(40):
        gauge = Gauge.sketch([law], seed=seed)
        before, after = (gauge.read(values) for values in (weights, moved))
        seen.append(gauge.layout.norms(after.values - before.values)[0] ** 2)
    assert sum(seen) / len(seen) == pytest.approx(true**2, rel=0.15)  # unbiased in the square


def test_shards_add_up_to_the_whole(scene):
    """Each process has some rows and zeros for the rest; `reduce` sums over them."""
    _, laws, _, weights, gradients = scene
    whole = Gauge.sketch(laws)

    def part(tensors, first):
        def cut(tensor):
            mask = torch.zeros(len(tensor), *[1] * (tensor.ndim - 1), dtype=tensor.dtype)
            mask[: len(tensor) // 2] = 1
            return tensor * (mask if first else 1 - mask)

        return {name: cut(tensor) for name, tensor in tensors.items()}

    sent = []
    for first in (True, False):  # what each would send ...
        gauge = Gauge(whole.laws, reduce=lambda tensors: sent.append(tensors) or tensors)
        gauge.read(part(weights, first), part(gradients, first))
    calls = len(sent) // 2
    totals = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(sent[:calls], sent[calls:], strict=True)]
    answers = iter(totals)  # ... and what each would get back
    summed = Gauge(whole.laws, reduce=lambda tensors: next(answers)).read(part(weights, True), part(gradients, True))
    expected = whole.read(weights, gradients)
    close(summed.values, torch.from_numpy(expected.values))
    assert summed.residuals == pytest.approx(expected.residuals, abs=1e-14)
    assert summed.scales == pytest.approx(expected.scales)


def test_one_pass_tells_the_sums_of_squares_too(scene):
    """Of the parameters of which it has seen all, whatever their dtype allows: half precision is left to others."""
    _, laws, _, weights, gradients = scene
    gauge = Gauge.sketch(laws)
    for dials in (gauge.at(weights), gauge.at(weights, gradients)):
        assert {"0.weight", "0.bias", "2.weight"} <= set(dials.squares)
        for name, square in dials.squares.items():
            assert square == pytest.approx(float(weights[name].square().sum()), rel=1e-14)
    assert not gauge.at({name: weight.bfloat16() for name, weight in weights.items()}).squares


@pytest.mark.parametrize("shape", [(6, 40), (6, 3, 2, 2), (6, 1 << 13), (40, 6), (1, 9)])
def test_squares_in_a_run_are_the_sums_of_the_products(shape):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    member = Member("w", shape, (0,), torch.arange(shape[0]).reshape(-1, 1, 1), 1.0)
    matrix = Matrix((member,), Scratch())
    assert runs(member) == (shape[1] <= 1 << 12)
    (squares,), (products,) = matrix.squares(tensor), matrix.products(tensor, tensor)
    torch.testing.assert_close(squares, products)
    torch.testing.assert_close(squares, tensor.square().flatten(1).sum(1))
    assert not runs(Member("w", shape, (1,), torch.arange(shape[1]).reshape(-1, 1, 1), 1.0))


def test_units_may_stand_in_any_order(scene):
    _, laws, _, weights, gradients = scene
    (law, *_) = (law for law in laws if law.kind == "vertex")
    members = tuple(replace(member, index=member.index.flip(0)) for member in law.interface.members)
    turned = replace(law, interface=replace(law.interface, members=members))
    panel = Gauge((turned,)).read(weights, gradients)
    close(panel.values, law.value(weights).flip(0))
    assert panel.residuals == pytest.approx([float(law.residual(weights, gradients))], abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("view", "axes"),
    [
        ((256, 384), (1,)),
        ((509, 97), (1,)),
        ((60, 64, 3, 3), (1,)),
        ((48, 40, 20), (2, 1)),
        ((6, 50), (1,)),
        ((5, 8), (1, 0)),
    ],
)
def test_sums_of_products_along_any_axes(view, axes, dtype):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(view, generator=generator).to(dtype) for _ in "xy")
    lines = math.prod(view[axis] for axis in axes)
    member = Member("w", view, axes, torch.arange(lines).reshape(-1, 1, 1), 1.0)
    (sums,) = Matrix((member,), Scratch()).products(x, y)
    expected = (x * y).double().movedim(axes, tuple(range(len(axes)))).reshape(lines, -1).sum(1)
    assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(sums.double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-3)


def test_products_of_two_shapes_lie_beside_each_other():
    scratch, ones = Scratch(), torch.ones(3, 4)
    first = scratch.product(ones, ones)
    assert scratch.product(2 * ones[0], ones[0]).tolist() == [2, 2, 2, 2]
    assert first.tolist() == ones.tolist()


def test_what_was_taken_before_a_step_is_told_with_what_is_seen_after_it(scene):
    _, laws, _, weights, gradients = scene
    gauge, moving = Gauge.sketch(laws), {name: weight.clone() for name, weight in weights.items()}
    taken = gauge.at(moving, gradients).taken
    for name, weight in moving.items():
        weight.sub_(gradients[name], alpha=0.01)
    dials = gauge.at(moving, before=taken)
    apart = gauge.read(weights, gradients), gauge.read(moving)
    for together, alone in zip((dials.before, dials.panel), apart, strict=True):
        np.testing.assert_array_equal(together.values, alone.values)
        np.testing.assert_array_equal(together.sizes, alone.sizes)
    assert dials.before.residuals == apart[0].residuals
    assert dials.panel.defects is None
    assert gauge.at(moving).before is None
