"""Running papers: every seed of every paper is one job, on this machine or on a cluster."""

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
from joblib import Parallel, delayed

from equipoise.arguments import checked, require_real, require_runs
from equipoise.gallery.literature.catalogue import catalogue, paper
from equipoise.gallery.literature.paper import PaperCase, failed_outcome
from equipoise.gallery.literature.records import PaperResults, PaperRow, paper_row, save_row
from equipoise.integrate.sweep import parallel_backend
from equipoise.store import finite


@checked
def run_papers(
    *keys: str,
    full: bool = False,
    seeds: Sequence[int] | None = None,
    jobs: int = 2,
    backend: str = "loky",
    minutes: float | None = None,
    out: str | os.PathLike[str] | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> PaperResults:
    """Run the papers of these keys, or all, with each of their seeds.

    Args:
        keys: of papers; `equipoise gallery papers` lists them.
        full: the papers' own settings, where they are larger than the quick ones.
        seeds: in place of the papers' own.
        jobs: cases side by side.
        backend: of joblib: `loky` for processes here, `ray` or `dask` for a cluster.
        minutes: after which the trainings of a case stop short; the row then has no premise, and says how far it came.
        out: a folder to which each row is added as soon as it is there, with its raw log.
        callback: called with the numbers of finished and of all cases.

    Returns:
        The rows. A case that raises is a row that differs, with what it raised as its remark.

    Raises:
        InputError: for an unknown key or backend, and a backend that is not installed.

    >>> results = run_papers("schechtman2025late", seeds=[])
    >>> results.rows
    ()
    """
    require_runs(seeds or (), jobs)
    if minutes is not None:
        require_real("minutes", minutes, "pass minutes=10", above=0)
    asked = [paper(key) for key in keys or catalogue()]
    planned = [(each.key, full, seed, minutes) for each in asked for seed in (each.seeds if seeds is None else seeds)]
    rows: list[PaperRow] = []
    with parallel_backend(backend, jobs):
        work = Parallel(
            n_jobs=min(jobs, max(len(planned), 1)), return_as="generator_unordered" if backend == "loky" else "list"
        )
        found = cast("Iterable[tuple[PaperRow, str]]", work(delayed(_measured)(*job) for job in planned) or ())
        for done, (row, log) in enumerate(found, 1):
            rows.append(row if out is None else save_row(Path(out), row, log))
            if callback is not None:
                callback(done, len(planned))
    return PaperResults.of(rows)


def _measured(key: str, full: bool, seed: int, minutes: float | None) -> tuple[PaperRow, str]:
    """The row of one case, and its raw log: a line of JSON for the setting, each entry of the journal, the outcome."""
    torch.set_num_threads(1)  # small matrices, and a process for each core
    entry, begun = paper(key), time.process_time()
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    case = PaperCase(entry.setting(full=full), seed, deadline=deadline)
    try:
        outcome = entry.measure(case)
    except Exception as error:  # one broken case must not lose all others
        outcome = failed_outcome(entry, error)
    row = paper_row(entry, full, seed, outcome, time.process_time() - begun)
    head = {"paper": key, "setting": entry.fields(full=full), "seed": seed, "command": row.command}
    lines = [{**head, "versions": row.versions}, *case.journal, {**vars(row)}]
    return row, "".join(json.dumps(finite(line), default=str) + "\n" for line in lines)
