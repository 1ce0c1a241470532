"""All residuals in one sweep, beside their twin: one law after the other."""

import pytest
import torch

from equipoise.errors import InputError
from equipoise.laws import invariances, sweep
from equipoise.laws.law import named
from helpers.cases import case


def random_like(parameters, seed):
    """Directions that obey no law."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in parameters.items()}


@pytest.mark.parametrize("name", ["linear tail", "depthwise, transposed", "gpt, tied", "llama", "unet", "resnet"])
def test_equals_the_residual_of_each_law(name, monkeypatch):
    model = case(name).model()
    laws = invariances(model, case(name).inputs())
    weights = named(model)
    wrong = random_like(weights, seed=3)
    for strip in (8, 40, 1 << 18):  # rows alone, heads together, whole parameters
        monkeypatch.setattr(sweep, "STRIP", strip)
        found = laws[:].residual(weights, wrong)
        for law in laws:
            torch.testing.assert_close(found[law.name], law.residual(weights, wrong), rtol=1e-12, atol=1e-15)


def test_strips_cut_every_kind_of_member(monkeypatch):
    monkeypatch.setattr(sweep, "STRIP", 8)
    laws = invariances(case("gpt").model(), case("gpt").inputs())
    cut = {share.law for strip in sweep.plan(laws) if strip.rows != slice(None) for share in strip.shares}
    kinds = {laws[law].kind for law in cut}
    assert {"vertex", "shift", "scalar"} <= kinds


def test_a_sketch_is_unbiased_in_the_square(monkeypatch):
    monkeypatch.setattr(sweep, "STRIP", 8)
    model = case("linear tail").model()
    laws = invariances(model, case("linear tail").inputs())
    weights = named(model)
    wrong = random_like(weights, seed=5)
    exact = laws.residual(weights, wrong)
    sketches = [laws.residual(weights, wrong, sketch=2, seed=seed) for seed in range(400)]
    for law in laws:
        squares = torch.stack([found[law.name] for found in sketches]).square()
        spread = squares.std() / 400**0.5
        assert abs(squares.mean() - exact[law.name].square()) <= 4 * spread + 1e-12
        assert (spread > 1e-12) == (law.kind == "linear")


def test_a_sketch_of_a_right_gradient_stays_at_rounding():
    model, inputs = case("gpt").model(), case("gpt").inputs()
    laws = invariances(model, inputs)
    model(*inputs).exp().mean().backward()
    found = laws.residual(model, sketch=1)
    assert max(found[law.name] for law in laws if law.exact) < 1e-15


@pytest.mark.parametrize("sketch", [0, -1])
def test_a_sketch_needs_a_probe(sketch):
    model, inputs = case("gpt").model(), case("gpt").inputs()
    laws = invariances(model, inputs)
    with pytest.raises(InputError, match="found"):
        laws.residual(named(model), named(model), sketch=sketch)


def test_half_precision_is_summed_in_single():
    model = case("gpt").model().bfloat16()
    laws = invariances(model, case("gpt").inputs())
    weights = named(model)
    wrong = random_like(weights, seed=3)
    double = {name: value.double() for name, value in weights.items()}
    exact = laws.residual(double, {name: value.double() for name, value in wrong.items()})
    for name, value in laws.residual(weights, wrong).items():
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-5, atol=1e-9)
