"""Sweeps: every setting with every seed, in processes of one's own and on real local clusters."""

import pytest
import torch

import equipoise as eq
from equipoise.errors import InputError

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
    assert len(list(out.iterdir())) == 4


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the cluster's own sockets
def test_a_local_ray_cluster(tmp_path):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        check(eq.sweep(both_losses(), seeds=[0, 1], out=tmp_path, jobs=2, backend="ray"), tmp_path)
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the cluster's own sockets
def test_a_local_dask_cluster(tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        check(eq.sweep(both_losses(), seeds=[0, 1], out=tmp_path, jobs=2, backend="dask"), tmp_path)


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
