"""Optimizers from the literature, as `torch.optim` has them; critical points; and training by clients."""

from equipoise.optim.critical_points import CriticalPoint, minimise
from equipoise.optim.federated import FederatedResult, fed_avg, fed_lrgd
from equipoise.optim.low_rank_gd import LowRankGD, oracle
from equipoise.optim.proximal import ProximalSGD, active_neurons, share_neurons, shrink_groups_
from equipoise.optim.sam import SAM

__all__ = [
    "SAM",
    "CriticalPoint",
    "FederatedResult",
    "LowRankGD",
    "ProximalSGD",
    "active_neurons",
    "fed_avg",
    "fed_lrgd",
    "minimise",
    "oracle",
    "share_neurons",
    "shrink_groups_",
]
