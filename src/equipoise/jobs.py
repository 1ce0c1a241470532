"""Jobs side by side, in processes here or on a Ray or Dask cluster; one whose worker dies is run again."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TypeVar, cast

import joblib

from equipoise.errors import InputError, WorkerDied

Job = TypeVar("Job")
Result = TypeVar("Result")
Finished = tuple[int, Result]  # the number of a job, and what it returned

BACKENDS = ("loky", "ray", "dask")
DEATHS = 3
"""Workers that may die over one job before it is given up: a job that needs more memory than there is kills each."""


def run_jobs(
    work: Callable[[Job], Result], jobs: Sequence[Job], *, at_once: int = -1, backend: str = "loky"
) -> Iterator[Finished]:
    """Run jobs side by side.

    Those of a worker that dies are run again, by others, at most `DEATHS` times in a row.

    Args:
        work: called with each job, on a worker.
        jobs: to be sent to workers, by pickle.
        at_once: how many are run at a time; -1 for as many as there are cores.
        backend: `loky` for processes here; `ray` or `dask` for a cluster, the one that is connected to or a local one.

    Returns:
        The number of each job and its result, as soon as it is there.

    Raises:
        InputError: for an unknown backend, and one that is not installed.
        WorkerDied: as it goes, for a job whose workers die; what a job raises is raised too.

    >>> sorted(run_jobs(abs, [-1, 2], at_once=1))
    [(0, 1), (1, 2)]
    """
    if backend not in BACKENDS:
        raise InputError(
            expected=f"a backend among {', '.join(BACKENDS)}", found=repr(backend), remedy='pass backend="loky"'
        )
    if (backend == "ray" and find_spec("ray") is None) or (backend == "dask" and find_spec("distributed") is None):
        raise InputError(
            expected=f"the {backend} backend", found=f"no {backend} here", remedy="pip install 'equipoise[sweep]'"
        )
    run = {"loky": _in_processes, "ray": _on_ray, "dask": _on_dask}[backend]
    return run(work, dict(enumerate(jobs)), at_once)


def _in_processes(work: Callable[[Job], Result], ahead: Mapping[int, Job], at_once: int) -> Iterator[Finished]:
    """By joblib; a worker that dies takes all that are under way with it, so that these are run again."""
    rest, deaths = dict(ahead), 0
    while rest:
        parallel = joblib.Parallel(n_jobs=at_once, backend="loky", return_as="generator_unordered")
        tasks = [joblib.delayed(_numbered)(work, *job) for job in rest.items()]
        try:
            for number, result in cast("Iterator[Finished]", parallel(tasks)):
                del rest[number]
                deaths = 0
                yield number, result
        except BrokenProcessPool:
            deaths += 1
            if deaths > DEATHS:
                raise _died(f"{deaths} worker processes in a row that died, {len(rest)} jobs ahead") from None


def _on_ray(work: Callable[[Job], Result], ahead: Mapping[int, Job], at_once: int) -> Iterator[Finished]:
    """As tasks, which Ray runs again where a worker or a machine is lost."""
    import ray
    from ray.exceptions import WorkerCrashedError

    with ExitStack() as stack:
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
            stack.callback(ray.shutdown)
        task = ray.remote(max_retries=DEATHS)(_numbered)
        waiting, under_way = iter(ahead.items()), dict[ray.ObjectRef, int]()
        stack.callback(lambda: [ray.cancel(each) for each in under_way])
        limit = len(ahead) if at_once < 0 else at_once
        while True:
            for number, job in _up_to(waiting, limit - len(under_way)):
                under_way[task.remote(work, number, job)] = number
            if not under_way:
                return
            (done,), _ = ray.wait([*under_way], num_returns=1)
            number = under_way.pop(done)
            try:
                finished = ray.get(done)
            except WorkerCrashedError:
                raise _died(f"{DEATHS + 1} workers that died over job {number}") from None
            yield finished


def _on_dask(work: Callable[[Job], Result], ahead: Mapping[int, Job], at_once: int) -> Iterator[Finished]:
    """As tasks, which Dask runs again where a worker is lost, of the client that there is or of a local cluster."""
    from distributed import Client, KilledWorker, as_completed, default_client

    with ExitStack() as stack:
        try:
            client = default_client()
        except ValueError:
            count = None if at_once < 0 else at_once
            client = stack.enter_context(Client(n_workers=count, threads_per_worker=1, dashboard_address=None))
        waiting = iter(ahead.items())
        submit = lambda job: client.submit(_numbered, work, *job, pure=False)  # noqa: E731
        done = as_completed([submit(job) for job in _up_to(waiting, len(ahead) if at_once < 0 else at_once)])
        for future in done:
            try:
                finished = future.result()
            except KilledWorker as error:
                raise _died(f"workers that died, the last of them {error.last_worker}, over one job") from None
            for job in _up_to(waiting, 1):
                done.add(submit(job))
            yield finished


def _numbered(work: Callable[[Job], Result], number: int, job: Job) -> Finished:
    return number, work(job)


def _up_to(waiting: Iterator[tuple[int, Job]], count: int) -> Iterable[tuple[int, Job]]:
    """The next jobs, `count` at most."""
    return [job for _, job in zip(range(count), waiting, strict=False)]


def _died(detail: str) -> WorkerDied:
    return WorkerDied(
        expected="workers that live as long as their jobs",
        found=f"{detail}: out of memory, or killed",
        remedy="what is finished is kept: type the same again, with fewer jobs side by side",
    )
