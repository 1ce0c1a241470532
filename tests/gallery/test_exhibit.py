"""The page of the gallery, in a real browser."""

import math
import re

import pytest

from equipoise.gallery import Measurement, Results, exhibit
from equipoise.gallery.case import DATA
from equipoise.gallery.registry import CLAIMS
from equipoise.gallery.results import row
from equipoise.page.words import typeset
from helpers.browser import look, needs_browser

SHOWN = ("linear-svm", "tail-rank-one", "deep-ratio")


def _finding(claim: str, seed: int) -> Measurement:
    if seed == 2:
        return Measurement.without("the flow stalled")
    curve = [(0.1 * t, math.exp(-0.1 * t) * (seed + 1)) for t in range(30)]
    return Measurement(CLAIMS[claim].threshold + seed, curve, "seen <b>plainly</b>")


@pytest.fixture(scope="module")
def results():
    """Of three seeds: the first at the threshold, the second one above it, the third without its premise."""
    cases = [(claim, name, seed) for claim in SHOWN for name in DATA for seed in range(3)]
    return Results([row(CLAIMS[claim], name, seed, _finding(claim, seed), 1.5) for claim, name, seed in cases], 54.0)


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    return exhibit(results, tmp_path_factory.mktemp("gallery") / "gallery.html")


@needs_browser
@pytest.mark.parametrize(
    ("width", "theme", "ink"), [(390, 0, "#e4e2dc"), pytest.param(1280, 1, "#22252b", marks=pytest.mark.slow)]
)
def test_every_claim_is_drawn_in_the_readers_theme_and_width(page, tmp_path, width, theme, ink):
    seen = look(page, tmp_path, width, theme)
    assert seen["width"] == width
    assert [plot["name"] for plot in seen["plots"]] == [f"{name}-figure" for name in SHOWN]
    assert [plot["curves"] for plot in seen["plots"]] == [8 + 4] * len(
        SHOWN
    )  # two seeds on four data sets, and the legend
    assert {plot["ink"] for plot in seen["plots"]} == {ink}
    assert seen["wide"] <= 0
    assert all(plot["spill"] <= 0.5 for plot in seen["plots"])


def test_shares_thresholds_verdicts_and_sources_are_those_of_the_results(page):
    html = page.read_text(encoding="utf-8")
    assert html.count("1 of 2 (1)") == len(SHOWN) * len(DATA)
    assert html.count("fails in some runs") == 2 * len(SHOWN)
    for name in SHOWN:
        claim = CLAIMS[name]
        section = html[html.index(f'<section id="{name}">') :].split("</section>")[0]
        assert typeset(claim.title) in section
        assert all(f"@misc{{{key}," in section for key in claim.sources)
        assert section.count("the flow stalled") == len(DATA)
        assert len(re.findall(r'class="standing yes">holds', section)) == len(DATA)


def test_the_words_of_a_run_are_no_markup(page):
    html = page.read_text(encoding="utf-8")
    assert "seen <b>" not in html
    assert "seen &lt;b&gt;plainly" in html


def test_a_claim_that_holds_everywhere_says_so(results, tmp_path):
    held = Results([found for found in results.rows if found["verdict"] == "holds"], 1.0)
    html = exhibit(held, tmp_path / "held.html").read_text(encoding="utf-8")
    assert "fails in some runs" not in html
    assert html.count("1 of 1") == len(SHOWN) * len(DATA)


def test_it_says_what_was_run_and_names_what_was_not(tmp_path):
    case = ("linear-svm", "digits", 4)
    html = exhibit(Results([row(CLAIMS[case[0]], *case[1:], _finding(case[0], 0), 1.5)], 2.0), tmp_path / "one.html")
    text = html.read_text(encoding="utf-8")
    header = text[text.index("<header>") : text.index("</header>")]
    assert "1 claim measured on digits, with seed 4" in header
    assert f"Not measured here: {next(claim.title for name, claim in CLAIMS.items() if name != case[0])}" in header
    assert "fashion" not in text[text.index("<header>") : text.index("Why this threshold")]


def test_mathematics_is_typeset_wherever_it_stands(tmp_path):
    case = ("deep-ratio", "digits", 0)
    html = exhibit(Results([row(CLAIMS[case[0]], *case[1:], _finding(case[0], 0), 1.5)], 2.0), tmp_path / "one.html")
    shown = re.sub(r"<script.*?</script>|<style.*?</style>", "", html.read_text(encoding="utf-8"), flags=re.S)
    assert "‖W‖<sub>F</sub>/‖W‖₂" in shown
    assert "‖_F" not in shown.replace('aria-label="mean ‖W‖_F', "")
