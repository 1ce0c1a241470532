"""Sinks that block, die or lose their place: the training ends where it does without them, with one warning."""

import shutil
import socket
import threading
import warnings
from functools import cache

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.sinks import background
from helpers.sampling import sampled


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """At the end, sinks are waited for briefly."""
    monkeypatch.setattr(background, "_GRACE", 0.2)


def train(*sinks, between=lambda: None):
    """Weights at the end, the log, and what was warned of."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", eq.TrainingAlarm)
        with eq.watch(model, optimizer, every=1, quiet=True, sinks=sinks) as log:
            for _ in range(4):
                optimizer.zero_grad()
                model(torch.ones(3, 4)).square().mean().backward()
                optimizer.step()
                between()
    return [p.detach() for p in model.parameters()], log, [str(each.message) for each in warned]


@cache
def alone():
    """The weights at the end without sinks."""
    return train()[0]


def unharmed(*sinks, **given):
    """The reasons of what is off, once the training is seen to be the same as without sinks."""
    weights, log, warned = train(*sinks, **given)
    assert all(map(torch.equal, weights, alone()))
    assert len(warned) == len(log.off)
    assert sorted(set(log.table().step)) == [1, 2, 3, 4]
    return log.off


class Stuck:
    """Blocks for ever in `write` or `close`."""

    def __init__(self, where):
        self.where, self.free = where, threading.Event()

    def write(self, records):
        if self.where == "write":
            self.free.wait()

    def close(self):
        if self.where == "close":
            self.free.wait()


@pytest.mark.parametrize("where", ["write", "close"])
def test_a_sink_that_blocks_is_left_behind(where):
    sink = Stuck(where)
    off = unharmed(sink)
    assert off == {"Stuck": "TimeoutError: it has not finished within 0.2 seconds; what it has not written is lost"}
    sink.free.set()


ERRORS = (OSError, SystemExit, KeyboardInterrupt, MemoryError)
RAISING = [(where, error) for error in ERRORS for where in ("write", "close")]


@pytest.mark.parametrize(("where", "error"), sampled(RAISING, [*RAISING[1:4:2], *RAISING[4::2]]))
def test_a_sink_that_raises_anything_is_off(where, error):
    class Raises(Stuck):
        def write(self, records):
            if where == "write":
                raise error("gone")

        def close(self):
            if where == "close":
                raise error("gone")

    off = unharmed(Raises(where))
    assert list(off) == ["Raises"]
    assert error.__name__ in off["Raises"]


def test_a_wandb_run_that_blocks_is_left_behind():
    class Run(Stuck):
        def define_metric(self, *arguments, **settings):
            pass

        def log(self, row):
            self.free.wait()

    run = Run("write")
    assert list(unharmed(eq.sinks.WandB(run))) == ["WandB"]
    run.free.set()


def test_an_mlflow_server_that_never_answers_is_left_behind():
    pytest.importorskip("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sink = eq.sinks.MLflow("run", tracking_uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert list(unharmed(sink)) == ["MLflow"]


# TensorBoard's own thread ends with the error, which it raises again in the sink's
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_tensorboard_folder_that_is_removed_stops_nothing(tmp_path):
    pytest.importorskip("tensorboard")
    sink = eq.sinks.TensorBoard(tmp_path / "events")
    sink.writer.file_writer.event_writer.flush()  # the file is there
    off = unharmed(sink, between=lambda: shutil.rmtree(tmp_path / "events", ignore_errors=True))
    assert list(off) == ["TensorBoard"], off
    assert not (tmp_path / "events").exists()
