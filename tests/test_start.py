"""What is imported when: nothing heavy before it is used."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import equipoise as eq

HEAVY = ("torch", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "plotly")


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import equipoise", ()),
        ("from equipoise.cli.app import main\ntry: main(['--version'])\nexcept SystemExit: pass", ()),
        ("import equipoise; equipoise.watch", ("torch", "numpy", "pandas", "scipy")),
        ("import equipoise; equipoise.compress", ("torch", "numpy", "pandas", "scipy")),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_used(code, allowed):
    probe = f"{code}\nimport sys\nprint(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    assert set(ast.literal_eval(done.stdout.splitlines()[-1])) <= set(allowed)


def test_a_package_inside_another_is_found_before_anything_imported_it():
    code = "import equipoise as eq; print(eq.steppers.SGD.__name__, eq.compression.plan.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["SGD", "plan"]


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
