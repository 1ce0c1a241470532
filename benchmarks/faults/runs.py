"""Faults of run folders: flows killed at random instants, and folders mutated at random.

    python benchmarks/faults/runs.py kills --count 1000
    python benchmarks/faults/runs.py kills --cold-cli --count 20
    python benchmarks/faults/runs.py folders --count 10000

`kills`: a flow is killed (SIGKILL) at a random instant, its resumption once more or twice more, and then it goes on to
its end, which must be that of an uninterrupted run: every weight and every record, bit for bit. With `--cold-cli` each
is a process of the command line, killed or interrupted, that goes on by the command that its own message gives.
`folders`: one file of a finished run is flipped, cut, emptied, removed, exchanged or edited; reading it must give the
same values or one line.
"""

import argparse
import copy
import json
import os
import random
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

import equipoise as eq
from equipoise.errors import EquipoiseError, InputError
from equipoise.integrate import recorder
from equipoise.integrate.loop import run_flow
from equipoise.integrate.manifest import Origin
from equipoise.store import MANIFEST, RESULT, Store
from equipoise.store.folder import LOCK

NETWORK = {"widths": [4, 4, 3, 1], "linear_tail": 2, "seed": 0}
TOTALS_EVERY = 25  # runs
MODES = {"cold": 1, "during resume": 2, "double": 3}  # kills of one run


# ---- kills ----


def flow(folder: Path) -> None:
    """A run of some thirty steps that commits each."""
    data = eq.data.load("separable", n=12, d=4)
    observers = [eq.Spectrum(), eq.Drift(), eq.Activity(), eq.Signs()]
    network, origin = eq.networks.mlp(**NETWORK), Origin(NETWORK, seed=0)
    run_flow(network, data, until=eq.Steps(30), observe=observers, out=folder, origin=origin)


def go_on(folder: Path) -> None:
    """As a user would: resume what is a run, start again what is none."""
    if (folder / "manifest.json").exists():
        eq.resume(folder)
    else:
        flow(folder)


def child(work: Callable[[Path], None], folder: Path, seconds: float | None, after: Path | None = None) -> float:
    """Do the work in a forked process, killed so many seconds after its start, or after a file is there."""
    begun = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        if seconds is not None:  # what it says before it is killed is of no interest
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            work(folder)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        while after is not None and not after.exists() and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.0005)
        begun = begun if after is None else time.perf_counter()
        while time.perf_counter() - begun < seconds and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.0005)
        with suppress(ProcessLookupError, ChildProcessError):  # it may have ended
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return time.perf_counter() - begun
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"the run in {folder} could not go on: status {status}")
    return time.perf_counter() - begun


def end(folder: Path) -> tuple:
    """Everything of a finished run that does not depend on the clock."""
    with Store.open(folder) as store:
        result = {name: value for name, value in (store.result() or {}).items() if name != "seconds"}
        weights = {name: store.load_weights(name)[0] for name in store.weights()}
        return store.table(), weights, result, store.manifest


def same(found: tuple, whole: tuple) -> bool:
    table, weights, result, manifest = found
    return (
        table.equals(whole[0])
        and result == whole[2]
        and manifest == whole[3]
        and weights.keys() == whole[1].keys()
        and all(torch.equal(each[key], whole[1][name][key]) for name, each in weights.items() for key in each)
    )


def kills(count: int, seed: int) -> bool:
    """The table of `count` runs; whether all ended as they should."""
    torch.set_num_threads(1)  # a forked child has no thread pool
    recorder.CHECKPOINT_SECONDS = 0.0
    draw, place = random.Random(seed), Path(tempfile.mkdtemp())
    flow(place / "whole")  # here, so that children find everything imported
    seconds = child(flow, place / "again", None)
    whole, found = end(place / "whole"), Counter()
    assert same(end(place / "again"), whole)
    for number in range(count):
        folder, mode = place / f"{number}", list(MODES)[number % 3]
        steps: list[str] = []
        try:
            for _ in range(MODES[mode]):
                if draw.random() < 0.3:
                    child(go_on, folder, draw.uniform(0, seconds))
                else:  # most instants lie before the folder is there: go for the others
                    child(go_on, folder, draw.uniform(0, 0.6 * seconds), folder / draw.choice([LOCK, MANIFEST]))
                found["kills"] += 1
                steps.append(state(folder))
            child(go_on, folder, None)
            good = same(end(folder), whole)
        except (RuntimeError, EquipoiseError) as error:
            good = False
            print(error)
        found[mode, good] += 1
        found["killed", steps[0]] += 1
        if good:
            shutil.rmtree(folder)
        else:
            print(f"run {number} ({mode}) differs, killed at {steps}: {folder}")
        if (number + 1) % TOTALS_EVERY == 0:  # a campaign that is stopped leaves these
            print(f"so far {kill_totals(found)}", file=sys.stderr, flush=True)
    print(f"| kills | runs | ends bit-identical | others |\n|---|---|---|---|\n| all: {kill_totals(found)} |")
    for mode in MODES:
        print(f"| {mode} | {found[mode, True] + found[mode, False]} | {found[mode, True]} | {found[mode, False]} |")
    print("first kill found:", {key[1]: value for key, value in found.items() if key[0] == "killed"})
    return not any(found[mode, False] for mode in MODES)


def kill_totals(found: Counter) -> str:
    """The kills, the runs, the ends that were bit-identical, and the others."""
    good, bad = (sum(found[mode, verdict] for mode in MODES) for verdict in (True, False))
    return f"{found['kills']} | {good + bad} | {good} | {bad}"


def state(folder: Path) -> str:
    if not folder.exists():
        return "no folder"
    if not (folder / "manifest.json").exists():
        return "no manifest yet"
    if (folder / "result.json").exists():
        return "finished"
    with Store.open(folder) as store:
        return "at a step" if store.checkpoint() else "no step yet"


# ---- cold kills of the command line ----

COMMAND = ["flow", "--data", "separable", "--n", "20", "--widths", "4,3", "--linear-tail", "1", "--until", "steps=60"]
COMMAND += ["--out", "run", "--quiet"]
SIGNALS = {signal.SIGKILL: "killed", signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def cold_kills(count: int, seed: int) -> bool:
    """The table of `count` runs, each stopped once or twice by a signal; whether all ended as they should."""
    draw, place, found = random.Random(seed), Path(tempfile.mkdtemp()), Counter()
    stops: dict[str, int] = {}
    (place / "whole").mkdir()
    begun = time.perf_counter()
    started = _cold(COMMAND, place / "whole")
    ready = _wait_for(started, place / "whole" / "run" / MANIFEST, 600.0) - begun
    started.communicate()
    seconds = time.perf_counter() - begun - ready
    whole = end(place / "whole" / "run")
    for number in range(count):
        folder = place / f"{number}"
        folder.mkdir()
        told: list[str] = []
        try:
            command = COMMAND
            for _ in range(1 + number % 2):
                process, stop = _cold(command, folder), draw.choice(list(SIGNALS))
                if draw.random() < 0.2:  # while it is starting
                    _wait_for(process, folder / "nothing", draw.uniform(0, ready))
                else:
                    _wait_for(process, folder / "run" / MANIFEST, 600.0)
                    _wait_for(process, folder / "nothing", draw.uniform(0, seconds))
                process.send_signal(stop)
                _, said = process.communicate()
                told.append(f"{SIGNALS[stop]}, {state(folder / 'run')}")
                found["stopped", told[-1]] += 1
                command = _next(command, said, folder)
            ended = _cold(command, folder)
            _, said = ended.communicate()
            good = ended.returncode in (0, 1) and same(end(folder / "run"), whole)
        except (RuntimeError, EquipoiseError) as error:
            good, said = False, str(error)
        found[good] += 1
        verdict = "bit-identical" if good else f"differs: {said} {folder}"
        stops = {key[1]: value for key, value in found.items() if isinstance(key, tuple)}
        total = f"so far {found[True]} bit-identical after {sum(stops.values())} signals, {found[False]} others"
        print(f"run {number}, {'; then '.join(told)}: {verdict}; {total}", flush=True)
    print("| cold runs | signals | ends bit-identical | others |\n|---|---|---|---|")
    print(f"| {count} | {sum(stops.values())} | {found[True]} | {found[False]} |\nfound:", stops)
    return found[True] == count


def _cold(command: list[str], folder: Path) -> subprocess.Popen:
    asked = [sys.executable, "-m", "equipoise", *command]
    return subprocess.Popen(asked, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(process: subprocess.Popen, file: Path, seconds: float) -> float:
    """Until the file is there, the process has ended, or so long; the time at which."""
    until = time.perf_counter() + seconds
    while not file.exists() and process.poll() is None and time.perf_counter() < until:
        time.sleep(0.002)
    return time.perf_counter()


def _next(command: list[str], said: str, folder: Path) -> list[str]:
    """What the message says to type; where there is none, the same command again, and what its refusal says."""
    run = folder / "run"
    if (run / RESULT).exists():
        return ["certify", "run"]
    if not (run / MANIFEST).exists():
        return command
    if found := re.search(r"go on with equipoise (flow --resume .+), or eq\.resume", said):
        return shlex.split(found[1])
    _, said = _cold(COMMAND, folder).communicate()
    if not (found := re.search(r"(--resume .+), or choose another", said)):
        raise RuntimeError(f"no way on: {said}")
    return ["flow", *shlex.split(found[1])]


# ---- folders ----


def contents(folder: Path) -> str:
    """All values of a run folder, as text."""
    with Store.open(folder) as store:
        weights = {
            name: {key: each.tolist() for key, each in store.load_weights(name)[0].items()} for name in store.weights()
        }
        point = store.checkpoint()
        last = (
            None
            if point is None
            else (point.step, {k: each.tolist() for k, each in point.tensors.items()}, point.metadata)
        )
        if store.result() is None:
            raise InputError(expected="a finished run", found=f"{folder} unfinished", remedy="resume it")
        return repr((store.manifest, store.table().values.tolist(), last, weights, store.result()))


def mutated(folder: Path, other: Path, draw: random.Random) -> str:
    """Change one file of a run folder; what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    file = draw.choice(files)
    content = file.read_bytes()
    kind = draw.choice(["flip", "flip", "flip", "cut", "zeros", "remove", "exchange", "another run's", "edit", "edit"])
    if kind == "flip":
        spot = draw.randrange(len(content))
        file.write_bytes(content[:spot] + bytes([content[spot] ^ (1 << draw.randrange(8))]) + content[spot + 1 :])
    elif kind == "cut":
        file.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "zeros":
        spot = draw.randrange(len(content))
        file.write_bytes(content[:spot] + bytes(min(64, len(content) - spot)) + content[spot + 64 :])
    elif kind == "remove":
        file.unlink()
    elif kind == "exchange":
        same_kind = [path for path in files if path.suffix == file.suffix]
        file.write_bytes(draw.choice(same_kind).read_bytes())
    elif kind == "another run's":
        file.write_bytes((other / file.relative_to(folder)).read_bytes())
    elif file.suffix == ".json":
        edited(file, draw)
    elif file.suffix == ".sqlite":
        statement(file, draw)
    return f"{kind} {file.name}"


def edited(file: Path, draw: random.Random) -> None:
    """Another value under one key of a JSON file."""
    fields = json.loads(file.read_text())
    key = draw.choice(list(fields))
    inner = fields[key]
    if isinstance(inner, dict) and inner and draw.random() < 0.7:
        fields = {**fields, key: {**inner, draw.choice(list(inner)): draw.choice([None, 0, "logistic", [1.0], {}])}}
    else:
        fields = {**fields, key: draw.choice([None, 1, "reached", -1e6, [], {}])}
    file.write_text(json.dumps(fields))


def statement(file: Path, draw: random.Random) -> None:
    """One row changed, removed or repeated."""
    table = draw.choice(["records", "pages", "checkpoints"])
    with sqlite3.connect(file) as connection:
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        where = f"rowid = (SELECT rowid FROM {table} ORDER BY random() LIMIT 1)"
        column = draw.choice(columns)
        try:
            if draw.random() < 0.3:
                connection.execute(f"DELETE FROM {table} WHERE {where}")
            else:
                connection.execute(f"UPDATE OR IGNORE {table} SET {column} = {column} + 1 WHERE {where}")
        except sqlite3.Error:
            pass
    connection.close()


def folders(count: int, seed: int) -> bool:
    """The table of `count` mutated folders; whether none gave other values without a word."""
    torch.set_num_threads(1)
    draw, place = random.Random(seed), Path(tempfile.mkdtemp())
    network = eq.networks.mlp(**NETWORK)
    other = eq.networks.mlp(**{**NETWORK, "seed": 1})
    data = eq.data.load("separable", n=12, d=4)
    for name, model in (("whole", network), ("other", other)):
        run_flow(copy.deepcopy(model), data, until=eq.Steps(5), out=place / name, origin=Origin(NETWORK))
    whole, found, work = contents(place / "whole"), Counter(), place / "work"
    for number in range(count):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(place / "whole", work)
        what = mutated(work, place / "other", draw)
        kind = what.split(" ")[0]
        try:
            verdict = "unchanged" if contents(work) == whole else "different"
        except EquipoiseError as error:
            verdict = "refused" if "\n" not in str(error) and str(work) in str(error) else "unclear"
        except Exception as error:
            verdict = "traceback"
            print(f"mutation {number} ({what}): {type(error).__name__}: {error}")
        if verdict in ("different", "unclear"):
            print(f"mutation {number} ({what}): {verdict}")
        found[kind, verdict] += 1
    verdicts = ["refused", "unchanged", "different", "unclear", "traceback"]
    print(f"| mutation | {' | '.join(verdicts)} |\n|{'---|' * (len(verdicts) + 1)}")
    for kind in [*sorted({kind for kind, _ in found}), None]:
        row = [
            sum(n for key, n in found.items() if key[1] == verdict and kind in (None, key[0])) for verdict in verdicts
        ]
        print(f"| {kind or 'all'} | {' | '.join(map(str, row))} |")
    return not any(n for (_, verdict), n in found.items() if verdict in verdicts[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("campaign", choices=["kills", "folders"])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cold-cli", action="store_true", help="kill processes of the command line")
    asked = parser.parse_args()
    if asked.campaign == "kills" and asked.cold_cli:
        sys.exit(0 if cold_kills(asked.count, asked.seed) else 1)
    sys.exit(0 if {"kills": kills, "folders": folders}[asked.campaign](asked.count, asked.seed) else 1)


if __name__ == "__main__":
    main()
