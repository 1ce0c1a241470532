"""The decomposition of a network into a multilinear map and a ReLU tree of signs, and sums over paths (T5)."""

from equipoise.decomposition.multilinear import Decomposition, decompose
from equipoise.decomposition.sign_history import sign_changes
from equipoise.decomposition.tree import SignTree

__all__ = ["Decomposition", "SignTree", "decompose", "sign_changes"]
