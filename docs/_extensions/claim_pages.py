"""A page for each claim of the gallery: its words, threshold and argument, and one run of it, made with the site."""

import hashlib
import io
import re
from pathlib import Path

from equipoise import gallery
from equipoise.gallery import Experiment, Results
from equipoise.gallery.case import DATA as DATA_SETS
from equipoise.references import REFERENCES, Reference

ROOT = Path(__file__).parents[2]
DATA, SEED = "digits", 0


def write_pages(app) -> None:
    """Write docs/claims/ anew, each page only where it changed."""
    folder = Path(app.srcdir) / "claims"
    folder.mkdir(exist_ok=True)
    results = measured(Path(app.outdir).parent / "claims")
    shares = table((Path(app.srcdir) / "gallery.md").read_text(encoding="utf-8"))
    for claim in gallery.claims():
        rows = [row for row in results.rows if row["claim"] == claim.name]
        text = page(claim, rows[0], shares.get(claim.title, []))
        _write(folder / f"{claim.name}.md", text)
        for theme in ("light", "dark"):
            _write(folder / f"{claim.name}-{theme}.svg", picture(claim, rows[0], theme))

    _write(folder / "index.md", index())


def index() -> str:
    """All claims, in the order of the gallery."""
    lines = [
        "# Claims, one page each",
        "",
        "Each is measured by `equipoise gallery run`; [the table of all runs](../gallery.md).",
        "",
    ]
    names = [claim.name for claim in gallery.claims()]
    return "\n".join([*lines, "```{toctree}", ":maxdepth: 1", "", *names, "```", ""])


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def measured(folder: Path) -> Results:
    """Every claim on one data set with one seed; kept until the library changes."""
    source = sorted((ROOT / "src").rglob("*.py"))
    state = hashlib.sha256(b"".join(path.read_bytes() for path in source)).hexdigest()
    stamp = folder / "of"
    if stamp.exists() and stamp.read_text() == state:
        return gallery.load(folder)
    results = gallery.run(data=[DATA], seeds=[SEED], jobs=1, out=folder)
    stamp.write_text(state)
    return results


def table(text: str) -> dict[str, list[str]]:
    """Of the table in docs/gallery.md: the cells behind the title of each claim."""
    rows = re.findall(r"^\| (.+) \|$", text, re.MULTILINE)
    return {cells[0]: cells[1:] for cells in (row.split(" | ") for row in rows)}


def page(claim: Experiment, row: dict, cells: list[str]) -> str:
    """One claim in Markdown."""
    lines = [f"# {claim.title}", "", claim.statement, ""]
    lines += [
        f"{claim.theorem}. Holds where: {claim.statistic} {claim.relation} {claim.threshold:.3g}. {claim.why}",
        "",
    ]
    for theme in ("light", "dark"):
        lines += [
            f"```{{image}} {claim.name}-{theme}.svg",
            f":class: only-{theme}",
            f':alt: "{claim.picture.up}"',
            "```",
            "",
        ]
    found = f"{row['verdict']}, {row['statistic']:.3g}" if not row["premise"] else f"no premise: {row['premise']}"
    lines += [f"One run, made with this page: {DATA}, seed {SEED}: **{found}**. {row['remark']}", ""]
    if cells:
        names = (*DATA_SETS, "worst statistic", "threshold")
        lines += ["## All runs", "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        lines += ["| " + " | ".join(cells[1:]) + " |", ""]
    lines += ["## Sources", "", *(f"- {_reference(REFERENCES[key])}" for key in claim.sources), ""]
    module = next(ROOT.glob(f"src/equipoise/gallery/experiments/{claim.name.replace('-', '_')}.py"))
    lines += [
        f"Code: [`{module.name}`](../../{module.relative_to(ROOT).as_posix()}).",
        f"Run it: `equipoise gallery run {claim.name}`.",
        "",
    ]
    return "\n".join(lines)


def _reference(of: Reference) -> str:
    return f"{of.authors.replace(' and ', ', ')}: [{of.title}]({of.url}). {of.venue} {of.year}."


def picture(claim: Experiment, row: dict, theme: str) -> str:
    """The curve of the run, transparent, in the ink of a theme."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ink = {"light": "#222222", "dark": "#dddddd"}[theme]
    with mpl.rc_context({"svg.hashsalt": claim.name, "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": ink,
                         "xtick.color": ink, "ytick.color": ink, "font.size": 10}):  # fmt: skip
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        points = [(x, y) for x, y in row["curve"] if y > 0 or not claim.picture.logarithmic]
        axes.plot(*zip(*points, strict=True), color={"light": "#0b5394", "dark": "#7cb7ff"}[theme]) if points else None
        if claim.picture.level is not None:
            axes.axhline(claim.picture.level, color=ink, linestyle="--", linewidth=1)
        axes.set(xlabel=claim.picture.across, ylabel=claim.picture.up)
        if claim.picture.logarithmic and points:
            axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return out.getvalue()


def setup(app) -> dict:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
