"""The decomposition of a network into a multilinear map and a ReLU tree of signs, and sums over paths (T5)."""

from equipoise.theorems.decomposition.parts import Decomposition, decompose
from equipoise.theorems.decomposition.signs import sign_changes
from equipoise.theorems.decomposition.tree import SignTree

__all__ = ["Decomposition", "SignTree", "decompose", "sign_changes"]
