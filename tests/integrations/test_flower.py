"""In Flower's own simulation, where it is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr")
pytest.importorskip("ray")

SCRIPT = Path(__file__).parents[1] / "helpers" / "flower_simulation.py"


def test_a_simulated_federation_is_the_function_in_one_process(tmp_path):
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "FLWR_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    distance, loss, rounds = map(float, done.stdout.strip().splitlines()[-1].split())
    assert distance < 1e-9
    assert loss < 1e-2
    assert rounds == 1
