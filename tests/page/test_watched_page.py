"""The page of a watched training, and its lines, labels and pictures."""

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import InputError
from equipoise.sinks import Lines, short_labels
from equipoise.store import Record
from helpers.browser import look, needs_browser


class Encoder(nn.Module):
    def __init__(self, depth):
        super().__init__()
        layers = [layer for _ in range(depth) for layer in (nn.Linear(6, 6), nn.ReLU())]
        self.encoder = nn.ModuleDict({"layers": nn.Sequential(*layers, nn.Linear(6, 1))})

    def forward(self, x):
        return self.encoder["layers"](x)


def watched(depth=3, steps=4, **arguments):
    torch.manual_seed(0)
    model = Encoder(depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observe = [eq.Spectrum(), eq.Alignment(), eq.Drift(), eq.Residual(), eq.GradientNorm(), eq.NuclearRatio()]
    with eq.watch(model, optimizer, every=2, observe=observe, quiet=True, **arguments) as log:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).sub(1).square().mean().backward()
            optimizer.step()
    return log


def test_a_watched_training_has_a_page_of_its_own(tmp_path):
    log = watched(out=tmp_path / "run")
    page = eq.report(tmp_path / "run", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "report of a watched training" in page
    assert "A training of 4 steps" in page
    assert "Norm of the gradient" in page
    assert "Gradient flow" not in page
    assert "encoder.<wbr>layers.<wbr>0.<wbr>weight" in page
    assert eq.report(log, tmp_path / "again.html").stat().st_size > 1e6


@needs_browser
def test_the_page_fits_a_phone(tmp_path):
    page = eq.report(watched(), tmp_path / "page.html")
    seen = look(page, tmp_path, width=390, theme=1)
    assert seen["wide"] <= 0
    assert all(plot["curves"] > 0 for plot in seen["plots"])


def test_many_curves_are_the_ones_that_changed_most(tmp_path):
    log = watched(depth=14, steps=2)
    figure = log.plot("stable_rank")
    (axes,) = figure.axes
    assert len(axes.lines) == 12
    assert len({line.get_color() for line in axes.lines}) == 12
    assert "3 not shown" in axes.get_legend().get_title().get_text()
    assert "The 10 of 15 that changed most" in eq.report(log, tmp_path / "page.html").read_text(encoding="utf-8")


def test_print_prints_a_line_a_snapshot(capsys):
    watched(sinks=[print])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 1", "step 2", "step 4"]
    assert "stable rank ≥ " in lines[0]
    assert "(0.weight → 2.weight)" in lines[0] or "(2.weight → 4.weight)" in lines[0] or "→ 6.weight" in lines[0]


def test_a_line_shows_no_control_characters():
    said = []
    Lines(said.append).write([Record(3, 0.0, 0.0, 0.0, "alarm", "layer\x1b[2J", "gradient", 1.0)])
    assert said == ["step 3: ALARM gradient (layer\\x1b[2J)"]


def test_labels_lose_what_all_names_share():
    names = ["model.encoder.0.weight", "model.encoder.1.weight", "model.encoder.0.weight → model.encoder.1.weight"]
    assert list(short_labels(names).values()) == ["0.weight", "1.weight", "0.weight → 1.weight"]
    assert short_labels(["", "a.b.weight", "a.c.weight"]) == {
        "": "",
        "a.b.weight": "b.weight",
        "a.c.weight": "c.weight",
    }
    assert short_labels(["a.very.long.name", "b"], width=9) == {"a.very.long.name": "…long.name", "b": "b"}


def test_results_show_themselves_in_a_notebook():
    log = watched()
    assert log._repr_html_().startswith("<pre>watched 4 steps")
    assert "data:image/png;base64," in log._repr_html_()
    run = eq.flow(eq.networks.mlp([5, 3, 1]), eq.data.load("separable", n=8, d=5), until="steps=2")
    assert "<pre>Run(" in run._repr_html_()
    assert "data:image/png;base64," in run._repr_html_()
    assert eq.certify(run)._repr_html_().startswith("<pre>")
    assert [axes.get_ylabel() for axes in run.plot("sigma_1", "relative_drift").axes] == ["sigma 1", "relative drift"]


def test_an_unfinished_run_has_a_page(tmp_path):
    eq.flow(eq.networks.mlp([5, 3, 1]), eq.data.load("separable", n=8, d=5), until="steps=2", out=tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    page = eq.report(tmp_path / "run", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "The run is not finished" in page


def test_trainings_and_runs_are_laid_over_each_other(tmp_path):
    first, second = watched(out=tmp_path / "first"), watched(steps=6)
    found = eq.compare(first, second, labels=["a", "b"])
    rows = found.table().query("quantity == 'stable_rank'").set_index("place")
    name = "encoder.layers.0.weight"
    assert rows.loc[name, "a"] == first.last("spectrum", "stable_rank", name)
    assert rows.loc[name, "change"] == rows.loc[name, "b"] - rows.loc[name, "a"]
    page = found.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a solid, b dashed" in page
    assert len(found.plot("stable_rank").axes[0].lines) == 8
    assert "<table" in found._repr_html_()
    with pytest.raises(InputError, match="a quantity that all of them recorded; found 'loss'; choose among"):
        found.plot("loss")
    run = eq.flow(eq.networks.mlp([5, 3, 1]), eq.data.load("separable", n=8, d=5), until="steps=2")
    with pytest.raises(InputError, match="found both"):
        eq.compare(run, first)
    with pytest.raises(InputError, match="two runs or more; found 1"):
        eq.compare(run)
    assert eq.compare(run, run).labels == ("A", "B")


def test_folders_are_compared_by_their_records_alone(tmp_path):
    """A folder holds no model of one's own, and a run may go on still."""
    data = eq.data.load("separable", n=8, d=5)
    for name, steps in (("one", 2), ("two", 3)):
        eq.flow(eq.networks.mlp([5, 3, 1]), data, until=f"steps={steps}", out=tmp_path / name)
    (tmp_path / "two" / "result.json").unlink()
    found = eq.compare(tmp_path / "one", tmp_path / "two")
    assert found.labels == ("one", "two")
    run = eq.load(tmp_path / "one", eq.networks.mlp([5, 3, 1]))
    rows = found.table().query("quantity == 'stable_rank'").set_index("place")
    assert rows.loc["layer1.weight", "one"] == run.last("spectrum", "stable_rank", "layer1.weight")
