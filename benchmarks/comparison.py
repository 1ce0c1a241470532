"""What each tool says of the same small training, sound and with one fault at a time, in one run.

    python benchmarks/comparison.py                               # the tools that are installed
    python benchmarks/comparison.py --tools equipoise gradcheck   # some of them

A fault is *alarmed*, or *noted*, where the tool itself says so, in words that none of eight sound runs gets, and *in
the figures* where a figure leaves the range of the sound runs, widened by twice its width on either side: what somebody
who compares would see.
Tools that are not for trainings (torchdiffeq, torch-pruning, Git Re-Basin) have benchmarks of their own.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

TRAINING = """
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        return weight.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 2

class Faulty(nn.Linear):
    def forward(self, x):
        return F.linear(x, Halved.apply(self.weight), self.bias)

torch.manual_seed({seed})
digits = load_digits()
X, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
{data}
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), {layer}, nn.ReLU(), nn.Linear(64, 10))
{start}
optimizer = torch.optim.SGD({parameters}, lr=0.1)
{tool_begin}
for step in range({steps}):
    {tool_before}
    batch = torch.randint(0, len(X), (64,))
    {zero}
    loss = F.cross_entropy(model(X[batch]), y[batch])
    loss.backward()
    {spoil}
    optimizer.step()
    {tool_after}
{tool_end}
"""
SOUND = {
    "data": "",
    "layer": "nn.Linear(64, 64)",
    "start": "",
    "parameters": "model.parameters()",
    "zero": "optimizer.zero_grad()",
    "spoil": "pass",
}
FAULTS = {
    "a product of a backward pass halved": {"layer": "Faulty(64, 64)"},
    "a layer missing from the optimizer": {"parameters": "[*model[0].parameters(), *model[4].parameters()]"},
    "gradients not set to zero": {"zero": "pass"},
    "a gradient scaled before the step": {"spoil": "model[2].weight.grad.mul_(0.5)"},
    "labels that belong to other inputs": {"data": "y = y.roll(1)"},
    "a layer that is off": {"start": "nn.init.constant_(model[2].bias, -10.0)"},
    "a matrix of rank one": {
        "start": "model[2].weight.data = torch.outer(model[2].bias, torch.ones(64)).detach().clone()"
    },
}
STEPS, SEEDS, ROOM = 60, 8, 2.0
TOOL = {
    "tool_begin": "tool.begin(model, optimizer, X, y)",
    "tool_before": "tool.before(step)",
    "tool_after": "tool.after(step, model)",
    "tool_end": "tool.end(model, X, y)",
}
ALONE = dict.fromkeys(TOOL, "pass")


class Tool:
    """A tool beside a training: its figures by name, in the order of the steps, its alarms and its notes."""

    def __init__(self):
        self.figures, self.alarms, self.notes = defaultdict(list), [], []

    def begin(self, model, optimizer, X, y):
        """Before the first step."""

    def before(self, step):
        """Before each step."""

    def after(self, step, model):
        """After each step."""

    def end(self, model, X, y):
        """After the last step."""


class Equipoise(Tool):
    def begin(self, model, optimizer, X, y):
        import equipoise as eq

        observe = [eq.Spectrum(), eq.Alignment(), eq.Drift(), eq.Residual(), eq.Activity(X[:200]), eq.GradientNorm()]
        self.watch = eq.watch(model, optimizer, every=10, observe=observe, quiet=True)
        self.log = self.watch.__enter__()

    def end(self, model, X, y):
        self.watch.__exit__(None, None, None)
        self.alarms = [f"{alarm.kind}: {alarm.place}" for alarm in self.log.alarms]
        self.notes = [note.partition(": ")[2] for note in self.log.notes]
        for row in self.log.table().itertuples():
            if row.observer != "watch":
                self.figures[row.place, row.quantity].append(row.value)


class Gradcheck(Tool):
    """Of the loss in float64, for all parameters at once (`fast_mode`)."""

    def end(self, model, X, y):
        names, values = zip(
            *((n, p.detach().double().requires_grad_()) for n, p in model.named_parameters()), strict=True
        )

        def loss(*given):
            return torch.nn.functional.cross_entropy(
                torch.func.functional_call(model, dict(zip(names, given, strict=True)), (X[:8].double(),)), y[:8]
            )

        try:
            torch.autograd.gradcheck(loss, values, fast_mode=True)
        except RuntimeError as error:
            self.alarms = [str(error).splitlines()[0]]


class WeightWatcher(Tool):
    def end(self, model, X, y):
        import weightwatcher

        details = weightwatcher.WeightWatcher(model=model).analyze(min_evals=10)
        for row in details.to_dict("records"):
            for name in ("alpha", "stable_rank", "log_spectral_norm", "num_spikes", "D"):
                if isinstance(row.get(name), float):
                    self.figures[row["longname"], name].append(row[name])
            if row.get("warning"):
                self.alarms.append(f"{row['longname']}: {row['warning']}")


class Delve(Tool):
    def begin(self, model, optimizer, X, y):
        from delve import SaturationTracker

        self.folder = tempfile.TemporaryDirectory()
        self.tracker = SaturationTracker(
            self.folder.name, save_to="csv", modules=model, stats=["lsat", "idim"], device="cpu"
        )

    def after(self, step, model):
        if step % 10 == 9:
            self.tracker.add_saturations()

    def end(self, model, X, y):
        import pandas as pd

        self.tracker.close()
        for path in Path(self.folder.name).parent.glob(f"{Path(self.folder.name).name}*.csv"):
            self._read(pd.read_csv(path, sep=None, engine="python"))
        for path in Path(self.folder.name).rglob("*.csv"):
            self._read(pd.read_csv(path, sep=None, engine="python"))

    def _read(self, table):
        for name in table.select_dtypes("number").columns:
            self.figures[name] += table[name].tolist()


class ModuleMonitor(Tool):
    def begin(self, model, optimizer, X, y):
        from torch_module_monitor import ModuleMonitor as Monitor

        self.monitor = Monitor(monitor_step_fn=lambda step: step % 10 == 9)
        self.monitor.set_module(model)
        size = lambda tensor: tensor.float().norm()  # noqa: E731
        self.monitor.add_activation_metric("norm", lambda tensor: tensor.float().norm(dim=-1).mean())
        self.monitor.add_parameter_metric("norm", size)
        self.monitor.add_gradient_metric("norm", size)
        self.model = model

    def before(self, step):
        self.monitor.begin_step(step)

    def after(self, step, model):
        self.monitor.monitor_parameters()
        self.monitor.monitor_gradients()
        self.monitor.end_step()
        for name, value in (self.monitor.get_step_metrics() or {}).items() if step % 10 == 9 else ():
            self.figures[name].append(float(value))


class WandbWatch(Tool):
    """Of each histogram of weights and gradients its ends, mean and spread, in an offline run."""

    def begin(self, model, optimizer, X, y):
        import wandb
        from wandb.sdk import wandb_watch

        self.folder = tempfile.TemporaryDirectory()
        quiet = wandb.Settings(silent=True, console="off")
        self.run = wandb.init(mode="offline", dir=self.folder.name, settings=quiet)
        log = self.run._log

        def keep(data, *given, **named):
            for name, histogram in data.items():
                if isinstance(histogram, wandb.Histogram):
                    self._read(name, torch.tensor(histogram.bins), torch.tensor(histogram.histogram))
            return log(data, *given, **named)

        self.run._log = keep
        wandb_watch._global_watch_idx = 0  # names do not begin with the number of models watched so far
        self.run.watch(model, log="all", log_freq=10)

    def after(self, step, model):
        self.run.log({"step": step})

    def end(self, model, X, y):
        self.run.finish()

    def _read(self, name, edges, counts):
        middles, shares = (edges[1:] + edges[:-1]).double() / 2, counts.double() / counts.sum()
        mean = (middles * shares).sum()
        spread = ((middles - mean).square() * shares).sum().sqrt()
        for quantity, value in (("least", edges[0]), ("largest", edges[-1]), ("mean", mean), ("spread", spread)):
            self.figures[name, quantity].append(float(value))


TOOLS = {
    "equipoise": (Equipoise, "equipoise"),
    "gradcheck": (Gradcheck, "torch"),
    "WeightWatcher": (WeightWatcher, "weightwatcher"),
    "delve": (Delve, "delve"),
    "module-monitor": (ModuleMonitor, "torch_module_monitor"),
    "wandb.watch": (WandbWatch, "wandb"),
}


def script(fault, seed, hooks):
    return TRAINING.format(**(SOUND | fault | hooks), seed=seed, steps=STEPS)


def trained(make, fault, seed):
    """A tool after a training, and how long it took."""
    tool = make()
    begun = time.perf_counter()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        exec(compile(script(fault, seed, TOOL), "training", "exec"), {"tool": tool, "__name__": "training"})
    return tool, time.perf_counter() - begun


def ranges(tools):
    """By figure, the least and the largest value of sound runs, by snapshot."""
    names = set.intersection(*(set(tool.figures) for tool in tools)) if tools else set()
    stacked = {name: torch.tensor([tool.figures[name] for tool in tools]).double() for name in names}
    return {name: (values.min(0).values, values.max(0).values) for name, values in stacked.items()}


def outside(tool, found):
    """The figures that leave the range of the sound runs, widened by `ROOM` times its width."""
    strange = []
    for name, (low, high) in found.items():
        values = torch.tensor(tool.figures.get(name, [])).double()
        room = ROOM * (high - low) + 1e-12
        if values.shape != low.shape or not bool(((values >= low - room) & (values <= high + room)).all()):
            strange.append(name)
    return strange


def compared(name, make):
    sound = [trained(make, {}, seed) for seed in range(SEEDS)]
    found = ranges([tool for tool, _ in sound])
    told = {"sound, another seed": trained(make, {}, SEEDS)[0]}
    told |= {fault: trained(make, change, SEEDS)[0] for fault, change in FAULTS.items()}
    plain = min(trained(Tool, {}, seed)[1] for seed in range(SEEDS))
    row = {"tool": name, "figures": len(found), "times": min(seconds for _, seconds in sound) / plain}
    usual = {words for tool, _ in sound for words in (*tool.alarms, *tool.notes)}
    for fault, tool in told.items():
        alarms, notes = ([words for words in said if words not in usual] for said in (tool.alarms, tool.notes))
        row[fault] = {"alarms": alarms, "notes": notes, "figures": len(outside(tool, found))}
    row["said of sound runs"] = sorted(usual)
    return row


def traincheck():
    """Invariants learned from one sound run, checked on another and on each fault, by the tool's commands."""
    folder = Path(tempfile.mkdtemp())
    commands = Path(sys.executable).parent

    def call(command, *arguments):
        words = [str(commands / f"traincheck-{command}"), *map(str, arguments)]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=900)
        if done.returncode:
            raise RuntimeError(f"{command}: {(done.stderr or done.stdout)[-400:]}")
        return done.stdout + done.stderr

    def collected(name, fault, seed, *more):
        path = folder / f"{name}.py"
        path.write_text(script(fault, seed, ALONE))
        begun = time.perf_counter()
        call("collect", "--pyscript", path, "--models-to-track", "model", "--output-dir", folder / name, *more)
        return time.perf_counter() - begun

    seconds = collected("reference", {}, 0)
    call("infer", "-f", folder / "reference", "-o", folder / "invariants.json")
    learned = sum(1 for line in (folder / "invariants.json").read_text().splitlines() if line.strip())
    row = {"tool": "TrainCheck", "figures": learned, "seconds of one traced run": seconds}
    for number, (fault, change) in enumerate(({"sound, another seed": {}} | FAULTS).items()):
        name = f"target{number}"
        collected(name, change, SEEDS, "--invariants", folder / "invariants.json")
        said = call("check", "-f", folder / name, "-i", folder / "invariants.json", "-o", folder / f"{name}_said")
        failed = [path for path in (folder / f"{name}_said").rglob("failed*.log") if path.stat().st_size]
        count = sum(path.read_text().count('"check_passed": false') or 1 for path in failed)
        row[fault] = {"alarms": [], "violated": count, "said": said[-300:]}
        print(json.dumps({fault: row[fault]}), flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", nargs="*", default=[*TOOLS, "TrainCheck"])
    asked = parser.parse_args().tools
    torch.set_num_threads(1)
    rows = [compared(name, make) for name, (make, module) in TOOLS.items() if name in asked and find_spec(module)]
    if "TrainCheck" in asked and find_spec("traincheck"):
        rows.append(traincheck())
    for row in rows:
        print(json.dumps(row))
    print(f"\n| fault | {' | '.join(row['tool'] for row in rows)} |\n|---|{'---|' * len(rows)}")
    print(f"| figures recorded | {' | '.join(str(row['figures'] or '–') for row in rows)} |")
    for fault in ("sound, another seed", *FAULTS):
        print(f"| {fault} | {' | '.join(_cell(row[fault]) for row in rows)} |")
    print("\ntorch", version("torch"))


def _cell(found):
    parts = (
        ["alarm"] * bool(found["alarms"])
        + ["note"] * bool(found.get("notes"))
        + [f"{found['figures']} figures"] * bool(found.get("figures"))
    )
    return ", ".join(parts) or "–"


if __name__ == "__main__":
    main()
