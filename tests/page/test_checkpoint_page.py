"""The page of an analysed checkpoint, looked at in a browser."""

import re

import pytest
import torch

import equipoise as eq
from equipoise.page.checkpoint import _side, checkpoint_page
from equipoise.page.spectra import CURVES, FAMILIES, depth_figure, families, spectra_figure
from helpers.browser import browse, look, needs_browser


def state(layers=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = {f"h.{k}.fc.weight": torch.randn(12, 16, generator=generator) for k in range(layers)}
    found |= {f"h.{k}.proj.weight": torch.randn(8, 8, generator=generator) for k in range(layers)}
    return found | {
        "emb.weight": torch.randn(30, 5, generator=generator),
        "head.weight": torch.randn(1, 9),
        "b": torch.ones(3),
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return checkpoint_page(eq.analyze(state()), tmp_path_factory.mktemp("page") / "page.html", label="model")


@needs_browser
@pytest.mark.parametrize(("width", "theme"), [(390, 0), (1280, 1)])
def test_every_figure_is_drawn_in_the_readers_theme_and_width(page, tmp_path, width, theme):
    seen = look(page, tmp_path, width, theme)
    names = [plot["name"] for plot in seen["plots"]]
    assert (
        names[:4]
        == ["depth-stable_rank", "depth-outliers", "depth-effective_rank", "depth-heavy_tail_exponent"][
            : len(names[:4])
        ]
    )
    assert {"spectra-h-n-fc-weight", "spectra-emb-weight"} <= set(names)
    assert all(plot["curves"] > 0 for plot in seen["plots"] if plot["name"] != "spectra-head-weight")
    assert seen["wide"] <= 0
    assert all(plot["spill"] <= 0.5 for plot in seen["plots"])


HOSTILE = ("var(--mono)", "var(--ink)", "</script><b>x", "a\x1b[2Jb", "\u202eright", '"quoted"', "{{ 1 }}")


@needs_browser
def test_names_are_data_and_never_style_or_script(tmp_path):
    table = eq.analyze({name: torch.randn(12, 16) for name in HOSTILE})
    page = checkpoint_page(table, tmp_path / "page.html", label="a\x1b]0;title\x07")
    seen = look(page, tmp_path, 1280, 0)  # no complaint of any script
    assert len(seen["plots"]) == len(HOSTILE)
    assert all(plot["curves"] > 0 for plot in seen["plots"])
    dom, _ = browse(page, tmp_path)
    assert len(re.findall(r'<text class="legendtext"[^>]*>var\(--mono\)</text>', dom)) == 1
    assert "<b>x" not in dom
    assert not set("\x1b\x07\u202e").intersection(page.read_text(encoding="utf-8"))


def test_families_are_told_apart_by_their_numbers():
    found = families([eq.analyze(state())])
    assert [(family.name, len(family.members)) for family in found] == [
        ("h.*.fc.weight", 4), ("h.*.proj.weight", 4), ("emb.weight", 1), ("head.weight", 1)
    ]  # fmt: skip
    assert [member.depth for member in found[0].members] == [0, 1, 2, 3]
    figure = spectra_figure(found[0])
    assert [trace.name for trace in figure.data] == ["layer 0", "layer 1", "layer 2", "layer 3", "random"]
    table = eq.analyze(state()).set_index("name")
    edge = table.loc["h.2.fc.weight", "mp_edge"]
    assert figure.data[2].y[0] == pytest.approx(table.loc["h.2.fc.weight", "spectral_norm"] / edge, rel=1e-4)


ROLES = {
    "a block of a transformer": (["layers.0.linear1", "layers.0.linear2"], ["layers.0.linear1", "layers.0.linear2"]),
    "two blocks": (
        [f"layers.{k}.{part}" for k in (0, 1) for part in ("linear1", "linear2", "w1.0b")],
        ["layers.*.linear1", "layers.*.linear2", "layers.*.w1.0b"],
    ),
    "stages of blocks": (
        [f"layer{stage}.{k}.conv{part}" for stage in (1, 2) for k in (0, 1) for part in (1, 2)],
        ["layer*.*.conv1", "layer*.*.conv2"],
    ),
    "layers by number alone": (["fc1", "fc2", "fc10"], ["fc*"]),
    "a recurrent stack": (["rnn.weight_hh_l0", "rnn.weight_hh_l1"], ["rnn.weight_hh_l*"]),
}


@pytest.mark.parametrize("case", ROLES)
def test_numbers_that_tell_roles_apart_are_no_depths(case):
    names, expected = ROLES[case]
    found = families([eq.analyze({name: torch.randn(6, 5) for name in names}, heavy_tail=False)])
    assert [family.name for family in found] == expected
    for family in found:
        depths = [member.depth for member in family.members]
        assert depths == sorted(set(depths))  # no two at one place


def test_counts_do_not_begin_below_zero():
    found = families([eq.analyze({f"{k}.weight": torch.eye(3) for k in range(3)}, heavy_tail=False)])
    assert depth_figure(found, "outliers", "").layout.yaxis.rangemode == "nonnegative"


def test_depths_count_whole_layers():
    names = [f"layers.{k}.linear{part}" for k in (3, 4) for part in (1, 2)]
    figure = depth_figure(families([eq.analyze({n: torch.randn(6, 5) for n in names})]), "stable_rank", "Stable rank")
    assert tuple(figure.layout.xaxis.range) == (2.5, 4.5)
    assert figure.layout.xaxis.dtick == 1
    assert [trace.customdata for trace in figure.data] == [tuple(names[0::2]), tuple(names[1::2])]


def test_tiles_say_what_they_count(page, tmp_path):
    def tiles(path):
        html = path.read_text(encoding="utf-8")
        return dict(re.findall(r"<dt>(.*?)</dt><dd><strong>(.*?)</strong>", html))

    assert list(tiles(page)) == [
        "matrices", "stable rank", "share of random", "outliers", "least share", "without a spectrum"
    ]  # fmt: skip
    two = tiles(checkpoint_page(eq.analyze(state(), state(seed=1)), tmp_path / "two.html", label="a", other="b"))
    assert list(two) == ["matrices", "stable rank", "share of random", "outliers", "distance", "changed most"]
    assert two["matrices"] == "10"
    assert " → " in two["stable rank"]
    strangers = eq.analyze(state(), {"other.weight": torch.randn(4, 4)})
    assert tiles(checkpoint_page(strangers, tmp_path / "strangers.html", other="b"))["distance"] == "—"


def test_two_checkpoints_are_solid_and_dotted(tmp_path):
    table = eq.analyze(state(), state(seed=1))
    html = checkpoint_page(table, tmp_path / "two.html", label="one", other="two").read_text(encoding="utf-8")
    assert "<code>one</code> (A, solid) beside <code>two</code> (B, dotted)" in html
    found = families([_side(table, suffix) for suffix in ("_a", "_b")])
    assert {trace.line.dash for trace in spectra_figure(found[0]).data} == {"solid", "dot", "dash"}
    assert {trace.line.dash for trace in depth_figure(found, "stable_rank", "").data} == {"solid", "dot"}


def test_a_large_model_stays_small(tmp_path):
    many = {
        f"h.{k}.{part}{place}.weight": torch.eye(3)
        for k in range(40)
        for place, part in enumerate("abcdefghijklmnopqrstuvwxyz")
    }
    path = checkpoint_page(eq.analyze(many, heavy_tail=False), tmp_path / "many.html")
    html = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 9e6
    assert html.count('id="spectra-') == FAMILIES
    assert len(spectra_figure(families([eq.analyze(many, names="*.a0.*", heavy_tail=False)])[0]).data) == CURVES + 1
    assert "h.*.z25.weight" in html[html.index('class="missing"') :].split("</p>")[0]


def test_nothing_from_the_file_becomes_markup(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    spoilt = torch.ones(2, 2)
    spoilt[0] = torch.nan
    table = eq.analyze(
        {f"{evil}.{k}.weight": torch.randn(4, 4) for k in range(2)} | {evil: spoilt, f"{evil}b": torch.ones(2)}
    )
    path = checkpoint_page(table, tmp_path / "evil.html", label=evil)
    html = path.read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert html.count("&lt;script&gt;alert(1)") >= 3


@needs_browser
def test_the_browser_has_nothing_to_say(page, tmp_path):
    assert browse(page, tmp_path)[1] == []


def test_a_checkpoint_without_matrices_is_a_page_too(tmp_path):
    html = checkpoint_page(eq.analyze({"b": torch.ones(3)}), tmp_path / "none.html").read_text(encoding="utf-8")
    assert "<figure" not in html
    assert re.search(r"1 without a spectrum: a vector", html)
