"""Every file in examples/ runs as it stands; those whose first line is `# slow` only with the other slow tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def slow(path: Path) -> bool:
    return path.read_text(encoding="utf-8").partition("\n")[0].strip() == "# slow"


def parameters():
    return [pytest.param(path, id=path.name, marks=[pytest.mark.slow] if slow(path) else []) for path in EXAMPLES]


@pytest.mark.parametrize("path", parameters())
def test_runs(path, tmp_path):
    """In a process and a folder of its own, without a display and without the network."""
    environment = {**os.environ, "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip(), "an example shows something"


def test_there_are_examples():
    assert {"check_backward.py", "minilm_laws.py"} <= {path.name for path in EXAMPLES}
