"""Discrete steppers: every change of every law is predicted (T2.2)."""

import pytest
import torch

import equipoise as eq
from equipoise.errors import InputError

NETWORK = {"widths": [5, 8, 8, 1], "linear_tail": 2, "seed": 0}


def descent(stepper, steps=100):
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


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.8, "largest stable"])
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
    arguments = {"network": NETWORK, "seed": 0}
    data, stepper = eq.data.load("separable", n=30, d=5), eq.steppers.SGD(0.1, batch_size=7, seed=2)
    whole = eq.flow(eq.networks.mlp(**NETWORK), data, until=eq.Steps(9), stepper=stepper, observe=[])
    half = eq.flow(
        eq.networks.mlp(**NETWORK),
        data,
        until=eq.Steps(9),
        stepper=stepper,
        observe=[],
        out=folder,
        arguments=arguments,
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
        (lambda: eq.steppers.GradientDescent(-1.0), "a positive finite learning rate; found lr=-1.0"),
        (lambda: eq.steppers.SGD(batch_size=0), "a batch size of at least 1"),
        (lambda: eq.steppers.ExplicitRK(method="Euler"), "method RK23 or RK45"),
        (lambda: eq.steppers.EntropicMidpoint(order=3), "order 1 or 2"),
        (lambda: eq.steppers.EntropicGauss(step_size=2.0), "step_size above smallest, at most 1"),
        (
            lambda: descent(eq.steppers.EntropicGauss(), steps=1),
            r"a network without kinks.*found 1 layers with ReLU.*EntropicMidpoint\(\)",
        ),
    ],
)
def test_senseless_steppers_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
