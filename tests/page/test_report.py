import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from equipoise.data import load
from equipoise.errors import InputError, StoreError
from equipoise.graph.chain import linear_tail
from equipoise.integrate.goals import LogLoss
from equipoise.integrate.loop import flow
from equipoise.integrate.run import Run
from equipoise.networks import mlp
from equipoise.page import render
from equipoise.page.figures import FIGURES
from equipoise.page.material import POINTS, Material
from equipoise.page.report import report
from equipoise.store import Record, Store
from equipoise.theorems.certificate import certify
from equipoise.theorems.linear_tail import LinearTail, certified_bounds
from helpers.browser import browse, look, needs_browser


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data, model = load("separable", n=20, d=5), mlp([5, 4, 4, 1], linear_tail=2)
    folder = tmp_path_factory.mktemp("run") / "run"
    flow(model, data, until=LogLoss(-100), out=folder)
    return Run.load(folder, model)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return report(run, tmp_path_factory.mktemp("page") / "page.html", certify(run))


@needs_browser
@pytest.mark.parametrize(
    ("width", "theme", "paper", "ink"),
    [(390, 0, "rgb(21, 23, 27)", "#e4e2dc"), (1280, 1, "rgb(251, 250, 247)", "#22252b")],
)
def test_every_figure_is_drawn_in_the_readers_theme_and_width(page, tmp_path, width, theme, paper, ink):
    seen = look(page, tmp_path, width, theme)
    assert seen["width"] == width
    assert [plot["name"] for plot in seen["plots"]] == [figure.name for figure in FIGURES]
    assert all(plot["curves"] > 0 for plot in seen["plots"])
    assert {plot["ink"] for plot in seen["plots"]} == {ink}
    assert seen["paper"] == paper
    assert seen["wide"] <= 0
    assert all(plot["spill"] <= 0.5 for plot in seen["plots"])


@needs_browser
def test_a_script_that_fails_or_reaches_out_would_be_seen(page, tmp_path):
    broken = tmp_path / "broken.html"
    bad = "<script>fetch('https://example.org').catch(() => {}); nowhere()</script>"
    broken.write_text(page.read_text(encoding="utf-8").replace("</body>", bad + "</body>"), encoding="utf-8")
    complaints = "".join(browse(broken, tmp_path)[1])
    assert "nowhere is not defined" in complaints
    assert "Content Security Policy" in complaints


def test_it_is_one_small_file_that_loads_nothing(page):
    html = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 6_000_000
    assert html.count("plotly.js v") == 1
    assert re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"(?!data:)[^\"]*\"", html) == []
    assert 'name="viewport"' in html


def test_the_words_agree_with_the_run(run, page):
    html = page.read_text(encoding="utf-8")
    assert "5-4-4-1 network whose last 2 layers are linear on 20 examples of separable" in html
    assert f"after {run.steps} steps" in html
    assert 'The certificate <strong class="yes">holds</strong>' in html
    assert "eq.flow(model, data, loss=&#39;exponential&#39;, until=&#39;log_loss=-100&#39;" in html
    for claim in certify(run).claims:
        assert claim.name in html


def test_the_certified_curve_ends_at_the_certified_bound_and_stays_above_the_residual(run):
    drawn = Material.of_run(run)
    figure = next(figure for figure in FIGURES if figure.name == "rank-one").draw(drawn)
    traces = {trace.name: trace for trace in figure.data}
    bounds = certified_bounds(LinearTail(linear_tail(run.chain)), run.initial, run.final)
    measured, certified = traces["layer2"].y, traces["layer2 certified"].y
    assert certified[-1] == pytest.approx(bounds["layer2.weight"], rel=1e-9)
    assert not (measured > certified).any()  # NaN, where the bound says nothing, is above nothing


def test_a_run_without_a_folder_makes_the_same_page_but_for_the_command(run, page, tmp_path):
    bare = report(replace(run, folder=None), tmp_path / "bare.html", certify(run))
    figures = [re.findall(r'<script type="application/json">(.*)</script>', p.read_text()) for p in (page, bare)]
    assert figures[0] == figures[1]
    assert "eq.flow" not in bare.read_text()


def test_what_was_not_recorded_is_left_out_by_name(tmp_path):
    with Store.create(tmp_path / "run", {}) as store:
        store.commit([Record(s, 0.1 * s, -(2.0**s), 0.0, "margin", "", "normalised", 0.1) for s in range(4)])
    html = report(tmp_path / "run", tmp_path / "page.html").read_text(encoding="utf-8")
    left_out = html[html.index('class="missing"') :].split("</p>")[0]
    assert re.findall(r'<figure id="(.*?)"', html) == ["log-loss", "margin"]
    for figure in FIGURES:
        assert (figure.title in left_out) == (figure.name not in ("log-loss", "margin"))
    assert "not finished" in html


def test_an_empty_run_is_a_page_too(tmp_path):
    Store.create(tmp_path / "run", {}).close()
    html = report(tmp_path / "run", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<figure" not in html


@pytest.fixture
def hostile(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    layers = [{"weight": evil, "bias": None, "kind": "linear"}]
    manifest = {"layers": layers, "loss": evil, "arguments": {"command": f"equipoise {evil}"}, "data": {"name": evil}}
    with Store.create(tmp_path / "run", manifest) as store:
        store.commit(
            [Record(s, 0.1 * s, -1.0, 0.0, "spectrum", evil, "rank_one_residual", 0.1) for s in range(4)],
        )
        store.save_weights("final", {evil: torch.eye(3, dtype=torch.float64)})
    found = SimpleNamespace(name=evil, statement=evil, standing=evil, measured=None, tolerance=0.1)
    certificate = {"holds": False, "assumptions": [vars(found)], "claims": [{"name": evil, "theorem": evil}]}
    with Store.resume(tmp_path / "run") as store:
        store.finish({"status": evil, "certificate": certificate})
    return tmp_path / "run"


def test_nothing_from_the_run_becomes_markup(hostile, tmp_path):
    html = report(hostile, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert html.count("&lt;script&gt;alert(1)") >= 8


@needs_browser
def test_names_from_the_run_stand_in_the_legend_as_they_are(hostile, tmp_path):
    dom, complaints = browse(report(hostile, tmp_path / "page.html"), tmp_path)
    assert complaints == []
    assert "<img src" not in dom
    assert 'data-unformatted="&lt;/script' in dom or "&lt;img src=x" in dom


def test_a_long_run_stays_small(tmp_path):
    places = [f"layer{k}.weight" for k in range(40)]
    with Store.create(tmp_path / "run", {}) as store:
        store.commit(
            Record(s, s / 100, -float(s), 0.0, "spectrum", place, "rank_one_residual", 1 / (s + 1))
            for s in range(2000)
            for place in places
        )
    curve = Material.of_folder(tmp_path / "run").curves("spectrum", "rank_one_residual")[places[0]]
    assert len(curve) == POINTS
    assert [curve["step"].iloc[0], curve["step"].iloc[-1]] == [0, 1999]
    assert report(tmp_path / "run", tmp_path / "page.html").stat().st_size < 6_000_000


def test_log_loss_is_linear_near_zero_and_labelled_plainly():
    values = [0.5, 0.0, -1.0, -1e6, -1e12]
    records = [Record(s, 0.1 * s, value, 0.0, "flow", "", "step_size", 0.1) for s, value in enumerate(values)]
    figure = FIGURES[0].draw(Material(pd.DataFrame(records)))
    assert list(figure.data[0].customdata) == ["0.5", "0", "−1", "−1 × 10⁶", "−1 × 10¹²"]
    assert figure.data[0].y[[0, 1, 2, 4]] == pytest.approx([0.17609, 0, -0.30103, -12], abs=1e-5)
    assert list(figure.layout.yaxis.ticktext) == ["−10¹²", "−10⁹", "−10⁶", "−10³", "0"]


@pytest.mark.parametrize("library", ["plotly", "jinja2"])
def test_without_the_extra_one_line_says_what_to_install(library, monkeypatch, tmp_path):
    monkeypatch.setattr(render, "find_spec", lambda name: None if name == library else sys)
    with pytest.raises(InputError, match=rf"no {library}; pip install 'equipoise\[report\]'"):
        report(tmp_path, tmp_path / "page.html")


def test_refusals_are_one_line(run, tmp_path):
    with pytest.raises(StoreError, match=r"no manifest\.json"):
        report(tmp_path, tmp_path / "page.html")
    with pytest.raises(StoreError, match=r"expected to write .* choose another path"):
        report(run, tmp_path / "nowhere" / "page.html")
