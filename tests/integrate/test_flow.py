import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import equipoise as eq
from equipoise.errors import InputError
from equipoise.integrate.loop import run_flow
from equipoise.integrate.manifest import Origin
from equipoise.store import Store

SMALL = {"widths": [5, 6, 6, 1], "linear_tail": 2, "bias": False, "init": "fan_in", "seed": 0}

FLOW = """
import json, sys, torch
torch.set_num_threads(1)
import equipoise as eq
from equipoise.integrate import recorder
from equipoise.integrate.loop import run_flow
from equipoise.integrate.manifest import Origin
recorder.CHECKPOINT_SECONDS = 0.0
network = json.loads(sys.argv[2])
run_flow(eq.networks.mlp(**network), eq.data.load("separable", n=30, d=5), until=eq.LogLoss(-1e3), out=sys.argv[1],
         save_at=[eq.Steps(6), eq.LogLoss(-500 / 3)], origin=Origin(network, 0))
"""


def small_flow(**options):
    data = eq.data.load("separable", n=30, d=5)
    return run_flow(eq.networks.mlp(**SMALL), data, origin=Origin(SMALL, seed=0), **options)


def test_the_callers_model_and_data_never_change():
    model, data = eq.networks.mlp(**SMALL), eq.data.load("separable", n=30, d=5)
    before = [tensor.clone() for tensor in (*model.parameters(), *data)]
    run = eq.flow(model, data, until=eq.Steps(5))
    assert all(torch.equal(a, b) for a, b in zip(before, (*model.parameters(), *data), strict=True))
    assert not torch.equal(run.model.layer1.weight, model.layer1.weight)


def test_a_run_tells_its_figures():
    run = small_flow(until=eq.LogLoss(-1e3))
    summary, table = run.summary(), run.table()
    assert run.status == "reached"
    assert run.log_loss <= -1e3
    assert max(summary["laws"].values()) < 1e-14
    assert repr(run).startswith(f"Run(status='reached', log_loss={run.log_loss:.6g}, ")
    assert len(repr(run)) < 200
    last = table[table.step == run.steps]
    assert set(last.observer) == {"spectrum", "alignment", "drift", "activity", "signs", "margin", "flow"}
    residual = last[(last.quantity == "rank_one_residual") & (last.place == "layer2.weight")].value.item()
    values = torch.linalg.svdvals(run.final["layer2.weight"])
    assert residual == pytest.approx(float((values[1:] ** 2).sum() / (values**2).sum()), rel=1e-9)


@pytest.mark.parametrize(("goal", "reached"), [(eq.Steps(3), 3), (eq.Growth(0.05), None)])
def test_goals(goal, reached):
    run = small_flow(until=goal)
    assert run.status == "reached"
    assert run.steps == reached if reached else run.growth >= 0.05


def test_no_observers_means_none():
    assert set(small_flow(until=eq.Steps(2), observe=[]).table().observer) == {"flow"}


def test_a_pair_on_the_lower_side_of_a_leaky_kink_does_not_slide():
    """Its slope is 0.3 for ever; only what lies strictly between 0.3 and 1 slides."""
    torch.manual_seed(0)
    leaky = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.LeakyReLU(0.3), torch.nn.Linear(6, 1))
    run = eq.flow(leaky, eq.data.load("separable", n=30, d=5), until=eq.Steps(30))
    table = run.table()
    last = table[(table.step == 30) & (table.quantity == "sliding_pairs")]
    off = 180 - int((run.model[0](run.data.X) > 0).sum())
    assert off > 20
    assert last.value.item() < off / 2


def test_step_limit_says_what_to_do():
    run = small_flow(until=eq.LogLoss(-1e9), max_steps=2)
    assert run.status == "step_limit"
    assert "raise max_steps" in str(run.status)


def test_one_input_with_both_labels_is_proved_hopeless():
    inputs = torch.randn(6, 5).double()
    inputs[4] = inputs[1]
    labels = torch.tensor([1.0, 1, -1, 1, -1, 1]).double()
    run = eq.flow(eq.networks.mlp(**SMALL), (inputs, labels), until=eq.LogLoss(-1e6))
    assert run.status == "not_separable"
    assert run.steps == 0


def test_a_linear_network_on_exclusive_or_is_proved_hopeless():
    inputs = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]).double()
    labels = torch.tensor([-1.0, 1, 1, -1]).double()
    linear = eq.networks.mlp([2, 4, 1], linear_tail=2)
    assert eq.flow(linear, (inputs, labels), until=eq.LogLoss(-1e6)).status == "not_separable"


def test_a_run_killed_at_any_instant_ends_with_the_same_numbers(tmp_path):
    """SIGKILL, resume, SIGKILL, …: the same weights and records, bit for bit, as the uninterrupted run."""
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", FLOW, str(killed), json.dumps(SMALL)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not (killed / "records.sqlite").exists() or not rows(killed):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "result.json").exists()
    eq.resume(killed)
    small_flow(until=eq.LogLoss(-1e3), out=tmp_path / "whole", save_at=[eq.Steps(6), eq.LogLoss(-500 / 3)])
    with Store.open(tmp_path / "whole") as whole, Store.open(killed) as resumed:
        assert len(whole.weights()) == 4
        assert resumed.weights() == whole.weights()
        for when in whole.weights():
            ours, theirs = resumed.load_weights(when)[0], whole.load_weights(when)[0]
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs), when
        assert resumed.table().equals(whole.table())


def rows(folder):
    try:
        with Store.open(folder) as store:
            return len(store.table())
    except OSError:
        return 0


def test_a_finished_run_comes_back_from_its_folder(tmp_path):
    run = small_flow(until=eq.Steps(4), out=tmp_path / "run")
    again = eq.Run.load(tmp_path / "run")
    assert again.log_loss == run.log_loss
    assert again.status == run.status
    assert torch.equal(again.model.layer1.weight, run.model.layer1.weight)
    assert len(again.table()) == len(run.table())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.nn.Linear(4, 1), "expected inputs that the model accepts"),
        (torch.nn.Linear(5, 2), "expected one score for each example"),
        (torch.nn.Flatten(), "expected a model with parameters"),
    ],
)
def test_models_that_cannot_flow_are_refused_in_one_line(model, message):
    with pytest.raises(InputError, match=message) as refusal:
        eq.flow(model, eq.data.load("separable", n=10, d=5))
    assert "\n" not in str(refusal.value)


def test_a_run_goes_on_with_its_own_observers_only(tmp_path):
    own = [eq.Spectrum(), eq.Drift()]
    small_flow(until=eq.Steps(3), observe=own, max_steps=1, out=tmp_path / "run")
    for observe, found in (
        ([eq.Spectrum()], "found Spectrum;"),
        ([], "found none;"),
        ([eq.Drift(), eq.Spectrum()], "found Drift, Spectrum;"),
        ([eq.Spectrum(r=2), eq.Drift()], "found Spectrum, Drift;"),
    ):
        words = f"the observers of the run, Spectrum, Drift, with the same fields; {found}"
        with pytest.raises(InputError, match=words):
            eq.resume(tmp_path / "run", observe=observe)
    assert set(eq.resume(tmp_path / "run", observe=own).table().observer) == {"spectrum", "drift", "flow"}


def test_observers_that_hold_tensors_are_passed_again(tmp_path):
    own = [eq.Activity(torch.randn(4, 5).double())]
    options = {"out": tmp_path / "run"}
    small_flow(until=eq.Steps(3), observe=own, max_steps=1, **options)
    with pytest.raises(InputError, match="the observers of the run, Activity, with the same fields; found none"):
        eq.resume(tmp_path / "run")
    assert set(eq.resume(tmp_path / "run", observe=own).table().observer) == {"activity", "flow"}


@pytest.mark.parametrize("short", [True, False])
def test_a_flow_of_short_passes_is_on_one_thread_and_leaves_torch_as_it_was(monkeypatch, short):
    monkeypatch.setattr("equipoise.integrate.loop._SHORT", 1e9 if short else 0.0)
    before, during = torch.get_num_threads(), set()
    torch.set_num_threads(2)
    try:
        small_flow(until=eq.Steps(2), callback=lambda *seen: during.add(torch.get_num_threads()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert during == ({1} if short else {2})
