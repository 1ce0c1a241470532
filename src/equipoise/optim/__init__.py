"""Optimizers from the literature, as `torch.optim` has them; and critical points of regularised losses."""

from equipoise.optim.critical_points import CriticalPoint, minimise
from equipoise.optim.low_rank_gd import LowRankGD, oracle

__all__ = ["CriticalPoint", "LowRankGD", "minimise", "oracle"]
