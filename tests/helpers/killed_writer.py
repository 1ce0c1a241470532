"""Run by test_store.py: fork a writer, kill it at a random instant, compare records with checkpoint; many times."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from equipoise.store import Record, ResumePoint, Store

ROWS = 3


def record(step, row):
    return Record(step, 0.0, 0.0, 0.0, "writer", str(row), "step", step + row / 10)


def write_for_ever(folder):
    with Store.resume(folder) as store:
        store.rewind()
        point = store.checkpoint()
        step = point.step if point else 0
        while True:
            step += 1
            weights = torch.full((50, 50), float(step), dtype=torch.float64)
            store.commit([record(step, row) for row in range(ROWS)], ResumePoint(step, {"w": weights}, {"step": step}))
            store.save_weights("final", {"w": weights}, {"step": step})


def check(folder):
    """Every step up to the checkpoint has its rows, none after it has any; the weights are of one step throughout."""
    with Store.open(folder) as store:
        point, table = store.checkpoint(), store.table()
        last = point.step if point else 0
        wanted = [record(step, row).value for step in range(1, last + 1) for row in range(ROWS)]
        assert table["value"].tolist() == wanted, f"{len(table)} records at checkpoint {last}"
        assert point is None or (point.tensors["w"].eq(last).all() and point.metadata == {"step": last})
        if "final" in store.weights():
            weights, metadata = store.load_weights("final")
            assert weights["w"].eq(metadata["step"]).all()
            assert metadata["step"] <= last  # kills between commit and save leave the weights behind
    return last


def kill_once(folder, delay):
    child = os.fork()
    if child == 0:
        write_for_ever(folder)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def main(folder, kills):
    torch.set_num_threads(1)  # a forked child has no thread pool
    draw = random.Random(0)
    Store.create(folder, {}).close()
    steps = []
    for _ in range(kills):
        kill_once(folder, draw.uniform(0.005, 0.1))
        steps.append(check(folder))
    print(f"steps at the kills: {steps}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
