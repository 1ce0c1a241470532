"""Laws evaluated by a plan, against the laws themselves."""

import contextlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.errors import InputError
from equipoise.laws import LawPlan, invariances
from equipoise.laws.evaluate import moments, sketched
from equipoise.laws.law import named
from equipoise.laws.predict import predict_drift
from helpers.cases import case
from helpers.sampling import sampled

PLANNED = ("linear tail", "depthwise, transposed", "gpt, tied", "llama", "unet", "resnet")


def close(flat, value):
    """Numbers of readings against a value of a law."""
    torch.testing.assert_close(torch.from_numpy(flat), value.reshape(-1))


def random_like(parameters, seed):
    """Directions that obey no law."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in parameters.items()}


@pytest.fixture(scope="module")
def trained():
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


@pytest.mark.parametrize("name", sampled(PLANNED, ["llama", "unet", "resnet"]))
def test_a_plan_equals_the_laws_themselves(name, monkeypatch, derived):
    model, laws = case(name).model(), derived(name)
    weights = named(model)
    wrong, values = random_like(weights, seed=3), laws.value(weights)
    for chunk in (8, 40, 1 << 18):  # single rows, some rows, whole parameters
        monkeypatch.setattr(moments, "CHUNK", chunk)
        found, readings = laws.residual(weights, wrong), LawPlan(laws)(weights, wrong)
        for law, own, seen in zip(laws, readings.layout.places, readings.residuals, strict=True):
            torch.testing.assert_close(found[law.name], law.residual(weights, wrong), rtol=1e-12, atol=1e-15)
            assert seen == pytest.approx(float(found[law.name]), rel=1e-12, abs=1e-15)
            torch.testing.assert_close(values[law.name], law.value(weights))
            close(readings.values[own], law.value(weights))
            close(readings.of_gradients[own], law.value(wrong))


def test_readings_predict_what_the_laws_predict(trained):
    model, laws, optimizer, weights, gradients = trained
    predicted = predict_drift(laws, model, optimizer, {})
    readings = LawPlan(laws)(weights, gradients)
    exact = [predicted[law.name].exact for law in laws]
    changes = readings.predicted([(0.01, 0.1) if known else None for known in exact])
    for i, (law, own) in enumerate(zip(laws, readings.layout.places, strict=True)):
        assert readings.scales[i] == pytest.approx(float(law.scale(weights, gradients)))
        if exact[i]:
            close(changes[own], predicted[law.name].change)
        else:
            assert np.isnan(changes[own]).all()
    with pytest.raises(InputError, match="expected readings with gradients"):
        LawPlan(laws)(weights).predicted([None] * len(laws))


def test_a_sketch_is_a_congruence_of_the_whole_matrix(trained):
    _, laws, _, weights, gradients = trained
    readings = LawPlan(laws, sketch=8)(weights, gradients)
    for law, seen, own, residual in zip(laws, readings.laws, readings.layout.places, readings.residuals, strict=True):
        assert sketched(seen) == (law.kind == "linear" and law.interface.width > 16)
        if sketched(seen):
            through = seen.interface.members[0].directions
            close(readings.values[own], through.T @ law.value(weights) @ through)
            assert residual < 1e-14


def test_a_sketch_sees_a_wrong_gradient_and_the_size_of_a_drift(trained):
    _, laws, _, weights, gradients = trained
    wrong = gradients | {"2.weight": 1.01 * gradients["2.weight"]}
    readings = LawPlan(laws, sketch=8)(weights, wrong)
    ((number, residual),) = (
        (number, size) for number, size in enumerate(readings.residuals) if sketched(readings.laws[number])
    )
    assert residual > 1e-4
    torch.manual_seed(1)
    moved = weights | {"2.weight": weights["2.weight"] + 0.1 * torch.randn(40, 6).double()}
    law = laws[number]
    true = float((law.value(moved) - law.value(weights)).norm())
    seen = []
    for seed in range(40):
        plan = LawPlan([law], sketch=8, seed=seed)
        before, after = plan(weights), plan(moved)
        seen.append(plan.layout.norms(after.values - before.values)[0] ** 2)
    assert sum(seen) / len(seen) == pytest.approx(true**2, rel=0.15)  # unbiased in the square


def test_a_shift_whose_summands_have_signs_is_no_sketch():
    class Mixed(nn.Module):
        def forward(self, x):
            return torch.cat([a := x.tanh(), b := x.sin(), a - b], -1)

    model = nn.Sequential(nn.Linear(3, 4), Mixed(), nn.Linear(12, 5), nn.GELU(), nn.Linear(5, 2)).double()
    laws = invariances(model, torch.ones(5, 3).double())
    (law,) = (law for law in laws if law.interface.members[0].directions is not None)
    readings = LawPlan(laws, sketch=2)(named(model))
    number = [each.name for each in laws].index(law.name)
    assert not sketched(readings.laws[number])
    norm = readings.layout.norms(readings.values)[number]
    assert norm == pytest.approx(float(law.value(model).norm()), rel=1e-14)


def test_a_sketch_of_residuals_is_unbiased_in_the_square(derived):
    laws, weights = derived("linear tail"), named(case("linear tail").model())
    wrong = random_like(weights, seed=5)
    exact = laws.residual(weights, wrong)
    sketches = [laws.residual(weights, wrong, sketch=2, seed=seed) for seed in range(100)]
    for law in laws:
        squares = torch.stack([found[law.name] for found in sketches]).square()
        spread = squares.std() / 100**0.5
        assert abs(squares.mean() - exact[law.name].square()) <= 4 * spread + 1e-12
        assert (spread > 1e-12) == (law.kind == "linear")


def test_a_sketch_of_a_right_gradient_stays_at_rounding(derived):
    model, inputs, laws = case("gpt").model(), case("gpt").inputs(), derived("gpt")
    model(*inputs).exp().mean().backward()
    found = laws.residual(model, sketch=1)
    assert max(found[law.name] for law in laws if law.exact) < 1e-15
    for sketch in (0, -1):
        with pytest.raises(InputError, match="found sketch="):
            laws.residual(model, sketch=sketch)


def test_half_precision_is_summed_in_single(derived):
    model, laws = case("gpt").model().bfloat16(), derived("gpt")
    weights = named(model)
    wrong = random_like(weights, seed=3)
    double = {name: value.double() for name, value in weights.items()}
    exact = laws.residual(double, {name: value.double() for name, value in wrong.items()})
    readings = LawPlan(laws)(weights, wrong)
    for (name, value), seen in zip(laws.residual(weights, wrong).items(), readings.residuals, strict=True):
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-5, atol=1e-9)
        assert seen == pytest.approx(float(exact[name]), rel=1e-5, abs=1e-9)


class Half:
    """One of two processes: it has the first rows or the last, and zeros for the rest; `reduce` sums over both."""

    def __init__(self, first, reduce):
        self.first, self.reduce = first, reduce

    def summands(self, tensors):
        def cut(tensor):
            mask = torch.zeros(len(tensor), *[1] * (tensor.ndim - 1), dtype=tensor.dtype)
            mask[: len(tensor) // 2] = 1
            return tensor * (mask if self.first else 1 - mask)

        return {name: cut(tensor) for name, tensor in tensors.items()}

    def together(self):
        return contextlib.nullcontext()


def test_shards_add_up_to_the_whole(trained):
    _, laws, _, weights, gradients = trained
    sent = []
    for first in (True, False):  # what each would send ...
        LawPlan(laws, 8, processes=Half(first, lambda each: sent.append(each) or each))(weights, gradients)
    (one,), (other,) = sent[:1], sent[1:]
    total = [a + b for a, b in zip(one, other, strict=True)]  # ... and what each would get back
    summed = LawPlan(laws, 8, processes=Half(True, lambda each: total))(weights, gradients)
    expected = LawPlan(laws, 8)(weights, gradients)
    close(summed.values, torch.from_numpy(expected.values))
    assert summed.residuals == pytest.approx(expected.residuals, abs=1e-14)
    assert summed.scales == pytest.approx(expected.scales)


def test_units_may_stand_in_any_order(trained):
    _, laws, _, weights, gradients = trained
    (law, *_) = (law for law in laws if law.kind == "vertex")
    members = tuple(replace(member, index=member.index.flip(0)) for member in law.interface.members)
    turned = replace(law, interface=replace(law.interface, members=members))
    readings = LawPlan((turned,))(weights, gradients)
    close(readings.values, law.value(weights).flip(0))
    assert readings.residuals == pytest.approx([float(law.residual(weights, gradients))], abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("view", "axes"), [((509, 97), (1,)), ((60, 8, 3, 3), (1,)), ((48, 10, 9), (2, 1)), ((5, 8), (1, 0))]
)
@pytest.mark.parametrize("chunk", [100, 1 << 18])
def test_sums_of_products_along_any_axes(view, axes, dtype, chunk, monkeypatch):
    monkeypatch.setattr(moments, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(view, generator=generator).to(dtype) for _ in "xy")
    lines = math.prod(view[axis] for axis in axes)
    member = moments.Member("w", view, axes, torch.arange(lines).reshape(-1, 1, 1), 1.0)
    (sums,) = moments.Workspace().sums(x, y, [member])
    expected = (x.double() * y.double()).movedim(axes, tuple(range(len(axes)))).reshape(lines, -1).sum(1)
    assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(sums.double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-3)


def test_readings_before_a_step_are_kept_beside_those_after_it(trained):
    _, laws, _, weights, gradients = trained
    plan, moving = LawPlan(laws, sketch=8), {name: weight.clone() for name, weight in weights.items()}
    before = plan(moving, gradients)
    for name, weight in moving.items():
        weight.sub_(gradients[name], alpha=0.01)
    after = plan(moving, before=before)
    assert after.at_gradient is before
    assert before.residuals == plan(weights, gradients).residuals
    np.testing.assert_array_equal(before.values, plan(weights).values)
    assert after.identities is None
    assert plan(moving).at_gradient is None
