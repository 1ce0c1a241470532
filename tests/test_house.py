"""The shape of the source: names that stand for one thing, rooms of a size, words, and the page that lists them."""

import ast
import importlib.util
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "equipoise"
LARGEST = 12  # files of a package at one level, experiments and papers apart


def modules():
    return [(path, path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))]


def test_no_class_name_stands_for_two_things():
    places = defaultdict(list)
    for path, text in modules():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path.relative_to(SOURCE).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_package_is_crowded():
    counts = defaultdict(int)
    for path, _ in modules():
        counts[path.parent.relative_to(SOURCE).as_posix()] += path.name != "__init__.py"
    apart = {"gallery/experiments", "gallery/papers", "."}
    assert {name: count for name, count in counts.items() if count > LARGEST and name not in apart} == {}


def test_texts_refer_to_files_that_the_repository_holds():
    missing = []
    for path, text in modules():
        assert "THEORY" not in re.sub(r"\bTHEORY\s*=|_THEORY|THEORY_", "", text), path
        named = re.findall(r"\b((?:docs|tests|benchmarks|examples)/[\w/]+\.(?:md|py|svg))\b", text)
        missing += [(path.name, name) for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_the_page_of_the_architecture_is_up_to_date():
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
    architecture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(architecture)
    hint = "run python docs/architecture.py"
    assert architecture.PAGE.read_text(encoding="utf-8") == architecture.page(), hint
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.picture(), hint
    drawn = [room for group in architecture.GROUPS.values() for room in group]
    assert sorted(drawn) == sorted(architecture.layers())


@pytest.mark.parametrize("pattern", [r"perf_counter\(\)", r"time\.time\(\)"])
def test_no_test_asserts_a_timing(pattern):
    asserted = re.compile(rf"assert[^\n]*{pattern}")
    found = [path.name for path in (ROOT / "tests").rglob("*.py") if asserted.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_long_tests_are_those_that_there_are():
    """Of every file that is listed, and every room keeps tests that `make test-fast` runs."""
    listed = {line.removesuffix("[1:]"): line for line in (ROOT / "tests/helpers/long.txt").read_text("utf-8").split()}
    gone = []
    for name in listed:
        path, _, test = name.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).exists() else ""
        if not text or (path.startswith("tests") and not re.search(rf"^def {test}\(", text, re.M)):
            gone.append(name)
    assert gone == []
    left = defaultdict(int)
    for path in (ROOT / "tests").rglob("test_*.py"):
        for test in re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.M):
            name = f"{path.relative_to(ROOT).as_posix()}::{test}"
            left[path.parent.name] += listed.get(name, "[1:]").endswith("[1:]")
    assert {room: count for room, count in left.items() if count < 2} == {}
