import math

import mpmath
import pytest
import torch

from equipoise.errors import InputError
from equipoise.integrate.losses import LOSSES, log_risk, named_loss

MARGINS = [-700.0, -30.0, -1.0, 0.0, 1.0, 29.9, 30.1, 36.0, 700.0, 1e12]


@pytest.mark.parametrize("name", LOSSES)
def test_potential_and_slope_agree_with_high_precision(name):
    loss, margins = named_loss(name), torch.tensor(MARGINS, dtype=torch.float64)
    with mpmath.workdps(60):
        for margin, potential, slope in zip(
            MARGINS, loss.potential(margins).tolist(), loss.slope(margins).tolist(), strict=True
        ):
            tail = mpmath.exp(-mpmath.mpf(margin)) if margin < 1e5 else mpmath.mpf(0)
            if name == "exponential" or tail == 0:
                exact, exact_slope = mpmath.mpf(margin), mpmath.mpf(1)
            else:
                value = mpmath.log1p(tail)
                exact, exact_slope = -mpmath.log(value), tail / (1 + tail) / value
            assert potential == pytest.approx(float(exact), rel=1e-13)
            assert slope == pytest.approx(float(exact_slope), rel=1e-13)


def test_log_risk_needs_no_risk():
    potential = torch.tensor([1e12, 1e12 + 1.0], dtype=torch.float64)
    assert log_risk(potential) == pytest.approx(-1e12 + math.log((1 + math.exp(-1)) / 2), rel=1e-15)


def test_unknown_loss_is_named():
    with pytest.raises(InputError, match="a loss among exponential, logistic; found 'hinge'"):
        named_loss("hinge")
