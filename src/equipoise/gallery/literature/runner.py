"""Running papers: every seed of every paper is one job, on this machine or on a cluster."""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from equipoise.arguments import checked, require_real, require_runs
from equipoise.gallery.literature.catalogue import catalogue, paper
from equipoise.gallery.literature.paper import PaperCase, failed_outcome
from equipoise.gallery.literature.records import PaperResults, PaperRow, load_papers, paper_row, save_row
from equipoise.jobs import run_jobs
from equipoise.store import finite


@checked
def run_papers(
    *keys: str,
    full: bool = False,
    seeds: Sequence[int] | None = None,
    jobs: int = 2,
    backend: str = "loky",
    minutes: float | None = None,
    resume: bool = False,
    out: str | os.PathLike[str] | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> PaperResults:
    """Run the papers of these keys, or all, with each of their seeds.

    Args:
        keys: of papers; `equipoise gallery papers` lists them.
        full: the papers' own settings, where they are larger than the quick ones.
        seeds: in place of the papers' own.
        jobs: cases side by side.
        backend: `loky` for processes here, `ray` or `dask` for a cluster. Cases whose worker dies are run again.
        minutes: after which the trainings of a case stop short; the row then has no premise, and says how far it came.
        resume: leave out the cases of which `out` has a row of these criteria.
        out: a folder to which each row is added as soon as it is there, with its raw log; readable while it grows.
        callback: called with the numbers of finished and of all cases.

    Returns:
        The rows, those left out among them. A case that raises is a row that differs, with what it raised as its
        remark.

    Raises:
        InputError: for an unknown key or backend, and a backend that is not installed.
        WorkerDied: for a case whose workers die again and again; the rows so far are in `out`.

    >>> results = run_papers("schechtman2025late", seeds=[])
    >>> results.rows
    ()
    """
    require_runs(seeds or (), jobs)
    if minutes is not None:
        require_real("minutes", minutes, "pass minutes=10", above=0)
    asked = [paper(key) for key in keys or catalogue()]
    cases = [(each, seed) for each in asked for seed in (each.seeds if seeds is None else seeds)]
    known = {} if out is None or not resume else {row.case: row for row in load_papers(out).rows}
    setting = "full" if full else "quick"
    rows = [known[case] for each, seed in cases if (case := (each.key, setting, seed)) in known]
    planned = [(each.key, full, seed, minutes) for each, seed in cases if (each.key, setting, seed) not in known]
    if callback is not None and rows:
        callback(len(rows), len(cases))
    for _, (row, log) in run_jobs(_measured, planned, at_once=min(jobs, max(len(planned), 1)), backend=backend):
        rows.append(row if out is None else save_row(Path(out), row, log))
        if callback is not None:
            callback(len(rows), len(cases))
    return PaperResults.of(rows)


def _measured(case: tuple[str, bool, int, float | None]) -> tuple[PaperRow, str]:
    """The row of one case, and its raw log: a line of JSON for the setting, each entry of the journal, the outcome."""
    key, full, seed, minutes = case
    torch.set_num_threads(1)  # small matrices, and a process for each core
    entry, begun = paper(key), time.process_time()
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    measured = PaperCase(entry.setting(full=full), seed, deadline=deadline)
    try:
        outcome = entry.measure(measured)
    except Exception as error:  # one broken case must not lose all others
        outcome = failed_outcome(entry, error)
    row = paper_row(entry, full, seed, outcome, time.process_time() - begun)
    head = {"paper": key, "setting": entry.fields(full=full), "seed": seed, "command": row.command}
    lines = [{**head, "versions": row.versions}, *measured.journal, {**vars(row)}]
    return row, "".join(json.dumps(finite(line), default=str) + "\n" for line in lines)
