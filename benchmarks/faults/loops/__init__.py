"""Training loops by the hundred, a kind a file; each registers itself in `RECIPES`."""

from loops import changes, folders, frameworks, kinds, odd, plainest, rare, ways
from loops.base import RECIPES, Loop, Recipe

__all__ = ["RECIPES", "Loop", "Recipe", "changes", "folders", "frameworks", "kinds", "odd", "plainest", "rare", "ways"]
