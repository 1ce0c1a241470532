"""The same function with other weights: moves along the symmetries that the laws come from."""

from equipoise.transform.aligning import Aligned, AlignReport, PartMove, WeightDistance, align
from equipoise.transform.balancing import Balanced, BalanceReport, LawBalance, WeightSize, balance
from equipoise.transform.movable import Immovable, Vanished

__all__ = [
    "AlignReport",
    "Aligned",
    "BalanceReport",
    "Balanced",
    "Immovable",
    "LawBalance",
    "PartMove",
    "Vanished",
    "WeightDistance",
    "WeightSize",
    "align",
    "balance",
]
