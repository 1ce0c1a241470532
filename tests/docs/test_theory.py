"""Every symbol that docs/theory.md links to exists, in the file that the link leads to."""

import importlib
import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
LINK = re.compile(r"\[`(equipoise[\w.]+)`\]\(([^)]+)\)")
LINKS = sorted(set(LINK.findall((DOCS / "theory.md").read_text(encoding="utf-8"))))


def resolved(dotted):
    parts = dotted.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"no module in {dotted}")


def test_there_are_links():
    assert len(LINKS) > 50


@pytest.mark.parametrize(("dotted", "target"), LINKS)
def test_each_link_leads_to_its_symbol(dotted, target):
    path = (DOCS / target).resolve()
    assert path.is_file()
    assert Path(sys.modules[resolved(dotted).__module__].__file__).resolve() == path


@pytest.mark.parametrize("number", ["T1", "T2", "T2.2", "T3.1", "T3.2", "T3.4", "T4.2", "T5.1", "T5.3", "T6.2"])
def test_every_statement_is_there(number):
    assert f"**{number} " in (DOCS / "theory.md").read_text(encoding="utf-8").replace(f"**{number}.**", f"**{number} ")
