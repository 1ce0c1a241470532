"""A page as a browser sees it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium to look at the page with")

# what only a browser knows, written where --dump-dom shows it
PROBE = """<script>
  const seen = {
    width: innerWidth,
    wide: document.documentElement.scrollWidth - innerWidth,
    plots: [...document.querySelectorAll(".plot")].map(plot => ({
      name: plot.parentElement.id,
      curves: plot.querySelectorAll("path.js-line").length,
      visible: plot.data.filter(trace => trace.y.length > 1).length,
      spill: plot.querySelector(".main-svg").getBoundingClientRect().right - plot.getBoundingClientRect().right,
      ink: plot.layout.font.color,
    })),
    paper: getComputedStyle(document.body).backgroundColor,
  };
  parent.postMessage(JSON.stringify(seen), "*");
</script>"""

# a window is never narrower than 500 pixels, a frame can be a phone
FRAME = """<meta name="color-scheme" content="light dark"><output></output>
<script>onmessage = said => document.querySelector("output").textContent = said.data</script>
<iframe src="probed.html" width="{width}" height="900"></iframe>"""


def browse(page: Path, folder: Path, *flags: str) -> tuple[str, list[str]]:
    """The page's DOM after its scripts have run, and what they said to the console."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=8000"]
    command += ["--enable-logging=stderr", "--v=0", *flags, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def look(page: Path, folder: Path, width: int, theme: int) -> dict:
    html = page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>")
    (folder / "probed.html").write_text(html, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    dom, complaints = browse(folder / "frame.html", folder, f"--blink-settings=preferredColorScheme={theme}")
    assert complaints == []
    return json.loads(re.search(r"<output>(.*)</output>", dom)[1])
