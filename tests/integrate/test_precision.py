"""Where float64 and float32 end: a network whose flow is known in 40 digits at any depth."""

import math

import mpmath
import pytest
import torch

import equipoise as eq
from equipoise.integrate.implicit.dual_problem import precision_floor

NORMS, INWARD, OUTWARD = (1.0, 3.0), (0.5, 0.7), (0.6, 0.4)
DEPTHS = {torch.float64: (1e4, 1e14, 1e17), torch.float32: (1e3, 1e6, 1e8)}
GAP = 8  # roundings between two margins: of each, one of either weight, one of its products, and one of the midpoint


def problem():
    """Each neuron is on for one of two orthogonal examples, on its kink for the other, and stays so."""
    model = eq.networks.mlp([2, 2, 1])
    with torch.no_grad():
        model.layer1.weight.copy_(torch.diag(torch.tensor(INWARD)))
        model.layer2.weight.copy_(torch.tensor([[OUTWARD[0], -OUTWARD[1]]]))
    return model, (torch.diag(torch.tensor(NORMS)).double(), torch.tensor([1.0, -1.0]).double())


def exact(start, square):
    """Margins and weights where `‖w‖²` is `square`, in 40 digits.

    `m = r a b`, `a² - b² = c` is constant and `dm = p r √(r²c² + 4m²) dτ` with `p ∝ e^-m`: the flow keeps the
    difference between the examples of `∫ e^t / (r √(r²c² + 4t²)) dt`, both taken from the start.
    """
    kept = [mpmath.mpf(a) ** 2 - mpmath.mpf(b) ** 2 for a, b in start]
    begun = [r * mpmath.mpf(a) * mpmath.mpf(b) for r, (a, b) in zip(NORMS, start, strict=True)]

    def log_integral(i, m):
        below = lambda x: mpmath.exp(-x) / mpmath.sqrt((NORMS[i] * kept[i]) ** 2 + 4 * (m - x) ** 2) / NORMS[i]  # noqa: E731
        return m + mpmath.log(mpmath.quad(below, mpmath.linspace(0, min(m - begun[i], 100), 5)))

    def total(i, m):
        return mpmath.sqrt(kept[i] ** 2 + 4 * (m / NORMS[i]) ** 2)

    slope, m, gap = sum(2 / mpmath.mpf(r) for r in NORMS), square / 4, mpmath.mpf(0)
    for _ in range(200):
        was, gap = gap, gap + log_integral(0, m) - log_integral(1, m + gap)
        sums = [total(0, m), total(1, m + gap)]
        m += (square - sum(sums)) / slope
        if abs(square - sum(sums)) < 1e-35 * square and abs(gap - was) < 1e-35:
            break
    (a0, b0), (a1, b1) = [(mpmath.sqrt((s + c) / 2), mpmath.sqrt((s - c) / 2)) for s, c in zip(sums, kept, strict=True)]
    return float(gap), [a0, 0, 0, a1, b0, -b1]


def compare(initial, weights):
    """Relative error of the weights, difference of the two margins, and the exact one."""
    first = [[float(v) for v in initial[name].flatten()] for name in ("layer1.weight", "layer2.weight")]
    start = [(first[0][0], first[1][0]), (first[0][3], -first[1][1])]
    found = [mpmath.mpf(float(v)) for tensor in weights.values() for v in tensor.flatten()]
    square = mpmath.fsum(v**2 for v in found)
    gap, right = exact(start, square)
    error = mpmath.sqrt(mpmath.fsum((x - y) ** 2 for x, y in zip(found, right, strict=True)) / square)
    return float(error), float(-NORMS[1] * found[3] * found[5] - NORMS[0] * found[0] * found[4]), gap


@pytest.mark.parametrize("dtype", DEPTHS)
def test_results_are_right_to_rounding_and_the_status_says_where_the_floor_is(dtype):
    points = [eq.LogLoss(-depth) for depth in DEPTHS[dtype]]
    epsilon, floor = torch.finfo(dtype).eps, precision_floor(dtype)
    stepper = eq.steppers.EntropicMidpoint(step_size=0.1)
    run = eq.flow(*problem(), until=points[-1], save_at=points[:-1], stepper=stepper, observe=[eq.Drift()], dtype=dtype)
    temperatures = run.table().query("quantity == 'temperature'")
    assert (temperatures[temperatures.log_loss > -floor / 2].value == 1).all()
    assert run.table().query("quantity == 'relative_drift'").value.max() < 4 * epsilon
    with mpmath.workdps(40):
        for depth, weights in zip(DEPTHS[dtype], [*run.saved.values(), run.final], strict=True):
            error, gap, right = compare(run.initial, weights)
            assert error < 4 * epsilon + 1e-5 / depth, depth
            raised = max(1.0, depth / floor) * right
            assert gap == pytest.approx(raised, rel=0.02, abs=GAP * depth * epsilon), depth
    assert run.status == "precision_floor"
    assert str(dtype).removeprefix("torch.") in run.reason
    assert f"margins up to {floor:.1e}" in run.reason


def test_above_the_floor_nothing_is_said():
    run = eq.flow(*problem(), until=eq.LogLoss(-1e14), stepper=eq.steppers.EntropicMidpoint(step_size=0.2), observe=[])
    assert run.status == "reached"
    assert run.reason is None


@pytest.mark.parametrize(
    ("dtype", "scale"), [pytest.param(torch.float32, 1e6, marks=pytest.mark.slow), (torch.float64, 1e74)]
)
def test_a_flow_ends_before_its_numbers_overflow(dtype, scale):
    data, network = eq.data.load("separable", n=6, d=4), eq.networks.mlp([4, 3, 2, 1], linear_tail=3, seed=0)
    separating = eq.flow(network, data, until=eq.LogLoss(-3.0), observe=[]).model
    with torch.no_grad():
        for parameter in separating.parameters():
            parameter.mul_(scale)
    stepper = eq.steppers.EntropicMidpoint(step_size=1.0)
    run = eq.flow(separating, data, until=eq.Steps(200), stepper=stepper, dtype=dtype, observe=[eq.Margin()])
    assert run.status == "overflow"
    assert "its products would be infinite" in run.reason
    assert run.steps > 1
    assert run.table().value.abs().max() < math.inf
