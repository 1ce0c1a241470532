"""Discrete steppers: every change of every law is predicted (T2.2)."""

import math

import pytest
import torch

import equipoise as eq
from equipoise.errors import InputError
from equipoise.integrate.loop import run_flow
from equipoise.integrate.manifest import Origin

NETWORK = {"widths": [5, 8, 8, 1], "linear_tail": 2, "seed": 0}


def descent(stepper, steps=40):
    data = eq.data.load("separable", n=30, d=5)
    return eq.flow(eq.networks.mlp(**NETWORK), data, until=eq.Steps(steps), stepper=stepper)


def largest_stable_rate(low=1.0, high=16.0):
    """By bisection: the largest rate at which the loss has not risen above its start in 60 steps."""
    for _ in range(4):
        middle = (low * high) ** 0.5
        run = eq.flow(
            eq.networks.mlp(**NETWORK),
            eq.data.load("separable", n=30, d=5),
            until=eq.Steps(60),
            stepper=eq.steppers.GradientDescent(middle),
            observe=[],
        )
        falls = run.status == "reached" and run.log_loss < 0.1
        low, high = (middle, high) if falls else (low, middle)
    return low


def mismatches(run):
    """Per step over ‖w‖², and of the whole run over what was measured."""
    table = run.table()
    rows = table[table.observer == "defect"]
    last = rows[rows.step == run.steps]
    return rows[rows.quantity == "mismatch"].value.max(), last[last.quantity == "total_mismatch"].value.max()


@pytest.mark.parametrize(
    "rate",
    [*(pytest.param(rate, marks=pytest.mark.slow) for rate in (0.05, 0.2, 0.8)), "largest stable"],
)
def test_the_drift_of_every_law_is_predicted(rate):
    rate = largest_stable_rate() if rate == "largest stable" else rate
    run = descent(eq.steppers.GradientDescent(rate))
    per_step, total = mismatches(run)
    table = run.table()
    assert set(table[table.observer == "defect"].place) == {
        law.name for law in eq.invariances(run.model, run.data.X[:2])
    }
    assert per_step < 1e-15
    assert total < 1e-12
    assert table[table.quantity == "measured_change"].value.max() > 1e-9


@pytest.mark.parametrize("schedule", ["loss_scaled", "normalised"])
def test_schedules_are_predicted_too(schedule):
    per_step, total = mismatches(descent(eq.steppers.GradientDescent(0.02, schedule)))
    assert per_step < 1e-15
    assert total < 1e-11


def test_mini_batches_and_weight_decay_are_predicted():
    run = descent(eq.steppers.SGD(0.2, batch_size=7, weight_decay=0.05, seed=3))
    per_step, total = mismatches(run)
    assert per_step < 1e-15
    assert total < 1e-12


def test_batches_visit_every_example_once_an_epoch():
    stepper = eq.steppers.SGD(batch_size=5, seed=1)
    epochs = [torch.cat([stepper.batch(20, 4 * epoch + k) for k in range(4)]) for epoch in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(20)) for epoch in epochs)
    assert not torch.equal(*epochs)


def test_descent_is_the_plain_one_of_torch():
    run = descent(eq.steppers.GradientDescent(0.1), steps=5)
    model = eq.networks.mlp(**NETWORK)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        torch.exp(-run.data.y * model(run.data.X).squeeze(1)).mean().backward()
        optimizer.step()
    assert all(torch.allclose(a, run.final[name], rtol=1e-12) for name, a in model.named_parameters())


def test_a_killed_descent_resumes_with_its_stepper(tmp_path):
    folder = tmp_path / "run"
    data, stepper = eq.data.load("separable", n=30, d=5), eq.steppers.SGD(0.1, batch_size=7, seed=2)
    whole = eq.flow(eq.networks.mlp(**NETWORK), data, until=eq.Steps(9), stepper=stepper, observe=[])
    half = run_flow(
        eq.networks.mlp(**NETWORK),
        data,
        until=eq.Steps(9),
        stepper=stepper,
        observe=[],
        out=folder,
        origin=Origin(NETWORK, seed=0),
        max_steps=4,
    )
    assert half.status == "step_limit"
    manifest = (folder / "manifest.json").read_text()
    assert '"name": "SGD"' in manifest
    again = eq.resume(folder, max_steps=100)
    assert again.steps == 9
    assert all(torch.equal(again.final[name], whole.final[name]) for name in whole.final)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eq.steppers.GradientDescent(0.1, "cosine"), "a schedule among constant, loss_scaled, normalised"),
        (lambda: eq.steppers.GradientDescent(-1.0), "the learning rate lr to be a finite number above 0; found -1.0"),
        (lambda: eq.steppers.SGD(batch_size=0), "batch_size to be a whole number, at least 1"),
        (lambda: eq.steppers.ExplicitRK(method="Euler"), "method RK23 or RK45"),
        (lambda: eq.steppers.EntropicMidpoint(order=3), "order 1 or 2"),
        (lambda: eq.steppers.EntropicMidpoint(rtol=float("nan")), "rtol to be a finite number above 0; found nan"),
        (lambda: eq.steppers.ExplicitRK(step_size=float("inf")), "step_size to be a finite number"),
        (lambda: eq.steppers.SGD(weight_decay=float("nan")), "weight_decay to be a finite number"),
        (lambda: eq.steppers.SGD(seed=0.5), "expected seed= to be an int; found 0.5"),
        (lambda: eq.steppers.EntropicGauss(step_size=2.0), "step_size to be a finite number above 0 and at most 1"),
        (
            lambda: descent(eq.steppers.EntropicGauss(), steps=1),
            r"a network without kinks.*found 1 layers with ReLU.*EntropicMidpoint\(\)",
        ),
    ],
)
def test_senseless_steppers_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_schedule_of_ones_own_is_followed_step_by_step():
    rates = [0.1, 0.05, 0.2]
    runs = [descent(eq.steppers.GradientDescent(lr), 3) for lr in (rates, lambda step: rates[step])]
    model = eq.networks.mlp(**NETWORK)
    for rate in rates:
        loss = torch.exp(-runs[0].data.y * model(runs[0].data.X).squeeze(1)).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(model.parameters(), gradients, strict=True):
                weight -= rate * gradient
    for run in runs:
        assert all(torch.allclose(a, run.final[name], rtol=1e-12) for name, a in model.named_parameters())


def test_a_schedule_that_ends_too_soon_is_refused():
    with pytest.raises(
        InputError, match=r"a learning rate for step 2; found a sequence of 2; pass until=eq.Steps\(2\)"
    ):
        descent(eq.steppers.GradientDescent([0.1, 0.1]), 3)


def test_a_descent_with_its_own_schedule_resumes(tmp_path):
    stepper, data = eq.steppers.GradientDescent([0.1, 0.2, 0.1, 0.05]), eq.data.load("separable", n=30, d=5)
    known = {"out": tmp_path / "run", "origin": Origin(NETWORK, seed=0)}
    run_flow(eq.networks.mlp(**NETWORK), data, until=eq.Steps(4), stepper=stepper, observe=[], max_steps=2, **known)
    again, whole = eq.resume(tmp_path / "run", max_steps=10), descent(stepper, 4)
    assert all(torch.equal(again.final[name], whole.final[name]) for name in whole.final)


def test_a_step_size_that_is_appropriate_shows_in_the_decrease():
    """On a quadratic of curvature λ, `(R - R') / (η ‖∇R‖²) = 1 - ηλ/2`: the descent lemma holds with equality."""
    X, y = torch.tensor([[1.0], [-1.0]]).double(), [1, -1]
    for lr in (0.1, 0.9, 1.9, 2.5):
        model = eq.networks.mlp([1, 1])
        run = eq.flow(
            model, (X, y), "squared", eq.Steps(1), stepper=eq.steppers.GradientDescent(lr), observe=[], save_at=[]
        )
        assert run.last("flow", "decrease") == pytest.approx(1 - lr / 2, rel=1e-9)
    small, large = (descent(eq.steppers.GradientDescent(lr), 20) for lr in (0.001, 20.0))
    assert small.table().query("quantity == 'decrease'").value.min() > 0.9
    assert large.table().query("quantity == 'decrease'").value.min() < 0.5


def on_a_kink():
    """One neuron whose pre-activation is exactly zero for the second example."""
    model = eq.networks.mlp([2, 1, 1])
    with torch.no_grad():
        model.layer1.weight.copy_(torch.tensor([[1.0, 0.0]]))
        model.layer2.weight.fill_(1.0)
    return model, (torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), [1, -1])


@pytest.mark.parametrize(("chosen", "slope"), [(0, 0.0), (1.0, 1.0), (0.5, 0.5), ("minimum_norm", 0.0)])
def test_the_slope_at_a_kink_is_the_one_asked_for(chosen, slope):
    model, data = on_a_kink()
    run = eq.flow(model, data, until=eq.Steps(1), stepper=eq.steppers.GradientDescent(0.1, at_kinks=chosen), observe=[])
    assert float(run.final["layer1.weight"][0, 1]) == pytest.approx(-0.1 * slope * 0.5, abs=1e-15)


@pytest.mark.parametrize("pull", [-1.0, -0.1, 0.2])
def test_the_least_norm_is_that_of_all_selections(pull):
    """What one example pulls along the second input, the one on its kink gives back as far as slopes in [0, 1] may."""
    model = eq.networks.mlp([2, 1, 1])
    with torch.no_grad():
        model.layer1.weight.copy_(torch.tensor([[1.0, 0.0]]))
        model.layer2.weight.fill_(1.0)
    X = torch.tensor([[1.0, 0.5], [0.0, pull]]).double()
    descended = eq.steppers.GradientDescent(0.1, at_kinks="minimum_norm")
    run = eq.flow(model, (X, [1, -1]), "exponential", eq.Steps(1), stepper=descended, observe=[], save_at=[])
    live, kink = math.exp(-1) / 2 * 0.5, -pull / 2  # on the second input, the latter times its slope
    slope = min(1.0, max(0.0, -live / kink))
    assert float(run.final["layer1.weight"][0, 1]) == pytest.approx(0.1 * (live + slope * kink), abs=1e-14)


def test_the_least_norm_of_many_selections_beats_every_other():
    """Pairs that nearly cancel: a long valley, along which one slope at a time would take for ever."""
    model = eq.networks.mlp([3, 1, 1])
    with torch.no_grad():
        model.layer1.weight.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
        model.layer2.weight.fill_(1.0)
    X = torch.tensor([[1.0, 0, 0], [0, 1, 0.2], [0, 2, -0.1]]).double()
    moved = {}
    for chosen in (0.0, 0.25, 0.5, 1.0, "minimum_norm"):
        stepper = eq.steppers.GradientDescent(1e-3, at_kinks=chosen)
        run = eq.flow(model, (X, [1, 1, -1]), until=eq.Steps(1), stepper=stepper, observe=[])
        moved[chosen] = run.last("flow", "step_size")
    assert moved.pop("minimum_norm") <= min(moved.values()) * (1 + 1e-12)


@pytest.mark.parametrize("chosen", [-0.1, 1.5, float("nan"), "left"])
def test_selections_that_make_no_sense_are_refused(chosen):
    with pytest.raises(InputError, match="at_kinks"):
        eq.steppers.GradientDescent(0.1, at_kinks=chosen)
