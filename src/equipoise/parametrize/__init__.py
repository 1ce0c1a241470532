"""Weights as products: parametrisations for `torch.nn.utils.parametrize` whose weight decay is another penalty."""

from equipoise.parametrize.factors import Factors, Sparsity, collapse, factorize, penalty, sparsity
from equipoise.parametrize.udv import UDV, constrain, project, prune, udv

__all__ = [
    "UDV",
    "Factors",
    "Sparsity",
    "collapse",
    "constrain",
    "factorize",
    "penalty",
    "project",
    "prune",
    "sparsity",
    "udv",
]
