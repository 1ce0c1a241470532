"""The pages of a balanced, an aligned and a compressed model, looked at in a browser."""

import re

import pytest
import torch
from torch import nn

import equipoise as eq
from helpers.browser import browse, look, needs_browser

EVIL = "</script><img src=x onerror=alert(1)>"


def network(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 6), nn.Linear(6, 3)]
    return nn.Sequential(*layers).double()


@pytest.fixture(scope="module")
def results():
    X = torch.randn(40, 4, generator=torch.Generator().manual_seed(2)).double()
    y = network()(X).argmax(1)
    holdout = torch.randn(30, 4).double(), torch.zeros(30, dtype=torch.long)
    return {
        "balance": eq.balance(network(), X),
        "range": eq.balance(network(), X, objective="range"),
        "align": eq.align(network(1), network(), X),
        "compress": eq.compress(network(), (X, y), 0.05, holdout=holdout),
    }


PLOTS = {
    "balance": ["laws", "weights"],
    "range": ["laws", "weights"],
    "align": ["distances", "parts"],
    "compress": ["parameters", "changes"],
}


@needs_browser
@pytest.mark.parametrize(("verb", "width", "theme"), [("balance", 390, 0), ("align", 1280, 1), ("compress", 390, 1)])
def test_every_figure_is_drawn_in_the_readers_theme_and_width(results, tmp_path, verb, width, theme):
    seen = look(eq.report(results[verb], tmp_path / "page.html"), tmp_path, width, theme)
    assert [plot["name"] for plot in seen["plots"]] == PLOTS[verb]
    assert all(plot["curves"] > 0 for plot in seen["plots"])
    assert seen["wide"] <= 0
    assert all(plot["spill"] <= 0.5 for plot in seen["plots"])


def test_the_pages_hold_the_figures_of_the_reports(results, tmp_path):
    pages = {
        verb: eq.report(each, tmp_path / f"{verb}.html").read_text(encoding="utf-8") for verb, each in results.items()
    }
    for verb, page in pages.items():
        assert re.findall(r'<figure id="([^"]*)"', page) == PLOTS[verb]
        assert 'http-equiv="Content-Security-Policy"' in page
        assert page.count('"dtick":1') == len(PLOTS[verb])  # laws, parameters and moves are counted
    assert "0.weight → 2.weight" in pages["balance"]
    assert "no scaling of it leaves the function alone" in pages["balance"]
    assert "equal ranges" in pages["range"]
    assert pages["align"].count("<td>permutation</td>") == 2
    small = results["compress"]
    assert f"{small.parameters_before:,} → {small.parameters_after:,}" in pages["compress"].replace("\u00a0", " ")
    assert "the holdout" in pages["compress"]
    for move in small.moves:
        assert move.detail in pages["compress"]


@needs_browser
def test_names_are_data_and_never_markup(tmp_path):
    model = nn.Sequential()
    model.add_module(EVIL.replace(".", "_"), nn.Linear(2, 3))
    model.add_module("relu", nn.ReLU())
    model.add_module("var(--ink)", nn.Linear(3, 2))
    page = eq.report(eq.balance(model.double(), torch.randn(4, 2).double()), tmp_path / "page.html")
    assert "<img src=x" not in page.read_text(encoding="utf-8")
    dom, complaints = browse(page, tmp_path)
    assert complaints == []
    assert "var(--ink)" in dom


def test_a_model_that_nothing_moves_is_a_page_too(tmp_path):
    page = eq.report(eq.balance(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'id="left-alone"' in page
