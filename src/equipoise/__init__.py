"""Equipoise: what training does to your weights, derived, measured, certified, and put to use.

Nothing heavy is imported before it is used: `import equipoise` reads neither torch nor pandas.
"""

from equipoise.starting import end_when_interrupted

end_when_interrupted()

import ast
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

__version__ = version("equipoise")

# The public names are those of `__init__.pyi`, by the modules that it imports them from.
_IMPORTS = ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
_MODULE_OF = {
    alias.name: str(node.module) for node in _IMPORTS if isinstance(node, ast.ImportFrom) for alias in node.names
}
__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll] - which reads the stub


def __getattr__(name: str) -> object:
    """A public name or a package, imported when it is first used."""
    if name not in __all__ and (name.startswith("_") or find_spec(f"equipoise.{name}") is None):
        raise AttributeError(f"module 'equipoise' has no attribute {name!r}")
    module = _MODULE_OF.get(name, __name__)
    found = None if module == __name__ else getattr(import_module(module), name, None)
    globals()[name] = import_module(f"{module}.{name}") if found is None else found
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
