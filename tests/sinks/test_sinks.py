"""Every sink, read back by the reader that its users have."""

import io
import json
import struct
import time

import pandas as pd
import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import StoreError
from equipoise.store import Record, Store


def record(step, quantity, value, place="0.weight"):
    return Record(step, 0.0, float("nan"), float("nan"), "spectrum", place, quantity, value)


def watched(steps=6, **arguments):
    """A short training, and its log."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with eq.watch(model, optimizer, every=2, quiet=True, **arguments) as log:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()
    return log


def curve(log, observer, quantity, place):
    table = log.table()
    rows = table[(table.observer == observer) & (table.quantity == quantity) & (table.place == place)]
    return list(zip(rows.step, rows.value, strict=True))


def test_a_folder_can_be_read_while_it_grows_and_ends_with_parquet(tmp_path):
    log = watched(out=tmp_path / "run")
    stored = Store.open(tmp_path / "run").table()
    parquet = pd.read_parquet(tmp_path / "run" / "records.parquet")
    pd.testing.assert_frame_equal(stored, parquet)
    assert curve(log, "spectrum", "sigma_1", "0.weight")[-1][0] == 6
    assert len(log.table()) == len(parquet) > 50
    assert Store.open(tmp_path / "run").manifest["observers"] == ["spectrum", "alignment", "drift", "residual"]


def test_a_folder_ends_without_parquet_where_pyarrow_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("equipoise.sinks.disk.find_spec", lambda name: None)
    watched(out=tmp_path / "run")
    assert not (tmp_path / "run" / "records.parquet").exists()
    assert len(Store.open(tmp_path / "run").table()) > 50


def test_a_second_training_goes_on_in_the_folder(tmp_path):
    first = watched(out=tmp_path / "run").table()
    again = watched(out=tmp_path / "run")
    table = again.table()
    pd.testing.assert_frame_equal(table.iloc[: len(first)], first)
    assert sorted(set(table.step[len(first) :] - 6)) == sorted(set(first.step))
    assert again.steps == 6
    assert "the folder goes on from step 6 of the training before" in again.summary()
    with Store.open(tmp_path / "run") as store:
        assert store.result() == {"status": "finished"}
        pd.testing.assert_frame_equal(store.table(), pd.read_parquet(tmp_path / "run" / "records.parquet"))


def test_a_training_that_ends_early_is_recorded_so_and_goes_on(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train():
        with eq.watch(model, optimizer, every=1, out=tmp_path / "run", quiet=True):
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    with Store.open(tmp_path / "run") as store:
        assert store.result() == {"status": "interrupted"}
        assert len(store.table())
    assert set(watched(out=tmp_path / "run").table().step) == {1, 2, 7} | set(watched().table().step + 1)


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(tmp_path):
    data = eq.data.load("separable", n=20, d=4)
    model = eq.networks.mlp([4, 3, 1], linear_tail=1)
    eq.flow(model, data, until=eq.Steps(2), out=tmp_path / "flow", observe=[])
    watched(out=tmp_path / "watch")
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=r"a new or empty folder; found a run in .*flow; --resume"):
        watched(out=tmp_path / "flow")
    with pytest.raises(StoreError, match=r"a new or empty folder; found a watched training in .*; choose another"):
        eq.flow(model, data, until=eq.Steps(2), out=tmp_path / "watch")
    for read in (eq.resume, eq.Run.load):
        with pytest.raises(StoreError, match=r"a run of eq.flow in .*watch; found a watched training"):
            read(tmp_path / "watch")
    assert contents(tmp_path) == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tensorboard_reads_the_scalars_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = watched(sinks=[eq.sinks.TensorBoard(tmp_path)])
    events = EventAccumulator(str(tmp_path)).Reload()
    seen = [(event.step, event.value) for event in events.Scalars("spectrum_sigma_1/0.weight")]
    assert seen == [(step, pytest.approx(value)) for step, value in curve(log, "spectrum", "sigma_1", "0.weight")]
    assert "residual_residual/0.weight_to_2.weight" in events.Tags()["scalars"]


def test_wandb_keeps_its_history_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sink = eq.sinks.WandB(mode="offline", dir=str(tmp_path), project="equipoise")
    log = watched(sinks=[sink])
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    history = dict(_wandb_history(_finished(path)))
    expected = dict(curve(log, "spectrum", "sigma_1", "0.weight"))
    assert {step: row["equipoise/spectrum_sigma_1/0.weight"] for step, row in history.items()} == expected


def _finished(path, patience=60):
    """The records of a W&B run file, once its end is there: W&B's own process flushes it, at times after `finish`."""
    until = time.monotonic() + patience
    while not (records := _wandb_records(path)) or records[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < until, f"{path} holds {len(records)} records and no end"
        time.sleep(0.05)
    return records


def _wandb_records(path):
    from wandb.proto import wandb_internal_pb2

    return [wandb_internal_pb2.Record.FromString(data) for data in _leveldb_log(path.read_bytes())]


def _wandb_history(records):
    """The rows of the history, by our step."""
    for entry in records:
        if entry.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in entry.history.item}
            if "equipoise/spectrum_sigma_1/0.weight" in row:
                yield row["equipoise/step"], row


def _leveldb_log(content, header=7, block=32768):
    """The records of a log in LevelDB's format, which W&B writes and no longer ships a reader for."""
    at, whole = header, b""
    while at + 7 <= len(content):
        if block - at % block < 7:  # no header fits into the rest of the block
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        if at + 7 + length > len(content):  # still being written
            return
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


# mlflow 3.17 maps its own tables in a way that its sqlalchemy has deprecated
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_mlflow_keeps_every_step(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    sink = eq.sinks.MLflow(experiment="watch", tracking_uri=address)
    log = watched(sinks=[sink])
    client = mlflow.MlflowClient(address)
    seen = [(m.step, m.value) for m in client.get_metric_history(sink.run_id, "spectrum_sigma_1/0.weight")]
    assert seen == [(step, pytest.approx(value)) for step, value in curve(log, "spectrum", "sigma_1", "0.weight")]
    assert client.get_run(sink.run_id).info.status == "FINISHED"


def test_the_live_table_shows_the_latest_figures():
    from rich.console import Console

    console = Console(width=120, record=True, force_terminal=True, file=io.StringIO())
    sink = eq.sinks.Live(console)
    sink.write([record(1, "sigma_1", 1.25), record(1, "sigma_4", 0.5)])
    sink.write([record(2, "sigma_1", 2.5)])
    sink.close()
    console.print(sink.table())
    shown = console.export_text()
    assert "2.5" in shown.splitlines()[-2]
    assert "σ₁" in shown
    assert "sigma_4" not in shown


def test_a_callable_gets_the_records_of_each_look():
    seen = []
    watched(sinks=[seen.append])
    assert [rows[0].step for rows in seen] == [1, 2, 4, 6, 6]
    assert all(isinstance(row, Record) for rows in seen for row in rows)
