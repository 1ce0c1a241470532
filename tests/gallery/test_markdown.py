"""The table of the gallery as Markdown, and the file of the documentation that it is put into."""

import re
from pathlib import Path

import pytest

from equipoise.errors import InputError, StoreError
from equipoise.gallery import Measurement, Results, claims, markdown, write_into
from equipoise.gallery.case import DATA
from equipoise.gallery.markdown import BEGIN, END
from equipoise.gallery.registry import CLAIMS
from equipoise.gallery.results import row

DOCUMENT = Path(__file__).parents[2] / "docs" / "gallery.md"


@pytest.fixture
def results():
    """Held at the threshold; failed; without its premise."""
    claim = CLAIMS["two-points"]
    found = [Measurement(0.01), Measurement(0.5, remark="at 101°"), Measurement.without("the flow stalled")]
    return Results([row(claim, "digits", seed, measurement, 0.1) for seed, measurement in enumerate(found)], 12.3)


def test_shares_worst_statistic_and_every_exception_are_told(results):
    title = CLAIMS["two-points"].title
    lines = markdown(results).splitlines()
    assert lines[2] == f"| {title} | T4.3, T4.4 | 1 of 2 (1 without premise) | 0.5 | ≤ 0.01 |"
    assert f"- **fails**: {title}; digits, seed 1: 0.5. at 101°" in lines
    assert f"- does not apply: {title}; digits, seed 2: the flow stalled." in lines
    held = Results(results.rows[:1], 1.0)
    assert markdown(held).endswith("Every claim holds in every run.")


def test_the_table_replaces_what_stands_between_its_marks(results, tmp_path):
    document = tmp_path / "gallery.md"
    document.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n", encoding="utf-8")
    write_into(document, results)
    text = document.read_text(encoding="utf-8")
    assert text == f"before\n{BEGIN}\n{markdown(results)}\n{END}\nafter\n"
    document.write_text("no marks", encoding="utf-8")
    with pytest.raises(InputError, match="the marks"):
        write_into(document, results)
    with pytest.raises(StoreError, match="a Markdown file"):
        write_into(tmp_path / "nowhere.md", results)


def test_the_documentation_has_every_claim_on_every_data_set():
    """What `equipoise gallery table --into docs/gallery.md` wrote is about the claims as they are now."""
    table = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [re.split(r" \| ", line.strip("| ")) for line in table.splitlines() if line.startswith("| ")][1:]
    rows = [cells for cells in rows if not set(cells[0]) <= {"-"}]
    assert [cells[:2] for cells in rows] == [[claim.title, claim.theorem] for claim in claims()]
    assert [cells[-1] for cells in rows] == [f"{claim.relation} {claim.threshold:.3g}" for claim in claims()]
    for cells in rows:
        counts = [
            re.fullmatch(r"(\d+) of (\d+)(?: \((\d+) without premise\))?", cell) for cell in cells[2 : 2 + len(DATA)]
        ]
        assert all(counts)
        assert all(int(found[2]) + int(found[3] or 0) >= 5 for found in counts)
