"""What watching costs a training loop: plain steps, steps under `eq.watch`, and under delve, taken in turns in one run.

    python benchmarks/watch_overhead.py                         # without delve where it is not installed
    pip install --no-deps --target /tmp/delve delve && PYTHONPATH=/tmp/delve python benchmarks/watch_overhead.py

The loops take turns of `every` steps, so that a busy machine slows all of them alike; one step of a turn has a
snapshot, or, of the loop within a budget, as many as fit. Printed are the ratios of all turns to those of the plain
loop, and the time in snapshots that the meter of `eq.watch` counted, over that of the watched turns without it.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings

import torch
from torch import nn
from torch.nn import functional as F

import equipoise as eq
from refresh import Block


def multilayer():
    torch.manual_seed(0)
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers), torch.randn(128, 784), torch.randint(10, (128,))


class Transformer(nn.Module):
    """Two blocks of width 128 on 32 tokens, and a linear head on their mean."""

    def __init__(self):
        super().__init__()
        self.embed, self.blocks = nn.Linear(16, 128), nn.Sequential(Block(128, 4), Block(128, 4))
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        return self.head(self.blocks(self.embed(x)).mean(1))


def transformer():
    torch.manual_seed(0)
    return Transformer(), torch.randn(64, 32, 16), torch.randint(10, (64,))


BUDGET = 0.02


class Loop:
    """One training under one kind of watch, advanced by turns."""

    def __init__(self, make):
        self.model, self.inputs, self.labels = make()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.turns = []

    def turn(self, steps):
        begun = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self.inputs), self.labels).backward()
            self.optimizer.step()
            self.after_step()
        self.turns.append(time.perf_counter() - begun)

    def begin(self):
        """Count from here on."""
        self.turns.clear()

    def after_step(self):
        """Nothing, in a plain loop."""

    def close(self):
        """Nothing, in a plain loop."""


class Watched(Loop):
    def __init__(self, make, every, budget=None):
        super().__init__(make)
        self.context = eq.watch(self.model, self.optimizer, every=every, budget=budget, quiet=True)
        self.log = self.context.__enter__()
        self.left = time.perf_counter()

    def turn(self, steps):
        self.log.meter.clock += time.perf_counter() - self.left  # the other loops' turns are not this one's training
        super().turn(steps)
        self.left = time.perf_counter()

    def begin(self):
        super().begin()
        self.begun = self.log.meter.snapshots, self.log.meter.spent

    def counted(self):
        """Snapshots, and seconds in them, since it began."""
        snapshots, seconds = self.begun
        return self.log.meter.snapshots - snapshots, self.log.meter.spent - seconds

    def close(self):
        self.context.__exit__(None, None, None)


class Delved(Loop):
    def __init__(self, make, every):
        super().__init__(make)
        from delve import SaturationTracker

        self.folder, self.every, self.step = tempfile.TemporaryDirectory(), every, 0
        settings = {"save_to": "csv", "stats": ["lsat"], "device": "cpu", "log_interval": 1}
        self.tracker = SaturationTracker(f"{self.folder.name}/delve", modules=self.model, **settings)

    def after_step(self):
        self.step += 1
        if self.step % self.every == 0:
            self.tracker.add_saturations()

    def close(self):
        self.tracker.close()
        self.folder.cleanup()


def compare(make, every, turns):
    loops = {"plain": Loop(make), "watch": Watched(make, every), "within_budget": Watched(make, every, BUDGET)}
    try:
        loops["delve"] = Delved(make, every)
    except ImportError:
        print("delve is not installed: left out")
    for loop in loops.values():
        loop.turn(every)  # set-up, and the first snapshots
        loop.begin()
    for _ in range(turns):
        for loop in loops.values():
            loop.turn(every)
    told = {"step_ms": 1e3 * statistics.median(loops["plain"].turns) / every}
    for name, loop in loops.items():
        if isinstance(loop, Watched):
            snapshots, seconds = loop.counted()
            told[f"{name}_snapshots"] = snapshots
            told[f"{name}_meter"] = seconds / (sum(loop.turns) - seconds)
        if name != "plain":
            told[f"{name}_over_plain"] = sum(loop.turns) / sum(loops["plain"].turns)
        loop.close()
    return told


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.filterwarnings("ignore", module="delve")
    logging.getLogger("delve").setLevel(logging.WARNING)
    for name, make in (("784-512-512-10, batch 128", multilayer), ("small transformer", transformer)):
        print(json.dumps({"network": name, "every": asked.every, **compare(make, asked.every, asked.turns)}))


if __name__ == "__main__":
    main()
