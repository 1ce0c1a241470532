"""The tables of docs/laws.md are those that its script computes today, and every residual in them is at rounding."""

import importlib.util
import re
from pathlib import Path

import pytest

from helpers.sampling import sampled

DOCS = Path(__file__).parents[1] / "docs"
ROUNDING = 1e-15


def load():
    spec = importlib.util.spec_from_file_location("laws_tables", DOCS / "laws_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pytest.importorskip("torch_geometric")
tables = load()


def printed(subject):
    """Introduction and rows `(law, kind, count, residual, corrected)` of one section of the page."""
    section = (DOCS / "laws.md").read_text(encoding="utf-8").partition(f"## {subject.what}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \| (\w+) \| (\d+) \| (\S+) \| (\S*) ?\|$", section, flags=re.MULTILINE)
    return section.strip().partition("\n")[0], rows


SLOW = [subject for subject in tables.SUBJECTS if "ResNet" in subject.what]


@pytest.mark.parametrize(
    "subject", sampled(tables.SUBJECTS, SLOW), ids=lambda subject: subject.what.partition(",")[0].split(":")[0]
)
def test_the_page_is_up_to_date(subject):
    told, rows = tables.lines(subject)
    introduction, on_page = printed(subject)
    assert introduction == f"{told}."
    assert [row[:3] for row in on_page] == [(row.law, row.kind, str(row.count)) for row in rows]
    assert [bool(row[4]) for row in on_page] == [row.corrected is not None for row in rows]
    for row, (*_, residual, corrected) in zip(rows, on_page, strict=True):
        settled = row.residual if row.corrected is None else row.corrected
        assert settled < ROUNDING
        assert float(corrected or residual) < ROUNDING
        if row.corrected is not None:
            assert float(residual) == pytest.approx(row.residual, rel=0.5)  # one digit is printed
