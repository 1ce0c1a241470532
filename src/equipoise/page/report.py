"""The page of a run, or of a result with the same function: one HTML file that needs nothing else."""

import os
from pathlib import Path

from equipoise.arguments import checked
from equipoise.compression import Compressed
from equipoise.integrate.run import Run
from equipoise.modes import default_modes
from equipoise.monitor import Log
from equipoise.page.material import Json, Material
from equipoise.page.render import embedded, render, require_libraries, write
from equipoise.page.words import THEOREMS, command, headline, story
from equipoise.runs import load
from equipoise.sinks.disk import KIND as WATCHED
from equipoise.transform import Aligned, Balanced

SameFunction = Balanced | Aligned | Compressed


@checked
@default_modes()
def report(
    run_or_folder: Run | Log | SameFunction | str | os.PathLike[str],
    path: str | os.PathLike[str] = "report.html",
    certificate: object = None,
) -> Path:
    """Write the page of a run, of a watched training, or of the folder of either, finished or not; returns where it is.

    Results of `balance`, `align` and `compress` have a page too.

    One file of about 5 MB with all its scripts and no network: figures to hover, zoom and switch curves off, light or
    dark as the reader's system is, readable on a phone. A quantity that was not recorded leaves its figure out, by
    name. `certificate` is what `certify` gave; without it the page shows the one in the run's summary, if any.

    >>> import tempfile
    >>> from equipoise.store import Record, Store
    >>> folder = Path(tempfile.mkdtemp())
    >>> with Store.create(folder / "run", {}) as store:
    ...     store.commit([Record(s, 0.1 * s, -2.0**s, 0.0, "margin", "", "normalised", 0.1) for s in range(9)])
    >>> report(folder / "run", folder / "page.html").name
    'page.html'

    Raises `InputError` without plotly and jinja2, and `StoreError` for a folder that is no run or a path that cannot
    be written.
    """
    require_libraries()
    if isinstance(run_or_folder, SameFunction):
        return _same_function(run_or_folder, Path(path))
    if isinstance(run_or_folder, Log):
        return _watched(run_or_folder, Path(path), "", {})
    if isinstance(run_or_folder, Run):
        material = Material.of_run(run_or_folder)
    else:
        material = Material.of_folder(run_or_folder)
        found = load(Path(run_or_folder)) if material.manifest.get("kind") == WATCHED else None
        if isinstance(found, Log):
            return _watched(found, Path(path), str(run_or_folder), material.manifest)
    return write(Path(path), _page(material, certificate or material.summary.get("certificate")))


def _watched(log: Log, path: Path, label: str, manifest: Json) -> Path:
    from equipoise.page.watched import write_watched  # only here, because plotly is an extra

    return write_watched(log, path, label, manifest)


def _same_function(result: SameFunction, path: Path) -> Path:
    from equipoise.page.same_function import result_page  # only here, because plotly is an extra

    return write(path, result_page(result))


def _origin(manifest: Json) -> dict[str, object]:
    """Network, seed and precision of a run, as far as its folder knows them."""
    recipe = manifest.get("network") or {}
    asked = manifest.get("arguments") or {}
    named = {f"network: {name}": value for name, value in recipe.items()} if isinstance(recipe, dict) else {}
    found = {"seed": manifest.get("seed"), "goal": asked.get("until")}
    return named | found


def _page(material: Material, certificate: object) -> str:
    from equipoise.page.figures import FIGURES  # only here, because plotly is an extra

    drawn = [(figure, figure.draw(material)) for figure in FIGURES]
    return render(
        "run.html",
        manifest=material.manifest,
        summary=material.summary,
        story=story(material),
        headline=headline(material),
        figures=[(figure, embedded(plot)) for figure, plot in drawn if plot is not None],
        missing=[figure.title for figure, plot in drawn if plot is None],
        certificate=certificate,
        theorems=THEOREMS,
        command=command(material.manifest),
        reproduce=_origin(material.manifest),
    )
