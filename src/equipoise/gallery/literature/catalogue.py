"""The papers of the gallery, found by their files: a module of `equipoise.gallery.papers` with a `PAPER`."""

import pkgutil
from functools import cache
from importlib import import_module

from equipoise.errors import InputError
from equipoise.gallery import papers as folder
from equipoise.gallery.literature.paper import Paper


@cache
def catalogue() -> dict[str, Paper]:
    """Every paper by its key, in the order of the keys' years and then their names."""
    modules = (import_module(f"{folder.__name__}.{found.name}") for found in pkgutil.iter_modules(folder.__path__))
    found: list[Paper] = [module.PAPER for module in modules if hasattr(module, "PAPER")]
    return {each.key: each for each in sorted(found, key=lambda each: (each.reference.year, each.key))}


def papers() -> tuple[Paper, ...]:
    """Every paper of the gallery.

    >>> "schechtman2025late" in {paper.key for paper in papers()}
    True
    """
    return tuple(catalogue().values())


def paper(key: str) -> Paper:
    """The paper of that key. Raises `InputError` for a key that is none."""
    if key not in catalogue():
        raise InputError(
            expected=f"papers among {', '.join(catalogue())}", found=key, remedy="type equipoise gallery papers"
        )
    return catalogue()[key]
