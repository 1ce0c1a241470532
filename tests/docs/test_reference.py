"""The reference lists every public name, and the format matrix all that the readers recognise."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import equipoise

EXTENSIONS = Path(__file__).parents[2] / "docs" / "_extensions"
sys.path.insert(0, str(EXTENSIONS))
reference = importlib.import_module("api_reference")

INTERNAL = ("cli", "graph", "store", "page", "laws.evaluate")  # the command line, and the engines behind the rest


def public_modules():
    """`equipoise`, and whatever two levels below it has an `__all__`."""
    yield equipoise
    for path in sorted(Path(equipoise.__path__[0]).rglob("*.py")):
        name = ".".join(path.relative_to(equipoise.__path__[0]).with_suffix("").parts).removesuffix(".__init__")
        if (
            0 < name.count(".") + 1 <= 2
            and not name.startswith(INTERNAL)
            and "\n__all__ = [" in path.read_text("utf-8")
        ):
            yield importlib.import_module(f"equipoise.{name}")


def names():
    return [(module.__name__, name) for module in public_modules() for name in module.__all__]


def test_every_public_name_is_in_the_reference():
    listed = reference.entries()
    values, paths = {id(entry.value) for entry in listed}, {entry.path for entry in listed}
    missing = [
        f"{module}.{name}"
        for module, name in names()
        if not inspect.ismodule(value := getattr(sys.modules[module], name))
        and id(value) not in values
        and f"{module}.{name}" not in paths
    ]
    assert missing == []
    assert len(listed) > 150


def test_no_name_is_listed_twice():
    paths = [entry.path for entry in reference.entries()]
    assert len(set(paths)) == len(paths)
    values = [id(entry.value) for entry in reference.entries() if inspect.isclass(entry.value)]
    assert len(set(values)) == len(values)


def test_a_name_that_no_topic_lists_is_noticed(monkeypatch):
    monkeypatch.setattr(reference, "TOPICS", {"Nothing": ("equipoise.testing",)})
    assert [entry.path for entry in reference.entries()] == ["equipoise.testing.assert_laws"]


@pytest.mark.parametrize(
    ("text", "rst"),
    [
        ("`a_` times *b*", r"``a_`` times \*b\*"),
        ("norm |x| of w_", r"norm \|x\| of w\_"),
        ("`eps`s", r"``eps``\ s"),
        (">>> f(*args)", ">>> f(*args)"),
        ("    (1, 2)", "    (1, 2)"),
    ],
)
def test_docstrings_are_read_as_markdown(text, rst):
    assert reference.as_rst([text]) == [rst]


def test_the_output_of_an_example_is_left_as_it_is():
    lines = ["Sums `x*y`.", "", ">>> f('*')", "'*|*'", "", "Then *more*."]
    assert reference.as_rst(lines) == ["Sums ``x*y``.", "", ">>> f('*')", "'*|*'", "", r"Then \*more\*."]


def test_the_format_matrix_has_every_refusal_of_the_readers():
    pytest.importorskip("sphinx")
    matrix = importlib.import_module("format_matrix")
    recognised = inspect.getsource(matrix.recognised)
    rows = matrix.refusals()
    assert len(rows) >= len(re.findall(r"\bForeign\(\s*[f\"]", recognised)) - 1
    for path in ("GGUF", "TensorFlow Lite", "Keras model", "mp_rank_", "empty", "torch.export"):
        assert any(path in row.what for row in rows), path
    assert all(row.remedy for row in rows)
    assert {"safetensors", "torch", "onnx", "module", "state"} <= {name for name, _ in matrix.readers()}
