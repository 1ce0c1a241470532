"""A run on disk: what is written is read back, whole, after kills, full disks and meddling."""

import json
import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from equipoise.errors import StoreError
from equipoise.store import Record, ResumePoint, Store, append_json, read_json_lines


def record(step, value=0.0, quantity="margin"):
    return Record(step, 0.1 * step, -1.0 * step, 0.5 * step, "margin", "layer1", quantity, value)


def tensors(value=0.0):
    return {"layer1.weight": torch.full((2, 3), value, dtype=torch.float64), "step": torch.tensor(7)}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "first"


@pytest.fixture
def store(folder):
    with Store.create(folder, {"seed": 3, "arguments": {"until": -1e6}}) as store:
        yield store


def refused(message):
    class OneLine:
        def __enter__(self):
            self.raises = pytest.raises(StoreError, match=message)
            self.error = self.raises.__enter__()

        def __exit__(self, *details):
            caught = self.raises.__exit__(*details)
            assert "\n" not in str(self.error.value)
            return caught

    return OneLine()


# ---- what is written is read back ----


def test_a_relative_folder_stays_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Store.create("run", {}, {"initial": tensors()}) as store:
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.commit([record(1)], ResumePoint(1, tensors(1.0)))
        store.save_weights("final", tensors(2.0))
        store.save_options({"n": 3})
        store.finish({"status": "reached"})
        assert store.weights() == ["final", "initial"]
    assert not list((tmp_path / "elsewhere").iterdir())
    with Store.open(tmp_path / "run") as store:
        assert store.result() == {"status": "reached"}
        assert torch.equal(store.load_weights("final")[0]["layer1.weight"], tensors(2.0)["layer1.weight"])


def test_names_that_no_file_can_hold_are_escaped(store, folder):
    store.commit([record(1, quantity="half \ud800 of a pair"), record(2, quantity="a\0b λ\n")])
    with Store.open(folder) as reader:
        assert reader.table()["quantity"].tolist() == ["half \\ud800 of a pair", "a\0b λ\n"]


@pytest.mark.parametrize("file", ["records.sqlite", "result.json", "weights/initial.safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_refused(file, folder):
    with Store.create(folder, {}, {"initial": tensors()}) as store:
        store.commit([record(1)])
        store.finish({})
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with refused(f"an intact .*{file.rpartition('/')[2]}.*a pipe|weights in .*a pipe"), Store.open(folder) as store:
        store.load_weights("initial")


def test_manifest_says_what_made_the_run(store, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {**store.manifest, "sha256": manifest["sha256"]} == manifest
    assert (manifest["format"], manifest["version"], manifest["seed"]) == ("equipoise-run", 2, 3)
    assert manifest["arguments"] == {"until": -1e6}
    assert set(manifest["versions"]) == {"equipoise", "torch", "python"}


def test_equal_runs_are_equal_files(tmp_path):
    for name in ("a", "b"):
        with Store.create(tmp_path / name, {"seed": 3}) as store:
            store.save_weights("initial", tensors(), {"step": 0, "growth": 0.0, "log_loss": -1.5})
            store.finish({"status": "reached"})
    for file in ("manifest.json", "result.json", "weights/initial.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_weights_are_the_same_in_another_process(tmp_path, store, folder):
    # safetensors orders several metadata keys differently in every process
    store.save_weights("w", tensors(), {"a": 1, "b": 2, "c": 3, "d": 4})
    script = (
        "import sys, torch; from equipoise.store import Store; s = Store.create(sys.argv[1], {});"
        "s.save_weights('w', {'layer1.weight': torch.zeros(2, 3, dtype=torch.float64), 'step': torch.tensor(7)},"
        "{'d': 4, 'c': 3, 'b': 2, 'a': 1})"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "other")], check=True)
    file = "weights/w.safetensors"
    assert (tmp_path / "other" / file).read_bytes() == (folder / file).read_bytes()


def test_records_come_back_in_order_with_every_bit(store):
    values = [math.pi, math.inf, -math.inf, math.nan, 5e-324, -1e300]
    store.commit([record(2, value) for value in values])
    store.commit([Record(1, math.nan, -math.inf, math.nan, "kkt", "", "epsilon", 1.0)])
    table = store.table()
    assert list(table.columns) == list(Record._fields)
    np.testing.assert_array_equal(table["value"], [*values, 1.0])
    np.testing.assert_array_equal(table["log_loss"], [-2.0] * 6 + [-math.inf])
    assert table["step"].tolist() == [2] * 6 + [1]
    assert table["growth"].isna().tolist() == [False] * 6 + [True]


def test_numpy_and_tensor_numbers_are_stored_as_numbers(store):
    store.commit([record(np.int64(4), np.float32(0.5)), record(torch.tensor(5), torch.tensor(0.25))])
    assert store.table()[["step", "value"]].values.tolist() == [[4, 0.5], [5, 0.25]]


def test_table_without_records_has_its_columns_and_types(store):
    store.commit([])
    empty = store.table()
    store.commit([record(1, math.nan)])
    numbers = {name: str(store.table().dtypes[name]) for name in ("step", "growth", "log_loss", "log_time", "value")}
    assert len(empty) == 0
    assert {name: str(empty.dtypes[name]) for name in numbers} == numbers
    assert set(numbers.values()) == {"int64", "float64"}


def test_database_is_in_wal_mode(store, folder):
    assert sqlite3.connect(folder / "records.sqlite").execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_checkpoint_is_replaced_and_exact(store):
    assert store.checkpoint() is None
    store.commit([], ResumePoint(1, tensors(1.0)))
    exact = {"w": torch.tensor([0.1, math.nan, -math.inf, -0.0], dtype=torch.float64), "on": torch.tensor([True])}
    store.commit([], ResumePoint(2, exact, {"growth": 0.1 + 0.2, "log_loss": -math.inf, "ds": [1e-3, None]}))
    point = store.checkpoint()
    assert point.step == 2
    assert point.metadata == {"growth": 0.1 + 0.2, "log_loss": -math.inf, "ds": [1e-3, None]}
    assert list(point.tensors) == ["on", "w"]
    assert point.tensors["w"].view(torch.int64).equal(exact["w"].view(torch.int64))
    assert point.tensors["on"].equal(exact["on"])


def test_weights_come_back_in_their_dtype(store):
    model = torch.nn.Linear(3, 2, dtype=torch.float64)
    store.save_weights("step-10", model.state_dict(), {"step": 10, "growth": 0.30000000000000004})
    store.save_weights("final", {"W": torch.arange(6.0).reshape(2, 3).T})
    loaded, metadata = store.load_weights("step-10")
    model.load_state_dict(loaded)
    assert loaded["weight"].equal(model.weight)
    assert loaded["weight"].dtype == torch.float64
    assert metadata == {"step": 10, "growth": 0.30000000000000004}
    assert store.load_weights("final")[0]["W"].equal(torch.arange(6.0).reshape(2, 3).T)
    assert store.weights() == ["final", "step-10"]


def test_tied_weights_can_be_saved(store):
    shared = torch.ones(2, 2)
    store.save_weights("tied", {"a": shared, "b": shared})
    assert store.load_weights("tied")[0]["b"].equal(shared)


def test_result_is_strict_json(store, folder):
    assert store.result() is None
    store.finish({"status": "reached", "log_loss": -math.inf, "layers": [{"bound": math.nan, "name": "layer1"}]})
    assert store.result() == {"status": "reached", "log_loss": None, "layers": [{"bound": None, "name": "layer1"}]}

    def constant(name):
        raise AssertionError(f"{name} is no JSON")

    json.loads((folder / "result.json").read_text(), parse_constant=constant)


# ---- readers and writers ----


def test_reading_while_another_writes(store, folder):
    store.commit([record(1)], ResumePoint(1, tensors()))
    with Store.open(folder) as reader:
        assert len(reader.table()) == 1
        store.commit([record(2)])
        assert len(reader.table()) == 2
        with refused("to read and write .*first; found attempt to write a readonly database"):
            reader.commit([record(3)])


@pytest.mark.parametrize("write", [Store.resume, lambda folder: Store.create(folder, {})])
def test_second_writer_is_refused(store, folder, write):
    with refused("first to oneself; found another process writing this run; wait until it ends"):
        write(folder)
    store.commit([record(1)])


def test_folder_is_free_again_after_a_refusal(folder):
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with refused("a new or empty folder; found another program's files in .*first, notes.txt among them"):
        Store.create(folder, {})
    (folder / "notes.txt").unlink()
    Store.create(folder, {}).close()


def test_resuming_drops_what_is_newer_than_the_checkpoint(store, folder):
    store.commit([record(1), record(2)], ResumePoint(2, tensors()))
    store.commit([record(3), record(4)])
    store.finish({"status": "reached"})
    store.close()
    with Store.resume(folder) as again:
        assert again.table_of_checkpoint()["step"].tolist() == [1, 2]
        assert (again.table()["step"].tolist(), again.result()) == ([1, 2, 3, 4], {"status": "reached"})
        again.rewind()
        assert again.table()["step"].tolist() == [1, 2]
        assert again.checkpoint().step == 2
        assert again.result() is None
        again.commit([record(3)])
        assert again.table()["step"].tolist() == [1, 2, 3]


def test_resuming_before_the_first_checkpoint_begins_anew(store, folder):
    store.commit([record(0), record(1)])
    store.close()
    with Store.resume(folder) as again:
        assert len(again.table_of_checkpoint()) == 0
        again.rewind()
        assert len(again.table()) == 0
        assert again.checkpoint() is None


def test_reading_leaves_nothing_behind(store, folder):
    store.commit([record(1)])
    store.close()
    before = sorted(path.name for path in folder.iterdir())
    with Store.open(folder) as reader:
        reader.table()
    assert sorted(path.name for path in folder.iterdir()) == before


# ---- what is covered by a hash ----


@pytest.fixture
def finished(folder):
    """The folder of a small finished run with records, three checkpoints and three files of weights."""
    with Store.create(folder, {"seed": 3, "loss": "exponential"}, {"initial": tensors(0.5)}) as store:
        for step in range(1, 5):
            store.commit([record(step, value=step / 7), record(step, math.nan)], ResumePoint(step, tensors(step)))
        store.save_weights("growth=1", tensors(3.0))
        store.save_weights("final", tensors(4.0))
        store.finish({"status": "reached", "log_loss": -12.5})
    return folder


def contents(folder):
    """Everything that can be read of a run."""
    with Store.open(folder) as store:
        weights = {
            name: {key: each.tolist() for key, each in store.load_weights(name)[0].items()} for name in store.weights()
        }
        point = store.checkpoint()
        found = (point.step, {key: each.tolist() for key, each in point.tensors.items()}, dict(point.metadata))
        return repr((store.manifest, store.table().values.tolist(), found, weights, store.result()))


def contents_or_refusal(folder):
    try:
        return contents(folder)
    except StoreError as error:
        return str(error)


def test_every_flipped_byte_is_noticed_or_changes_nothing(finished):
    whole, draw = contents(finished), np.random.default_rng(0)
    files = sorted(path for path in finished.rglob("*") if path.is_file() and path.stat().st_size)
    assert {path.name for path in files} >= {"manifest.json", "result.json", "records.sqlite", "final.safetensors"}
    refused = 0
    for file in files:
        content = file.read_bytes()
        for position in draw.integers(0, len(content), 40):
            file.write_bytes(
                content[:position] + bytes([content[position] ^ (1 << draw.integers(8))]) + content[position + 1 :]
            )
            found = contents_or_refusal(finished)
            assert found == whole or (found.startswith("expected") and str(finished) in found), f"{file}, {position}"
            refused += found != whole
            for beside in ("-wal", "-shm", "-journal"):
                (finished / f"records.sqlite{beside}").unlink(missing_ok=True)
        file.write_bytes(content)
    assert contents(finished) == whole
    assert refused > 100


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE records SET value = 0 WHERE step = 2", "records that do not match their SHA-256, from page 2 of 4"),
        ("UPDATE records SET place = 'layer2' WHERE step = 4", "from page 4 of 4"),
        ("DELETE FROM records WHERE step = 4", "from page 4 of 4"),
        (
            "DELETE FROM records WHERE step = 4; DELETE FROM pages WHERE page = 4",
            "a last checkpoint that does not match",
        ),
        ("UPDATE checkpoints SET metadata = '{}' || ' ' WHERE step = 4", "a last checkpoint that does not match"),
        ("DELETE FROM checkpoints WHERE step = 4", "do not match their SHA-256 in result.json"),
    ],
)
def test_an_edited_database_is_refused(finished, statement, message):
    with sqlite3.connect(finished / "records.sqlite") as connection:
        connection.executescript(statement)
    with refused(f"an intact .*records.sqlite; found .*{message}"):
        contents(finished)


@pytest.mark.parametrize("name", ["manifest.json", "result.json"])
def test_an_edited_text_is_refused(finished, name):
    file = finished / name
    file.write_text(file.read_text().replace("exponential", "logistic").replace("reached", "stalled"))
    with refused(f"an intact .*{name}; found contents that do not match"):
        contents(finished)


def test_weights_are_those_of_their_name_and_run(finished, tmp_path):
    weights = finished / "weights"
    initial = (weights / "initial.safetensors").read_bytes()
    (weights / "initial.safetensors").write_bytes((weights / "final.safetensors").read_bytes())
    with refused("weights in .*initial.safetensors; found tensors that do not match their SHA-256"):
        contents(finished)
    with Store.create(tmp_path / "other", {}, {"initial": tensors(0.25)}):
        (weights / "initial.safetensors").write_bytes((tmp_path / "other/weights/initial.safetensors").read_bytes())
    with refused("an intact .*initial.safetensors; found weights that are not those of the manifest"):
        contents(finished)
    (weights / "initial.safetensors").write_bytes(initial)
    (weights / "growth=1.safetensors").unlink()
    with refused("weights in .*growth=1.safetensors; found nothing there"):
        contents(finished)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(finished):
    with sqlite3.connect(finished / "records.sqlite") as connection:
        connection.execute("UPDATE checkpoints SET tensors = zeroblob(40) WHERE step = 4")
    with Store.resume(finished) as store:
        assert store.table_of_checkpoint().step.max() == 3
        store.rewind()
        assert store.checkpoint().step == 3
        assert store.checkpoint().tensors["layer1.weight"].eq(3).all()
        assert store.table()["step"].tolist() == [1, 1, 2, 2, 3, 3]
        assert store.result() is None


def test_only_the_last_checkpoints_are_kept(finished):
    with sqlite3.connect(finished / "records.sqlite") as connection:
        assert connection.execute("SELECT step FROM checkpoints").fetchall() == [(2,), (3,), (4,)]


# ---- what is refused ----


def test_existing_run_is_not_overwritten(store, folder):
    store.close()
    with refused("a new or empty folder; found a run in .*first; --resume .*first, or choose another"):
        Store.create(folder, {})


@pytest.mark.parametrize("read", [Store.open, Store.resume])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the folder of a run at .*first; found no manifest.json"),
        ("{", "an intact .*manifest.json; found Expecting"),
        ("[1]", "an intact .*manifest.json; found list"),
        ("\xff", "an intact .*manifest.json; found"),
        ('{"name": "web app"}', "found another program's folder, format None"),
        ('{"format": "equipoise-run", "version": 1}', '"version": 2 in .*manifest.json; found 1; read it with'),
    ],
)
def test_what_is_no_run(folder, read, content, message):
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "manifest.json").write_text(content, "latin-1")
    with refused(message):
        read(folder)


def test_no_folder(tmp_path):
    with refused("a run at .*nowhere; found no such folder"):
        Store.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    with refused("file; found .*File exists"):
        Store.create(tmp_path / "file", {})


def test_another_programs_manifest_is_left_alone(folder):
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"name": "web app"}')
    with refused("found another program's folder"):
        Store.create(folder, {})
    assert (folder / "manifest.json").read_text() == '{"name": "web app"}'


def test_damaged_database(store, folder):
    store.commit([record(1)])
    store.close()
    (folder / "records.sqlite").write_bytes(b"not a database, by any means" * 100)
    with refused("an intact .*records.sqlite; found file is not a database"), Store.open(folder) as reader:
        reader.table()


def test_damaged_and_missing_weights(store, folder):
    store.save_weights("initial", tensors())
    file = folder / "weights" / "initial.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with refused("weights in .*initial.safetensors; found .*there are: initial"):
        store.load_weights("initial")
    with refused("weights in .*final.safetensors; found nothing there; there are: initial"):
        store.load_weights("final")


@pytest.mark.parametrize("name", ["../escape", "", ".hidden", "a/b"])
def test_names_stay_in_their_folder(store, name):
    with refused("a name of letters"):
        store.save_weights(name, tensors())


# ---- full disks ----


def committed(store):
    store.commit([record(1, 1.5)], ResumePoint(1, tensors(1.0), {"growth": 0.1}))
    store.save_weights("initial", tensors(1.0))


def nothing_is_lost(folder):
    with Store.resume(folder) as store:
        store.rewind()
        assert store.table()["value"].tolist() == [1.5]
        assert store.checkpoint().tensors["layer1.weight"].eq(1).all()
        assert store.checkpoint().metadata == {"growth": 0.1}
        assert store.load_weights("initial")[0]["layer1.weight"].eq(1).all()
        store.commit([record(2)], ResumePoint(2, tensors(2.0)))


def test_database_that_may_not_grow(store, folder):
    committed(store)
    store._database.connection.execute("PRAGMA max_page_count = 14")
    with refused("room on the disk for .*first; found a full disk; .*what was committed is safe"):
        store.commit([record(2)] * 10, ResumePoint(2, {"w": torch.ones(100_000)}))
    store.commit([record(2)])
    store.close()
    nothing_is_lost(folder)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a small disk may not be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)  # lazily: a failed test leaves files open


def test_full_disk(small_disk):
    folder = small_disk / "run"
    store = Store.create(folder, {})
    committed(store)
    large = {"w": torch.ones(100_000, dtype=torch.float64)}
    full = "room on the disk for .*run; found a full disk; free some and --resume .*run: what was committed is safe"
    with refused(full):
        store.save_weights("initial", large)
    with refused(full):
        store.commit([record(2)], ResumePoint(2, large))
    with refused(full):
        store.finish({"long": "x" * 1_000_000})
    assert store.table()["step"].tolist() == [1]
    store.close()
    assert not list(folder.rglob("*.tmp"))
    nothing_is_lost(folder)


def test_disk_that_fills_step_by_step(small_disk):
    folder = small_disk / "run"
    store = Store.create(folder, {})
    with refused("found a full disk"):
        for step in range(1, 10_000):
            store.commit([record(step, quantity="q" * 500)] * 3, ResumePoint(step, tensors(step)))
    store.close()
    with Store.open(folder) as reader:
        assert reader.checkpoint().step == step - 1
        assert len(reader.table()) == 3 * (step - 1) > 0


def test_run_in_a_folder_that_cannot_be_written(small_disk):
    folder = small_disk / "run"
    with Store.create(folder, {}) as store:
        committed(store)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with Store.open(folder) as reader:
        assert reader.table()["value"].tolist() == [1.5]
    with refused("run; found .*Read-only file system"):
        Store.resume(folder)


# ---- kills ----


@pytest.mark.parametrize("instant", range(1, 30))
def test_a_run_killed_while_it_is_made_is_none_or_can_go_on(folder, monkeypatch, instant):
    """Stopped before every single file operation of `create`, one after the other."""
    left = [instant]

    class Killed(BaseException):
        pass

    def stop(function):
        def counted(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return function(*args, **kwargs)

        return counted

    start = tensors(0.5)
    with monkeypatch.context() as patch:
        for name in ("replace", "fsync", "mkdir", "unlink"):
            patch.setattr(f"os.{name}", stop(getattr(os, name)))
        patch.setattr("sqlite3.connect", stop(sqlite3.connect))
        try:
            Store.create(folder, {"seed": 3}, {"initial": start}).close()
        except Killed:
            pass
        else:
            assert left[0] > 0
    if (folder / "manifest.json").exists():
        with Store.resume(folder) as store:
            store.rewind()
            assert store.load_weights("initial")[0]["layer1.weight"].equal(start["layer1.weight"])
            store.commit([record(1)], ResumePoint(1, start))
    else:
        Store.create(folder, {"seed": 3}, {"initial": start}).close()
        assert contents_of_new(folder) == ["initial"]


def contents_of_new(folder):
    with Store.open(folder) as store:
        assert store.checkpoint() is None
        assert len(store.table()) == 0
        return store.weights()


def test_killed_at_any_instant(tmp_path):
    """A child commits in a loop and is killed 40 times; records and checkpoint agree exactly each time."""
    script = Path(__file__).with_name("helpers") / "killed_writer.py"
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run"), "40"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    with Store.open(tmp_path / "run") as store:
        assert store.checkpoint().step > 0
        assert isinstance(store.table(), pd.DataFrame)


def test_lines_are_added_whole_and_a_torn_one_is_cut_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_json(path, {"seed": 0, "loss": math.inf})
    with path.open("ab") as file:
        file.write(b'{"seed": 1, "lo')  # killed while it wrote
    assert read_json_lines(path) == [{"seed": 0, "loss": None}]
    append_json(path, {"seed": 2})
    assert read_json_lines(path) == [{"seed": 0, "loss": None}, {"seed": 2}]
    path.write_bytes(b'{"seed": 1, "lo\n')
    with pytest.raises(StoreError, match=r"an intact .*rows.jsonl"):
        read_json_lines(path)
