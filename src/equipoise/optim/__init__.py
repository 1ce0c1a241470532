"""Optimizers from the literature, as `torch.optim` has them."""

from equipoise.optim.low_rank_gd import LowRankGD, oracle

__all__ = ["LowRankGD", "oracle"]
