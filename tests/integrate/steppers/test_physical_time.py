"""`log_time` and the estimate of its error, against courses of time that are known in closed form."""

import math

import mpmath
import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.integrate.state import PhysicalTime
from equipoise.integrate.steppers.physical_time import time_of_step
from helpers.sampling import sampled

X, Y = torch.tensor([[1.0], [-1.0]]), [1, -1]  # two examples with one margin, that of x = 1
START = 0.5


def chain(depth, start=START):
    """`f(x) = w^depth x`, all weights alike."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(depth)))
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(start)
    return model


def exact_log_time(depth, log_loss, start=START):
    """`log t` at which `e^{-m}` is the loss: `dm/dt = depth m^(2 - 2/depth) e^{-m}`."""
    begun, margin = mpmath.mpf(start) ** depth, mpmath.mpf(-log_loss)
    if depth == 1:
        return float(mpmath.log(mpmath.exp(margin) - mpmath.exp(begun)))
    if depth == 2:
        return float(mpmath.log((mpmath.ei(margin) - mpmath.ei(begun)) / 2))
    way = [begun, *(margin - (margin - begun) * mpmath.mpf(4) ** -k for k in range(1, 12)), margin]
    power = 2 - mpmath.mpf(2) / depth
    return float(mpmath.log(mpmath.quad(lambda m: mpmath.exp(m) * m**-power / depth, way)))


CASES = [(depth, goal) for depth in (1, 2, 3) for goal in (-3, -30, -3000)]
SAMPLE = [(1, -3), (2, -3000), (3, -30)]


@pytest.mark.parametrize(("depth", "goal"), sampled(CASES, [case for case in CASES if case not in SAMPLE]))
def test_the_estimate_bounds_the_error_of_a_known_course(depth, goal):
    errors = []
    for size in (0.1, 0.025):
        stepper = eq.steppers.EntropicMidpoint(step_size=size)
        run = eq.flow(chain(depth), (X, Y), until=eq.LogLoss(goal), stepper=stepper, observe=[])
        true = abs(math.expm1(run.log_time - exact_log_time(depth, run.log_loss)))
        assert true <= run.time_error + 1e-11  # the goal is met to 1e-12 or so of a log-loss of thousands
        assert run.time_error < 0.03
        errors.append(run.time_error)
    assert depth == 1 or goal < -1000 or errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("goal", sampled([-3, -30], [-30]))
def test_the_estimate_bounds_the_error_through_kinks(goal):
    """Of a ReLU network, against the same flow in steps of a twentieth."""
    data = eq.data.load("separable", n=20, d=5)
    runs = [
        eq.flow(
            eq.networks.mlp([5, 6, 5, 1], linear_tail=2, seed=1),
            data,
            until=eq.LogLoss(goal),
            observe=[],
            stepper=eq.steppers.EntropicMidpoint(step_size=size),
        )
        for size in (0.05, 0.0025)
    ]
    true = abs(math.expm1(runs[0].log_time - runs[1].log_time))
    assert true <= runs[0].time_error + runs[1].time_error
    assert runs[1].time_error < 0.2 * runs[0].time_error < 0.01


@pytest.mark.parametrize(
    "stepper", [eq.steppers.ExplicitRK(rtol=1e-8), eq.steppers.EntropicGauss()], ids=["explicit", "gauss"]
)
def test_every_stepper_has_an_estimate(stepper):
    run = eq.flow(chain(2), (X, Y), until=eq.LogLoss(-3), stepper=stepper, observe=[])
    assert abs(math.expm1(run.log_time - exact_log_time(2, run.log_loss))) <= run.time_error + 1e-9
    assert run.time_error < 1e-3


def test_an_escape_from_a_saddle_has_an_estimate():
    """`dw/dt = w` where margins are as good as zero, for two layers: nearly all the time passes there."""
    start = 1e-5
    run = eq.flow(chain(2, start), (X, Y), until=eq.LogLoss(-3), observe=[])
    assert abs(math.expm1(run.log_time - exact_log_time(2, run.log_loss, start))) <= run.time_error
    assert run.time_error < 0.01


def test_the_time_of_gradient_descent_is_the_sum_of_its_rates():
    stepper = eq.steppers.GradientDescent([0.5, 0.25, 0.125])
    run = eq.flow(chain(2), (X, Y), until=eq.Steps(3), stepper=stepper, observe=[])
    assert math.exp(run.log_time) == pytest.approx(0.875)
    assert run.time_error == 0


def test_the_estimate_is_on_record_with_every_step_and_in_the_folder(tmp_path):
    run = eq.flow(chain(2), (X, Y), until=eq.LogLoss(-3), observe=[], out=tmp_path / "run")
    table = run.table()
    errors = table[table.quantity == "time_error"]
    assert len(errors) == run.steps
    assert errors.value.iloc[-1] == run.time_error == run.summary()["time_error"]
    assert eq.Run.load(tmp_path / "run", model=chain(2), data=(X, Y)).time_error == run.time_error
    goes_on = eq.resume(tmp_path / "run", model=chain(2), data=(X, Y), until=eq.LogLoss(-5))
    whole = eq.flow(chain(2), (X, Y), until=eq.LogLoss(-5), observe=[])
    assert goes_on.time_error == pytest.approx(whole.time_error, rel=0.2)


def test_a_step_between_two_rates_lies_within_the_estimate():
    """`R` falls as `e^{-c ℓ²/2}` when the speed is `c ℓ`: `t = ∫ e^{c ℓ²/2}/(c ℓ) dℓ`."""
    for c, low, high in ((3.0, 1.0, 1.2), (200.0, 1.0, 1.3), (0.1, 0.5, 0.6)):
        found = time_of_step((-c * low**2 / 2, -c * high**2 / 2), high - low, (c * low, c * (low + high) / 2, c * high))
        exact = mpmath.quad(lambda x, c=c: mpmath.exp(c * x**2 / 2) / (c * x), mpmath.linspace(low, high, 20))
        assert abs(math.expm1(found.log - float(mpmath.log(exact)))) <= found.relative_error < 0.05


def test_times_add_up():
    total = PhysicalTime().later(PhysicalTime(math.log(2), math.log(0.1))).later(PhysicalTime(math.log(3)))
    assert math.exp(total.log) == pytest.approx(5)
    assert total.relative_error == pytest.approx(0.02)
