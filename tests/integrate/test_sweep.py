"""Sweeps: every setting with every seed, in processes of one's own and on real local clusters."""

import pandas as pd
import pytest
import torch

import equipoise as eq
from equipoise.errors import InputError
from helpers.clusters import a_worker_killed, cluster

SETTING = {
    "network": {"widths": [5, 6, 1], "linear_tail": 1},
    "data": {"name": "separable", "n": 20, "d": 5},
    "until": "steps=3",
}


def both_losses():
    return [{**SETTING, "loss": loss} for loss in ("exponential", "logistic")]


def check(table, out):
    assert list(table.columns[:2]) == ["loss", "seed"]
    assert table[["loss", "seed", "status", "steps"]].values.tolist() == [
        [loss, seed, "reached", 3] for loss in ("exponential", "logistic") for seed in (0, 1)
    ]
    run = eq.Run.load(table.folder[3])
    alone = eq.flow(
        eq.networks.mlp(**SETTING["network"], seed=1), eq.data.load(**SETTING["data"]), "logistic", until="steps=3"
    )
    assert all(torch.equal(run.final[name], weights) for name, weights in alone.final.items())
    assert len(list(out.iterdir())) == 5  # and the table


def test_local_processes_and_a_restart_that_skips_what_is_finished(tmp_path):
    told = []
    table = eq.sweep(both_losses(), seeds=[0, 1], out=tmp_path, jobs=2, callback=lambda *so_far: told.append(so_far))
    check(table, tmp_path)
    assert told[0] == (0, 4)
    assert told[-1] == (4, 4)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    unfinished = next(iter(stamps))
    unfinished.unlink()  # as if it had been killed
    told.clear()
    check(
        eq.sweep(both_losses(), seeds=[0, 1], out=tmp_path, jobs=1, callback=lambda *so_far: told.append(so_far)),
        tmp_path,
    )
    assert told == [(3, 4), (4, 4)]
    assert all((path.stat().st_mtime_ns == stamp) == (path != unfinished) for path, stamp in stamps.items())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the cluster's own sockets
@pytest.mark.filterwarnings("ignore:A worker stopped while some jobs:UserWarning")
@pytest.mark.parametrize(
    "backend", ["loky", pytest.param("ray", marks=pytest.mark.slow), pytest.param("dask", marks=pytest.mark.slow)]
)
def test_a_flow_whose_worker_is_killed_goes_on_elsewhere(backend, tmp_path):
    """The table grows meanwhile, and holds every flow once."""
    setting, rows = {**SETTING, "until": "steps=40"}, []

    def one_is_finished():
        if (tmp_path / "sweep.jsonl").exists():
            rows.append(len(pd.read_json(tmp_path / "sweep.jsonl", lines=True)))
        return bool(rows) and rows[-1] >= 1

    with cluster(backend), a_worker_killed(tmp_path, one_is_finished) as killed:
        table = eq.sweep([setting], seeds=range(4), out=tmp_path, jobs=2, backend=backend)
    assert len(killed) == 1
    assert rows == sorted(rows)
    assert 1 <= rows[-1] < 4
    assert table["status"].tolist() == ["reached"] * 4
    streamed = pd.read_json(tmp_path / "sweep.jsonl", lines=True).sort_values("seed", ignore_index=True)
    assert streamed[["seed", "status", "steps", "folder"]].equals(table[["seed", "status", "steps", "folder"]])
    for seed, folder in enumerate(table.folder):
        alone = eq.flow(
            eq.networks.mlp(**SETTING["network"], seed=seed), eq.data.load(**SETTING["data"]), until="steps=40"
        )
        assert all(torch.equal(eq.Run.load(folder).final[name], weights) for name, weights in alone.final.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the cluster's own sockets
@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_a_local_cluster(backend, tmp_path):
    with cluster(backend):
        check(eq.sweep(both_losses(), seeds=[0, 1], out=tmp_path, jobs=2, backend=backend), tmp_path)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ([{"network": {}}], {}, "settings with a network and data; found network"),
        ([SETTING], {"backend": "slurm"}, "a backend among loky, ray, dask; found 'slurm'"),
    ],
)
def test_senseless_sweeps_are_refused(tmp_path, settings, options, message):
    with pytest.raises(InputError, match=message):
        eq.sweep(settings, out=tmp_path, **options)
