"""Annotated shapes are checked while the tests run: jaxtyping reads the signatures, beartype enforces them."""

import os
import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# The engine's inner loop makes thousands of tiny calls; checking each would take ten times as long as running them.
CHECKED = [
    "checkpoint",
    "data",
    "decomposition",
    "gallery",
    "graph",
    "laws",
    "linalg",
    "measure",
    "networks",
    "observers",
    "page",
    "store",
    "theorems",
]
# An extra that is not among those of the tests, because it asks for other versions of what they use.
FLOWER = ["src/equipoise/integrations/flower.py", "tests/helpers/flower_simulation.py"]
collect_ignore = [] if find_spec("flwr") else FLOWER

if "UNCHECKED" not in os.environ:  # `make test-fast` leaves it to `make test`
    install_import_hook([f"equipoise.{room}" for room in CHECKED], "beartype.beartype")

# The same examples on every machine, however slow it is.
settings.register_profile("equipoise", deadline=None, derandomize=True)
settings.load_profile("equipoise")
torch.set_num_threads(1)  # small matrices: a second thread only waits

# Made by `make docs`, and what makes them: no tests.
collect_ignore_glob = [f"docs/{made}" for made in ("_build/*", "_extensions/*", "claims/*", "conf.py", "examples/*")]

# Tests that `make test-fast` leaves out, by their names without parameters; `[1:]` leaves one case of a family there.
# Those of about half a second or more on a quiet machine belong here: `pytest --durations=0` finds new ones.
LONG = frozenset((Path(__file__).parent / "tests" / "helpers" / "long.txt").read_text(encoding="utf-8").split())


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give each test and each page the same random numbers, whichever ran before."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator of libraries that have none of their own
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the long tests, which `make test-fast` leaves out."""
    sampled: set[str] = set()
    for item in items:
        name = item.nodeid.partition("[")[0]
        if name in LONG or name in sampled:
            item.add_marker(pytest.mark.long)
        if f"{name}[1:]" in LONG:
            sampled.add(name)
