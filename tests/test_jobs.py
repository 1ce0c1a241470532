"""Jobs in processes and on real local clusters, some of whose workers are killed."""

import os

import pytest

from equipoise.errors import InputError, WorkerDied
from equipoise.jobs import run_jobs
from helpers.clusters import cluster

CLUSTERS = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",  # the clusters' own sockets
    "ignore:A worker stopped while some jobs:UserWarning",
)

OTHERS_SLOW = ["loky", pytest.param("dask", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.slow)]


def mortal(folder, deaths):
    """Squares; the worker that is to work out 1² is killed so many times. Pickled by value: workers import no tests."""

    def square(number):
        import pathlib
        import signal

        died = pathlib.Path(folder, "died")
        if number == 1 and (so_far := len(died.read_text()) if died.exists() else 0) < deaths:
            died.write_text("x" * (so_far + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2

    return square


@CLUSTERS
@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_the_job_of_a_worker_that_is_killed_is_run_again(backend, tmp_path):
    with cluster(backend):
        found = sorted(run_jobs(mortal(tmp_path, 1), range(5), at_once=2, backend=backend))
    assert found == [(number, number**2) for number in range(5)]
    assert (tmp_path / "died").read_text() == "x"


@CLUSTERS
@pytest.mark.parametrize("backend", OTHERS_SLOW)
def test_a_job_that_kills_every_worker_is_given_up_and_the_others_are_kept(backend, tmp_path):
    found = []
    at_once = 2 if backend == "loky" else 1  # one alone is no worker there
    with cluster(backend), pytest.raises(WorkerDied, match=r"died.*what is finished is kept") as raised:
        found.extend(run_jobs(mortal(tmp_path, 99), [0, 2, 1], at_once=at_once, backend=backend))
    assert (0, 0) in found
    assert "\n" not in str(raised.value)
    assert 4 <= len((tmp_path / "died").read_text()) <= 8


@CLUSTERS
@pytest.mark.parametrize("backend", OTHERS_SLOW)
def test_what_a_job_raises_is_raised(backend):
    def work(number):
        raise ZeroDivisionError(number)

    with cluster(backend), pytest.raises(ZeroDivisionError):
        list(run_jobs(work, [3], at_once=2, backend=backend))


@CLUSTERS
@pytest.mark.slow
def test_a_cluster_is_started_where_there_is_none():
    assert sorted(run_jobs(abs, [-2, -3], at_once=1, backend="dask")) == [(0, 2), (1, 3)]


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match="a backend among loky, ray, dask; found 'slurm'"):
        run_jobs(abs, [1], backend="slurm")
