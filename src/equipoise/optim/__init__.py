"""Optimizers from the literature, as `torch.optim` has them; and critical points of regularised losses."""

from equipoise.optim.critical_points import CriticalPoint, minimise
from equipoise.optim.low_rank_gd import LowRankGD, oracle
from equipoise.optim.sam import SAM

__all__ = ["SAM", "CriticalPoint", "LowRankGD", "minimise", "oracle"]
