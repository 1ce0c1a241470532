"""Papers: how they are found, run, recorded and shown; and the quick setting of some of them."""

import hashlib
import json
import math
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path

import pytest
import torch

from equipoise.errors import InputError, StoreError
from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature import (
    Comparison,
    Curve,
    Outcome,
    Paper,
    PaperCase,
    PaperResults,
    load_papers,
    papers,
    papers_markdown,
    run_papers,
    write_pages,
    write_papers_into,
)
from equipoise.gallery.literature.catalogue import catalogue
from equipoise.gallery.literature.table import BEGIN, END
from equipoise.gallery.literature.training import Quantities, batches, train
from equipoise.references import REFERENCES
from helpers.browser import look, needs_browser
from helpers.clusters import cluster
from helpers.command import call

KEY = "roy2007effective"  # a reference that has no entry of its own
DOCUMENT = Path(__file__).parents[2] / "docs" / "papers.md"


@dataclass(frozen=True)
class Steepness:
    slope: float = 1.0


def measured(case):
    """Seeds 0 and 1 hold, 2 differs, 3 has no premise, 4 raises."""
    case.log(seen=case.seed)
    if case.seed == 3:
        return Outcome.without("the flow stalled")
    if case.seed == 4:
        raise ZeroDivisionError("of the measure")
    points = [(float(t), case.setting.slope * math.exp(-t)) for t in range(1, 9)]
    figures = [Comparison("figure of table 1", 0.5 + case.seed, 0.75), Comparison("not printed", 1.0)]
    return Outcome((0.1, 1.0 - case.seed), figures, [Curve("depth 3", points)], remark="seen <b>plainly</b>")


@pytest.fixture
def made_up(monkeypatch):
    criteria = (
        Criterion("a thing that is small", "≤", 0.2, "Because it is small in theory, and twice that is allowed."),
        Criterion("a thing that is large", "≥", 0.0, "Because it is positive in theory, with nothing to spare."),
    )
    paper = Paper(
        key=KEY,
        claim="Small things are small, and large things are large.",
        basis="Made up.",
        quick=Steepness(),
        full=Steepness(2.0),
        criteria=criteria,
        measure=measured,
        picture=Picture("step", "value"),
        tried="Larger things.",
    )
    monkeypatch.setitem(catalogue(), KEY, paper)
    return paper


@pytest.fixture
def results(made_up, tmp_path):
    return run_papers(KEY, jobs=1, out=tmp_path)


def test_every_paper_says_what_it_must():
    assert papers()
    for paper in papers():
        assert paper.key in REFERENCES
        assert set(paper.beside) <= set(REFERENCES)
        assert len(paper.seeds) >= 5
        assert is_dataclass(paper.quick)
        assert paper.full is None or type(paper.full) is type(paper.quick)
        assert min(len(paper.claim), len(paper.basis), *(len(each.why) for each in paper.criteria)) > 20
        assert paper.claim.endswith(".")
        assert paper.fields(full=True) != {}


def test_every_file_of_the_folder_is_a_paper():
    folder = Path(__file__).parents[2] / "src" / "equipoise" / "gallery" / "papers"
    files = {path.stem for path in folder.glob("*.py") if path.name != "__init__.py"}
    assert {paper.measure.__module__.rpartition(".")[2] for paper in papers()} == files


@pytest.mark.parametrize("key", [paper.key for paper in papers() if paper.sampled])
def test_the_quick_setting_holds_with_the_first_seed(key):
    (row,) = run_papers(key, seeds=[0], jobs=1).rows
    assert row.verdict == "holds", row.remark


def test_verdicts_are_those_of_the_criteria(results):
    verdicts = [row.verdict for row in results.rows]
    assert verdicts == ["holds", "holds", "differs", "no premise", "differs"]
    assert results.rows[4].remark == "raised ZeroDivisionError: of the measure"
    assert results.rows[4].values == [None, None]
    assert results.verdict(KEY) == "differs"
    assert results.differing == [KEY]
    assert PaperResults(results.rows[:2]).verdict(KEY) == "holds"
    assert PaperResults(results.rows[3:4]).verdict(KEY) == "no premise"
    assert PaperResults(()).verdict(KEY) is None
    table = results.table
    assert len(table) == 10
    assert table.query("seed == 1")["value"].tolist() == [0.1, 0.0]


def test_every_run_is_kept_with_its_raw_log(results, made_up, tmp_path):
    assert load_papers(tmp_path) == results
    for row in results.rows:
        text = (tmp_path / row.log).read_bytes()
        assert hashlib.sha256(text).hexdigest() == row.sha256
        lines = [json.loads(line) for line in text.splitlines()]
        assert lines[0]["setting"] == {"slope": 1.0}
        assert lines[0]["versions"]["torch"] == torch.__version__
        assert {"seen": row.seed} in lines
        assert lines[-1]["verdict"] == row.verdict
    again = run_papers(KEY, seeds=[2], jobs=1, out=tmp_path)
    run_papers(KEY, seeds=[0], full=True, jobs=1, out=tmp_path)
    assert len((tmp_path / "papers.jsonl").read_text().splitlines()) == 7
    loaded = load_papers(tmp_path)
    assert len(loaded.rows) == 6
    assert loaded.about(KEY, "full")[0].command == f"equipoise gallery run {KEY} --full --seeds 0"
    assert loaded.about(KEY, "quick")[2] == again.rows[0]
    outdated = replace(again.rows[0], values=[0.1], seed=7)
    assert PaperResults.of([*loaded.rows, outdated]) == loaded  # measured when the paper had one criterion
    (tmp_path / "papers.jsonl").write_text("{}\n")
    with pytest.raises(StoreError, match="move the file away"):
        load_papers(tmp_path)


def test_a_run_that_was_stopped_goes_on(made_up, tmp_path):
    """A row that was being written is no row; what is there is not measured again."""
    run_papers(KEY, seeds=[0, 1], jobs=1, out=tmp_path)
    whole = (tmp_path / "papers.jsonl").read_bytes()
    (tmp_path / "papers.jsonl").write_bytes(whole[:-20])
    assert [row.seed for row in load_papers(tmp_path).rows] == [0]
    so_far = []
    again = run_papers(
        KEY, seeds=[0, 1, 3], jobs=1, resume=True, out=tmp_path, callback=lambda *counts: so_far.append(counts)
    )
    assert [row.seed for row in again.rows] == [0, 1, 3]
    assert so_far == [(1, 3), (2, 3), (3, 3)]
    assert load_papers(tmp_path) == again
    assert len((tmp_path / "papers.jsonl").read_bytes().splitlines()) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the clusters' own sockets
@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_papers_on_a_cluster_give_the_same_figures(backend, tmp_path):
    with cluster(backend):
        there = run_papers("huh2023low", seeds=[0, 1], backend=backend, out=tmp_path)
    here = run_papers("huh2023low", seeds=[0, 1], jobs=1)
    assert [row.values for row in there.rows] == [row.values for row in here.rows]
    assert load_papers(tmp_path) == there


def test_two_processes_find_the_same_figures():
    """A process of its own finds the paper by its file."""
    with pytest.raises(InputError, match=r"papers among .* found nobody; type equipoise gallery papers"):
        run_papers("nobody")
    with pytest.raises(InputError, match="a backend among"):
        run_papers(papers()[0].key, seeds=[0], backend="slurm")


def test_the_table_names_every_criterion_and_every_exception(results, tmp_path):
    text = papers_markdown(results)
    lines = text.splitlines()
    assert f"| [{KEY}]({REFERENCES[KEY].url}) | a thing that is small | ≤ 0.2 | nan, 0.1, 0.1, 0.1 | differs |" in text
    assert "|  | a thing that is large | ≥ 0 | nan, -1, 0, 1 |  |  |" in lines
    assert f"- **differs**: {KEY}, seed 4. raised ZeroDivisionError: of the measure" in lines
    assert f"- what was tried for {KEY}: Larger things." in lines
    assert f"- does not apply: {KEY}, seed 3: the flow stalled." in lines
    document = tmp_path / "papers.md"
    document.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n", encoding="utf-8")
    write_papers_into(document, results)
    assert document.read_text(encoding="utf-8") == f"before\n{BEGIN}\n{text}\n{END}\nafter\n"


def test_the_documentation_is_about_the_papers_as_they_are():
    """What `equipoise gallery table --papers --into docs/papers.md` wrote has the criteria of today."""
    table = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    found = {}
    for line in table.splitlines()[2:]:
        cells = line.strip("| ").split(" | ")
        if line.startswith("| ["):
            found[line[3 : line.index("]")]] = cells
    assert found
    for key, cells in found.items():
        criterion = catalogue()[key].criteria[0]
        assert [cells[1].replace(r"\|", "|"), cells[2]] == [
            criterion.statistic,
            f"{criterion.relation} {criterion.threshold:.3g}",
        ], key


@needs_browser
@pytest.mark.parametrize(
    ("width", "theme", "ink"), [(390, 0, "#e4e2dc"), pytest.param(1280, 1, "#22252b", marks=pytest.mark.slow)]
)
def test_a_page_for_each_paper(results, tmp_path, width, theme, ink):
    index = write_pages(results, tmp_path)
    page = tmp_path / f"{KEY}.html"
    seen = look(page, tmp_path, width, theme)
    assert seen["width"] == width
    assert [plot["name"] for plot in seen["plots"]] == ["quick-figure"]
    assert {plot["ink"] for plot in seen["plots"]} == {ink}
    assert seen["wide"] <= 0
    assert look(index, tmp_path, width, theme)["wide"] <= 0
    html = page.read_text(encoding="utf-8")
    assert "seen <b>" not in html
    assert "seen &lt;b&gt;plainly" in html
    assert "Larger things." in html
    assert "0.75" in html
    assert results.rows[0].sha256 in html
    assert page.stat().st_size < 1e5
    assert f'href="{KEY}.html"' in index.read_text(encoding="utf-8")


def test_the_command_line(made_up, capsys, tmp_path):
    folder = str(tmp_path / "gallery")
    options = ("--jobs", "1", "--out", folder, "--quiet")
    code, out, _ = call(capsys, "gallery", "run", KEY, "--seeds", "0", *options, "--json")
    found = json.loads(out)
    assert (code, found["papers"], found["differing"]) == (0, {KEY: "holds"}, [])
    code, out, _ = call(capsys, "gallery", "run", KEY, "--seeds", "2", "--full", *options)
    assert code == 1
    assert "differs" in out
    code, out, _ = call(capsys, "gallery", "papers", folder, "--json")
    listed = {each["key"]: each for each in json.loads(out)["papers"]}
    assert (code, set(listed), listed[KEY]["verdict"]) == (0, set(catalogue()), "differs")
    code, out, _ = call(capsys, "gallery", "report", folder, "--json")
    assert code == 0
    assert Path(json.loads(out)["page"]) == tmp_path / "gallery" / "papers" / "index.html"
    code, out, _ = call(capsys, "gallery", "table", folder, "--papers")
    assert (code, out) == (0, papers_markdown(load_papers(folder)) + "\n")
    for wrong in (
        ["run", "--papers", KEY],
        ["run", KEY, "--backend", "slurm"],
        ["run", KEY, "--data", "digits"],
        ["run", "two-points", "--full"],
        ["run", "two-points", "--minutes", "1"],
    ):
        code, out, err = call(capsys, "gallery", *wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_training_is_watched_and_logged(made_up):
    case = PaperCase(Steepness(), 0)
    model = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    X, y = torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    before = model.weight.detach().clone()
    trace = train(
        case,
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda output, target: (output[:, 0] - target).square().mean(),
        (X, y),
        steps=6,
        every=3,
        batch=1,
        observe=[Quantities(lambda _: {"first": float(model.weight.detach()[0, 0])})],
    )
    assert [step for step, _ in trace.series("first")] == [1, 3, 6]
    assert trace.last("first") == float(model.weight.detach()[0, 0]) != float(before[0, 0])
    expected = 1 - (1 - before) * 0.8**3  # each weight is seen alone, three times
    assert torch.allclose(model.weight.detach(), expected, rtol=1e-12)
    assert len(case.journal) == 3
    assert trace.shortfall == ""


def test_a_training_stops_at_the_deadline_of_its_case(made_up):
    case = PaperCase(Steepness(), 0, deadline=0.0)
    model = torch.nn.Linear(2, 1, dtype=torch.float64)
    data = torch.eye(2, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trace = train(case, model, optimizer, torch.nn.functional.mse_loss, data, steps=1000, every=1)
    assert (trace.steps, trace.shortfall) == (1, "stopped after 1 of 1,000 steps")
    longer = replace(trace, steps=11, seconds=36.0)
    assert longer.shortfall == "stopped after 11 of 1,000 steps; all would take 1.0 h of one core"


def test_batches_are_epochs_in_orders_of_their_own():
    order = torch.Generator().manual_seed(3)
    seen = list(batches(5, 2, 4, order))
    assert [len(batch) for batch in seen] == [2, 2, 2, 2]
    assert len(set(torch.cat(seen[:2]).tolist())) == 4
    assert list(batches(5, None, 2, order)) == [slice(None)] * 2
