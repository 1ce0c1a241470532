"""`eq.load`: a run and a watched log come back from their folders."""

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import InputError, StoreError
from equipoise.integrate import problem as problems
from equipoise.integrate import run as runs
from equipoise.monitor import Log
from equipoise.store import Store

DATA = eq.data.load("separable", n=12, d=4)


def network():
    return eq.networks.mlp([4, 3, 1], linear_tail=1)


def test_a_run_comes_back_without_reading_its_network_again(tmp_path, monkeypatch):
    run = eq.flow(network(), DATA, until=eq.Steps(2), out=tmp_path / "run")

    def refuse(*_):
        raise AssertionError("the network was exported")

    with monkeypatch.context() as patch:
        patch.setattr(problems, "invariances", refuse)
        patch.setattr(runs, "capture", refuse)
        again = eq.load(tmp_path / "run", network())
        assert isinstance(again, eq.Run)
        assert again.log_loss == run.log_loss
        assert again.table().equals(run.table())
        assert torch.equal(again.initial["layer1.weight"], run.initial["layer1.weight"])
        with pytest.raises(AssertionError, match="exported"):
            _ = again.chain
    assert again.chain == run.chain
    assert again.homogeneity == run.homogeneity == 2
    assert again.summary() == run.summary()


def watched(folder):
    """Four steps, the gradient of the third not finite."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.watch(model, optimizer, every=1, observe=[eq.Spectrum()], out=folder) as log:
        for step in range(4):
            optimizer.zero_grad()
            model(DATA.X.float()).square().mean().backward()
            if step == 2:
                model.weight.grad.fill_(float("nan"))
            optimizer.step()
    return log


def test_a_watched_log_comes_back_with_its_records_and_alarms(tmp_path):
    with pytest.warns(eq.TrainingAlarm):
        log = watched(tmp_path / "run")
    again = eq.load(tmp_path / "run")
    assert isinstance(again, Log)
    assert again.table().equals(log.table())
    assert again.steps == log.steps
    assert [(alarm.step, alarm.kind, alarm.place) for alarm in again.alarms] == [
        (alarm.step, alarm.kind, alarm.place) for alarm in log.alarms
    ]
    assert again.alarms
    assert again.last("watch", "overhead") == log.last("watch", "overhead")


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(StoreError, match="the folder of a run"):
        eq.load(tmp_path)
    Store.create(tmp_path / "other", {"kind": "sweep"}).close()
    with pytest.raises(StoreError, match=r"a run of eq\.flow in .*; found kind 'sweep'"):
        eq.load(tmp_path / "other")
    eq.flow(network(), DATA, until=eq.Steps(1), out=tmp_path / "run")
    with pytest.raises(InputError, match="the model of this run, which is not in its folder"):
        eq.load(tmp_path / "run")
