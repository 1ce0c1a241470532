"""What is imported when: nothing heavy before it is used."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import equipoise as eq

HEAVY = ("torch", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "plotly")


def printed(code):
    """The lines that a fresh process prints, and what it has imported of `HEAVY`."""
    probe = f"{code}\nimport sys\nprint(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    *lines, imported = done.stdout.splitlines()
    return lines, set(ast.literal_eval(imported))


def test_nothing_heavy_is_imported_before_it_is_used():
    code = "from equipoise.cli.app import main\ntry: main(['--version'])\nexcept SystemExit: pass"
    assert printed(code) == ([eq.__version__], set())


def test_packages_inside_others_are_found_and_training_imports_no_more_than_it_needs():
    """As the first use of each in a process."""
    code = (
        "import equipoise as eq; print(eq.steppers.SGD.__name__, eq.compression.plan.__name__); eq.watch; eq.compress"
    )
    lines, imported = printed(code)
    assert lines == ["SGD plan"]
    assert imported <= {"torch", "numpy", "pandas", "scipy"}


def test_type_checkers_see_what_is_imported_later():
    stub = ast.parse(Path(eq.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: each.module for each in imports for alias in each.names if alias.asname == alias.name}
    assert sorted(seen) == eq.__all__  # under the same names: a stub exports no others
    assert len(seen) > 50
    for name, module in seen.items():
        public = getattr(eq, name)
        found = import_module(f"equipoise.{name}") if module == "equipoise" else getattr(import_module(module), name)
        assert public is found
    with pytest.raises(AttributeError, match="no attribute 'wtach'"):
        getattr(eq, "wtach")  # noqa: B009
