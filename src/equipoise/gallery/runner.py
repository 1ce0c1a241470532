"""Running claims over data sets and seeds: a case is one job, and trains each network once for all its claims."""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from equipoise.arguments import checked, require_integer, require_runs
from equipoise.errors import InputError
from equipoise.gallery.case import DATA, EXAMPLES, Case
from equipoise.gallery.experiment import Experiment, Measurement
from equipoise.gallery.registry import CLAIMS, named
from equipoise.gallery.results import FILE, Results, Row, load, row
from equipoise.jobs import run_jobs

Job = tuple[str, int, list[str]]  # data set, seed, names of claims


@checked
def run(
    *names: str,
    data: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    examples: int = EXAMPLES,
    jobs: int = 2,
    backend: str = "loky",
    resume: bool = False,
    out: str | os.PathLike[str] | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Results:
    """Measure the named claims, or all, on each of their data sets with each of their seeds.

    `data` and `seeds` replace those of the claims; `examples` is the size of a training set; `jobs` processes work side
    by side, on the `backend` `loky` (processes here), `ray` or `dask` (a cluster), and those of a case whose worker
    dies are run again; `out` names a folder for `gallery.json` and `gallery.csv`, written anew after every case, so
    that they can be read meanwhile; `resume` leaves out the rows that it has. `callback(done, all)` is called after
    each case. A measurement that raises is a row that fails, with what it raised as its remark: no run is lost.

    >>> results = run("two-points", data=["separable"], seeds=[0], jobs=1)
    >>> results.table[["claim", "data", "seed", "verdict"]].values.tolist()
    [['two-points', 'separable', 0, 'holds']]

    Raises `InputError` for an unknown claim or data set, negative seeds, and no processes.
    """
    require_runs(seeds or (), jobs)
    require_integer("examples", examples, "pass examples=100", least=2)
    begun = time.perf_counter()
    cases = _jobs(named(names), data, seeds)
    known = load(out).rows if out is not None and resume and (Path(out) / FILE).exists() else []
    planned, rows = _left(cases, known)
    work = partial(_measured, examples=examples)
    found = run_jobs(work, planned, at_once=max(1, min(jobs, len(planned))), backend=backend)
    for done, (_, more) in enumerate(found, len(cases) - len(planned) + 1):
        rows += more
        if callback is not None:
            callback(done, len(cases))
        if out is not None:
            _sorted(rows, cases, time.perf_counter() - begun).save(out)
    return _sorted(rows, cases, time.perf_counter() - begun)


def _left(cases: list[Job], known: list[Row]) -> tuple[list[Job], list[Row]]:
    """The cases with the claims that are not known yet, and the rows of those that are."""
    measured = {(row["data"], row["seed"], row["claim"]): row for row in known}
    asked = [(data, seed, name) for data, seed, names in cases for name in names]
    left = [(data, seed, [each for each in names if (data, seed, each) not in measured]) for data, seed, names in cases]
    return [job for job in left if job[2]], [measured[each] for each in asked if each in measured]


def _sorted(rows: list[Row], planned: list[Job], seconds: float) -> Results:
    """The rows so far: claim by claim as the gallery has them, each by seed and data set."""
    cases = {job[:2]: place for place, job in enumerate(planned)}
    claims = {name: place for place, name in enumerate(CLAIMS)}
    return Results(sorted(rows, key=lambda row: (claims[row["claim"]], cases[row["data"], row["seed"]])), seconds)


def _jobs(claims: tuple[Experiment, ...], data: Sequence[str] | None, seeds: Sequence[int] | None) -> list[Job]:
    """A job for each case that some claim asks for, with the names of the claims that do."""
    unknown = sorted(set(data or ()) - set(DATA))
    if unknown:
        raise InputError(
            expected=f"data among {', '.join(DATA)}", found=", ".join(unknown), remedy="pass data=['digits']"
        )
    planned: dict[tuple[str, int], list[str]] = {}
    for claim in claims:
        for name in data or claim.data:
            for seed in seeds or claim.seeds:
                planned.setdefault((name, seed), []).append(claim.name)
    return [(*case, asked) for case, asked in sorted(planned.items(), key=lambda item: item[0][1])]


def _measured(job: Job, examples: int) -> list[Row]:
    """All the rows of one case."""
    data, seed, names = job
    torch.set_num_threads(1)  # small matrices, and a process for each core
    case, rows = Case(data, seed, examples), []
    for claim in named(tuple(names)):
        begun = time.perf_counter()
        try:
            measurement = claim.measure(case)
        except Exception as error:  # one broken run must not lose the hour of all others
            measurement = Measurement(float("nan"), remark=f"raised {type(error).__name__}: {error}")
        rows.append(row(claim, data, seed, measurement, time.perf_counter() - begun))
    return rows
