"""Products with the Hessian of a loss: the gradient is computed once, and differentiated for each product."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

HessianProduct = Callable[[Float[Tensor, " p"]], Float[Tensor, " p"]]


def hessian_product(loss: Tensor, weights: Sequence[Tensor]) -> HessianProduct:
    """`v ↦ H v` for the Hessian of a loss in some weights, flattened and joined.

    Args:
        loss: a scalar with a graph; that of its gradient is kept as long as the product.
        weights: that it depends on.

    Returns:
        The product, in the dtype of the weights; zero where the loss is linear.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hessian_product((w**3).sum(), [w])(torch.ones(2))
    tensor([ 6., 12.])
    """
    gradients = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    gradient = torch.cat([each.flatten() for each in gradients])

    def product(vector: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        if not gradient.requires_grad:  # a loss that is linear in every weight
            return torch.zeros_like(vector)
        rows = torch.autograd.grad(gradient, weights, vector.to(gradient), retain_graph=True, materialize_grads=True)
        return torch.cat([row.flatten() for row in rows])

    return product
