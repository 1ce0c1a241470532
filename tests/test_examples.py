"""Every file in examples/ runs as it stands; those whose first line is `# slow`, and those that other
tests run too, only with the other slow tests.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


# Run by tests/integrations/test_trainers.py, and what the last two do by those of the laws and the decomposition.
ELSEWHERE = {"watch_training.py", "watch_lightning.py", "watch_huggingface.py", "minilm_laws.py", "decomposition.py"}


def slow(path: Path) -> bool:
    return path.name in ELSEWHERE or path.read_text(encoding="utf-8").partition("\n")[0].strip() == "# slow"


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
