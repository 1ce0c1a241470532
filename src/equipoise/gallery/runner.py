"""Running claims over data sets and seeds: a case is one job, and trains each network once for all its claims."""

import os
import time
from collections.abc import Callable, Sequence

import torch
from joblib import Parallel, delayed

from equipoise.arguments import checked, require_integer, require_runs
from equipoise.errors import InputError
from equipoise.gallery.case import DATA, EXAMPLES, Case
from equipoise.gallery.experiment import Experiment, Measurement
from equipoise.gallery.registry import CLAIMS, named
from equipoise.gallery.results import Results, Row, row

Job = tuple[str, int, list[str]]  # data set, seed, names of claims


@checked
def run(
    *names: str,
    data: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    examples: int = EXAMPLES,
    jobs: int = 2,
    out: str | os.PathLike[str] | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Results:
    """Measure the named claims, or all, on each of their data sets with each of their seeds.

    `data` and `seeds` replace those of the claims; `examples` is the size of a training set; `jobs` processes work side
    by side; `out` names a folder for `gallery.json` and `gallery.csv`, written anew after every case;
    `callback(done, all)` is called after each case. A measurement that raises is a row that fails, with what it
    raised as its remark: no run is lost.

    >>> results = run("two-points", data=["separable"], seeds=[0], jobs=1)
    >>> results.table[["claim", "data", "seed", "verdict"]].values.tolist()
    [['two-points', 'separable', 0, 'holds']]

    Raises `InputError` for an unknown claim or data set, negative seeds, and no processes.
    """
    require_runs(seeds or (), jobs)
    require_integer("examples", examples, "pass examples=100", least=2)
    begun = time.perf_counter()
    planned = _jobs(named(names), data, seeds)
    rows: list[Row] = []
    work = Parallel(n_jobs=min(jobs, len(planned)), return_as="generator_unordered")
    for done, found in enumerate(work(delayed(_measured)(*job, examples) for job in planned), 1):
        rows += found or ()
        if callback is not None:
            callback(done, len(planned))
        if out is not None:
            _sorted(rows, planned, time.perf_counter() - begun).save(out)
    return _sorted(rows, planned, time.perf_counter() - begun)


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


def _measured(data: str, seed: int, names: list[str], examples: int) -> list[Row]:
    """All the rows of one case."""
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
