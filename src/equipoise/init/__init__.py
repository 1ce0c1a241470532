"""Initialisations, in place, as `torch.nn.init` has them."""

from equipoise.init.balanced import balanced_

__all__ = ["balanced_"]
