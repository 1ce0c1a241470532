"""The built site as a browser shows it: at three widths, light and dark, from the disk, without a network."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.browser import browse, needs_browser

ROOT = Path(__file__).parents[2]
WIDTHS = (390, 768, 1280)
DARK, LIGHT = 0, 1
PAGES = (
    "index",
    "theory",
    "meaning",
    "comparison",
    "formats",
    "laws",
    "watch",
    "gallery",
    "notation",
    "limits",
    "changelog",
    "architecture",
    "tutorials/train",
    "tutorials/ship",
    "tutorials/checkpoint",
    "howto/run_stalls",
    "api/index",
    "api/gradient_flow",
    "claims/tail-rank-one",
    "examples/check_backward",
)

PROBE = """<script>addEventListener("load", async () => {
  const mathematics = [...document.querySelectorAll(".math")];
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  if (location.search) await new Promise(done => setTimeout(done, 3000));  // results come one at a time
  parent.postMessage(JSON.stringify({
    key: KEY,
    wide: document.documentElement.scrollWidth - innerWidth,
    width: innerWidth,
    formulas: mathematics.length,
    typeset: mathematics.filter(each => each.querySelector("mjx-container svg")).length,
    errors: document.querySelectorAll("mjx-merror, [data-mjx-error]").length,
    pictures: [...document.images].filter(each => each.loading !== "lazy" && !each.naturalWidth).map(each => each.src),
    paper: getComputedStyle(document.body).backgroundColor,
    found: document.querySelectorAll("#search-results li").length,
  }), "*");
})</script>"""

FRAMES = """<meta name="color-scheme" content="light dark"><output></output><script>
const said = [];
onmessage = message => {
  said.push(JSON.parse(message.data));
  document.querySelector("output").textContent = JSON.stringify(said);
};
</script>
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built anew where it is not there."""
    target = ROOT / "docs" / "_build" / "html"
    if not (target / "index.html").exists():
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "-b", "html", str(ROOT / "docs"), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return target


def seen(site: Path, folder: Path, pages: tuple[str, ...], theme: int, query: str = "") -> list[dict]:
    """What each page says of itself at each width, in one browser."""
    frames, made = FRAMES, []
    try:
        for page in pages:
            for width in WIDTHS:
                source = site / f"{page}.html"
                probed = source.with_name(f"probed-{source.stem}-{width}.html")
                html = source.read_text(encoding="utf-8")
                key = json.dumps(f"{page} at {width}")
                probed.write_text(html.replace("</body>", PROBE.replace("KEY", key) + "</body>"), encoding="utf-8")
                made.append(probed)
                frames += f'<iframe src="{probed.relative_to(site)}{query}" width="{width}" height="900"></iframe>\n'
        frame = site / "probed-frames.html"
        made.append(frame)
        frame.write_text(frames, encoding="utf-8")
        dom, _ = browse(frame, folder, f"--blink-settings=preferredColorScheme={theme}", "--virtual-time-budget=60000")
    finally:
        for path in made:
            path.unlink()
    return json.loads(re.search(r"<output>(.*?)</output>", dom)[1].replace("&amp;", "&").replace("&quot;", '"'))


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_no_page_is_wider_than_its_window_and_all_mathematics_is_typeset(site, tmp_path, theme):
    found = seen(site, tmp_path, PAGES, theme)
    assert len(found) == len(PAGES) * len(WIDTHS)
    assert {each["key"]: each["wide"] for each in found if each["wide"] > 0} == {}
    assert {
        each["key"]: (each["typeset"], each["formulas"]) for each in found if each["typeset"] < each["formulas"]
    } == {}
    assert max(each["formulas"] for each in found) > 100
    assert {each["key"]: each["errors"] for each in found if each["errors"]} == {}
    assert {each["key"]: each["pictures"] for each in found if each["pictures"]} == {}
    lightness = {sum(map(int, re.findall(r"\d+", each["paper"])[:3])) for each in found}
    assert max(lightness) < 200 if theme == DARK else min(lightness) > 600


@pytest.mark.slow
@needs_browser
def test_a_page_that_is_too_wide_is_noticed(tmp_path):
    page = '<body><p style="width: 900px">wide</p><span class="math">x</span><img src="none.png"></body>'
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    found = {each["width"]: each for each in seen(tmp_path, tmp_path, ("page",), LIGHT)}
    assert [found[width]["wide"] > 0 for width in WIDTHS] == [True, True, False]
    assert all((each["formulas"], each["typeset"], len(each["pictures"])) == (1, 0, 1) for each in found.values())


@pytest.mark.slow
@needs_browser
def test_the_search_answers_from_the_disk(site, tmp_path):
    found = seen(site, tmp_path, ("search",), LIGHT, "?q=momentum")
    assert all(each["found"] > 2 for each in found)
    nothing = seen(site, tmp_path, ("search",), LIGHT, "?q=xylophone")
    assert all(each["found"] == 0 for each in nothing)


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site):
    fetched = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"(https?:[^\"]+)|<link[^>]+rel=\"(?:stylesheet|icon)\"[^>]+href=\"(https?:[^\"]+)"
    )
    assert [
        (path.name, found)
        for path in site.rglob("*.html")
        for found in fetched.findall(path.read_text(encoding="utf-8"))
    ] == []


@pytest.mark.slow
def test_every_link_inside_leads_somewhere(site):
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    anchors = {path: set(re.findall(r"\b(?:id|name)=\"([^\"]+)\"", text)) for path, text in pages.items()}
    broken = []
    for path, text in pages.items():
        for href in set(re.findall(r"<a[^>]+href=\"([^\"]+)\"", text)):
            target, _, anchor = href.partition("#")
            if re.match(r"\w+:", href) or href == "#":
                continue
            file = (path.parent / target).resolve() if target else path
            if not file.exists() or (anchor and file in anchors and anchor not in anchors[file]):
                broken.append((path.relative_to(site).as_posix(), href))
    assert broken == []
