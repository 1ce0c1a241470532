"""A sample of the fault campaigns: `make faults` runs them whole."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[1] / "benchmarks" / "faults"


@pytest.mark.parametrize("campaign", [("kills", 4), ("folders", 80)])
def test_no_run_is_lost_and_no_value_changes_in_silence(campaign):
    name, count = campaign
    command = [sys.executable, str(FAULTS / "runs.py"), name, "--count", str(count), "--seed", "7"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.startswith("| ")  # the table, and no complaint before it


@pytest.mark.parametrize(
    "name",
    [
        "optimizer: lars",  # which steps twice
        "optimizer: schedule_free",
        "sam_with_closure",
        "scaler, fp16",
        "weights assigned",
        "model: willful",  # whose copies have side effects
        "divergence",
        "nested_input",
        "a folder, removed",
        "alarms_that_raise",
    ],
)
def test_a_watched_training_ends_with_the_same_bits(name, monkeypatch):
    monkeypatch.syspath_prepend(FAULTS)
    loops = importlib.import_module("watch_loops")
    assert loops.outcome(loops.RECIPES[name]).faults == []


def test_checkpoints_of_every_format_whole_and_broken():
    command = [sys.executable, str(FAULTS / "checkpoints.py"), "--count", "70", "--seed", "7"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "code run 0; 56 formats" in found.stdout


READERS = ["safetensors", "torch_save", "torch_save, legacy", "onnx", "adapters", "configs", "indices", "strangers"]


@pytest.mark.parametrize("reader", [*READERS, "state dicts", "pickles"])
def test_odd_contents_are_read_or_refused_in_one_line(reader, monkeypatch):
    """The table, or one visible line; no code is run, and what picklescan finds dangerous is refused."""
    monkeypatch.syspath_prepend(FAULTS)
    fuzzing = importlib.import_module("fuzz")
    assert set(fuzzing.TARGETS) == {*READERS, "state dicts", "pickles"}
    assert fuzzing.fuzz(reader, 40) >= 30
