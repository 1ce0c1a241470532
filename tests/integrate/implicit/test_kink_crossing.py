"""Slopes that answer their own effect: the equation they solve, and the sliding they settle."""

import pytest
import torch

from equipoise.graph.piecewise import Largest, secant_slope
from equipoise.integrate.implicit.kink_crossing import KinkPath, implicit_slope, implicit_slopes

NEGATIVE = [0.0, 0.3, -1.0]


def pairs(seed=0, n=2000):
    generator = torch.Generator().manual_seed(seed)
    before, after = torch.randn(2, n, generator=generator, dtype=torch.float64)
    before[::5] *= 1e-9  # on the kink, but for rounding
    before[::7] = 0.0
    stiffness = torch.rand(n, generator=generator, dtype=torch.float64) * 10 ** torch.linspace(-6, 4, n).double()
    return before, after, stiffness


@pytest.mark.parametrize("negative", NEGATIVE)
def test_a_secant_slope_stays_whatever_its_stiffness(negative):
    before, after, stiffness = pairs()
    secant = secant_slope(before, after, negative)
    assert torch.allclose(implicit_slope(before, after, secant, stiffness, negative), secant, rtol=0, atol=1e-9)


@pytest.mark.parametrize("negative", NEGATIVE)
def test_the_slope_is_the_secant_slope_of_where_it_leads(negative):
    before, after, stiffness = pairs(1)
    present = negative + (1 - negative) * torch.rand(len(before), dtype=torch.float64)
    slope = implicit_slope(before, after, present, stiffness, negative)
    led = after - stiffness * (slope - present)
    # A pair that slides ends on its kink, where the secant slope is any between the sides: compare the chord instead.
    chord = slope * (led - before)
    image = [torch.where(z > 0, z, negative * z) for z in (before, led)]
    assert torch.allclose(chord, image[1] - image[0], rtol=0, atol=1e-9 * float(1 + stiffness.max()))
    assert float(slope.min()) >= min(negative, 1)
    assert float(slope.max()) <= max(negative, 1)


def test_a_pair_that_slides_settles_where_plain_iteration_flips_for_ever():
    """`z₁ = 0.7 - α`: on, it is pushed down; off, it is let up; it slides at `α = 0.7`."""
    before, plain, settling = torch.zeros(1).double(), torch.ones(1).double(), torch.ones(1).double()
    flips = set()
    for _ in range(20):
        plain = secant_slope(before, 0.7 - plain, 0.0)
        flips.add(float(plain))
        settling = implicit_slope(before, 0.7 - settling, settling, torch.full_like(settling, 1.3), 0.0)
    assert flips == {0.0, 1.0}
    assert abs(float(settling) - 0.7) < 1e-9


def test_the_secant_weights_of_a_maximum_stay_whatever_their_stiffness():
    """Windows of four, of several channels; those that keep their maximum, and those that change it."""
    generator = torch.Generator().manual_seed(2)
    kink = Largest((2,))
    before, after = torch.randn(2, 40, 3, 4, generator=generator, dtype=torch.float64)
    rates = after - before
    secant = kink.secant(before, after)
    stiffness = torch.rand(40, 3, generator=generator, dtype=torch.float64)
    found = implicit_slopes(kink, KinkPath(before, after, rates, rates), secant, stiffness)
    assert torch.allclose(found, secant, rtol=0, atol=1e-9)
    assert torch.allclose((found * (after - before)).sum(-1), after.amax(-1) - before.amax(-1), rtol=0, atol=1e-9)
