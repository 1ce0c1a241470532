"""Small networks in float64, reference ones and those of the literature.

They are ordinary modules: nothing in Equipoise recognises them by type.
"""

from equipoise.networks.literature import ModularTransformer, deep_features, paired_mlp
from equipoise.networks.standard import INITS, POOLS, SKIPS, convnet, mlp, residual_mlp, transformer

__all__ = [
    "INITS",
    "POOLS",
    "SKIPS",
    "ModularTransformer",
    "convnet",
    "deep_features",
    "mlp",
    "paired_mlp",
    "residual_mlp",
    "transformer",
]
