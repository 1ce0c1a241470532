"""A sample of the fault campaigns: `make faults` runs them whole."""

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
