"""The same function with other weights: moves along the symmetries that the laws come from."""

from equipoise.transform.balancing import Balanced, BalanceReport, balance
from equipoise.transform.movable import Immovable, Vanished

__all__ = ["BalanceReport", "Balanced", "Immovable", "Vanished", "balance"]
