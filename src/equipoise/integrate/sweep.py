"""Many flows at once: settings times seeds, on this machine or a cluster; what is finished is not run again."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from equipoise.arguments import checked, require_runs
from equipoise.data import load
from equipoise.errors import InputError
from equipoise.integrate.goals import Goal
from equipoise.integrate.loop import resume, run_flow
from equipoise.integrate.manifest import Origin, described
from equipoise.jobs import run_jobs
from equipoise.networks import mlp
from equipoise.store import MANIFEST, RESULT, Json, Store, append_json, finite, place

TABLE = "sweep.jsonl"
_FIGURES = ("status", "log_loss", "growth", "log_time", "time_error", "steps", "gradient_evaluations", "seconds")

Callback = Callable[[int, int], None]  # flows finished, flows in all


@dataclass(frozen=True)
class _Task:
    """One flow: a setting, a seed, and the folder it goes to."""

    setting: Json
    seed: int
    folder: Path


@checked
def sweep(
    settings: Iterable[Mapping[str, object]],
    seeds: Sequence[int] = (0,),
    *,
    out: str | Path,
    jobs: int = -1,
    backend: str = "loky",
    callback: Callback | None = None,
) -> pd.DataFrame:
    """Run every setting with every seed, and return one tidy table: a row for each flow.

    A setting has `network` (arguments of `eq.networks.mlp` but for the seed), `data` (a name, or arguments of
    `eq.data.load`), and any arguments of `eq.flow`: `loss`, `until`, `stepper`, `max_steps`, `observe`, `save_at`. The
    seed is that of the network. Columns: what differs between settings, `seed`, `folder`, and the figures of the run.

    Each flow has a folder of its own under `out`, named after its setting and seed; one that is finished is read, not
    run again, so that a sweep that was stopped goes on where it stopped. `jobs` run at a time (-1: one a core) in
    processes of joblib (`loky`), or on a `ray` or `dask` cluster that is connected to or that is started here; its
    machines share `out`. A flow whose worker dies goes on from its last checkpoint on another. `out/sweep.jsonl` has a
    line for each flow that is finished, added as it finishes: `pandas.read_json(path, lines=True)` reads it while the
    sweep runs. `callback` is called with the numbers of finished and of all flows.

    Raises `InputError` for invalid settings and for a backend that is not installed, and `WorkerDied` for a flow
    whose workers die again and again; what is finished is kept.

    >>> import tempfile
    >>> setting = {"network": {"widths": [5, 4, 1], "linear_tail": 1}, "data": {"name": "separable", "n": 20, "d": 5}}
    >>> table = sweep([{**setting, "until": "steps=2"}], seeds=[0, 1], out=tempfile.mkdtemp(), jobs=1)
    >>> table[["seed", "status", "steps"]].values.tolist()
    [[0, 'reached', 2], [1, 'reached', 2]]
    """
    require_runs(seeds, jobs)
    settings = [dict(setting) for setting in settings]
    for setting in settings:
        _check(setting)
    tasks = [_Task(setting, seed, Path(out) / _name(setting, seed)) for setting in settings for seed in seeds]
    ahead = [task for task in tasks if not _finished(task.folder)]
    done = len(tasks) - len(ahead)
    if callback is not None:
        callback(done, len(tasks))
    varied = [key for key in _keys(settings) if len({_text(setting.get(key)) for setting in settings}) > 1]
    path = Path(out) / TABLE
    _begin(path, [_row(task, varied) for task in tasks if task not in ahead])
    for finished, (number, _) in enumerate(run_jobs(_run, ahead, at_once=jobs, backend=backend), start=done + 1):
        append_json(path, _row(ahead[number], varied))
        if callback is not None:
            callback(finished, len(tasks))
    return pd.DataFrame([_row(task, varied) for task in tasks])


def _begin(path: Path, rows: Sequence[Json]) -> None:
    """Write the table anew with the rows that are known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place(path, "".join(json.dumps(finite(row)) + "\n" for row in rows).encode())


def _check(setting: Mapping[str, object]) -> None:
    if not {"network", "data"} <= set(setting):
        raise InputError(
            expected="settings with a network and data",
            found=f"{', '.join(setting) or 'nothing'}",
            remedy='pass {"network": {"widths": [64, 16, 1]}, "data": "digits", "until": "log_loss=-1e6"}',
        )


def _name(setting: Mapping[str, object], seed: int) -> str:
    digest = hashlib.sha256(_text(setting).encode()).hexdigest()[:10]
    return f"{digest}-seed{seed}"


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Goal):
        return value.describe()
    return str(value) if isinstance(value, Path) else described(value)


def _finished(folder: Path) -> bool:
    return (folder / RESULT).exists()


def _run(task: _Task) -> None:
    """One flow, into its folder; one that was interrupted goes on."""
    torch.set_num_threads(1)  # flows side by side: more threads would only wait for each other
    setting = dict(task.setting)
    network = {**setting.pop("network"), "seed": task.seed}
    data = setting.pop("data")
    source: Json = {"name": data} if isinstance(data, str) else data
    if (task.folder / MANIFEST).exists():
        resume(task.folder, observe=setting.get("observe"))
        return
    dataset = load(**source)
    run_flow(mlp(**network), dataset, out=task.folder, origin=Origin(network, task.seed), **setting)


def _keys(settings: Sequence[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(key for setting in settings for key in setting))


def _row(task: _Task, varied: Sequence[str]) -> Json:
    with Store.open(task.folder) as store:
        result = store.result() or {}
    differs = {key: _shown(task.setting.get(key)) for key in varied}
    return {**differs, "seed": task.seed, **{name: result.get(name) for name in _FIGURES}, "folder": str(task.folder)}


def _shown(value: object) -> object:
    return value if isinstance(value, str | int | float | type(None)) else _text(value)
