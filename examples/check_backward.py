"""A hand-written backward pass, checked without a reference implementation
========================================================================
"""

import torch
from torch import Tensor, nn

from equipoise.testing import assert_laws


class ScaledLinear(torch.autograd.Function):
    """`x Wᵀ / √d`, with a backward pass of its own; `slip` plants the mistake of forgetting the scale in it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, slip: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.slip = slip
        return x @ weight.T / weight.shape[1] ** 0.5

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        scaled = grad / weight.shape[1] ** 0.5
        return scaled @ weight, (grad if ctx.slip else scaled).T @ x, None


class Layer(nn.Linear):
    slip = False

    def forward(self, x: Tensor) -> Tensor:
        return ScaledLinear.apply(x, self.weight, self.slip)


def check(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(8, 16), layer, nn.ReLU(), nn.Linear(16, 4))  # your layer, in a small network
    print(assert_laws(model, torch.randn(32, 8)))


def main() -> None:
    torch.manual_seed(0)
    layer = Layer(16, 16, bias=False)
    check(layer)
    layer.slip = True
    try:
        check(layer)
    except AssertionError as found:
        print(f"caught: {found}")
    else:
        raise SystemExit("the planted mistake went unseen")


if __name__ == "__main__":
    main()
