"""Small reference networks in float64: multilayer perceptron, residual network, convnet and transformer."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from equipoise.arguments import checked
from equipoise.errors import InputError

INITS: dict[str, Callable[..., Tensor]] = {
    "fan_in": partial(nn.init.kaiming_normal_, nonlinearity="linear"),
    "kaiming": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "kaiming_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "xavier": nn.init.xavier_normal_,
    "xavier_uniform": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
}
"""How weights may start: N(0, 1/fan_in), N(0, 2/fan_in), and others of `torch.nn.init`."""

SKIPS = ("identity", "dense", "diagonal")
POOLS: dict[str, Callable[[int], nn.Module]] = {"average": nn.AvgPool2d, "maximum": nn.MaxPool2d}


@checked
def mlp(
    widths: Iterable[Any],
    linear_tail: int = 1,
    bias: bool = False,
    seed: int = 0,
    init: str = "fan_in",
    scale: float | int = 1.0,
    balanced: bool = False,
) -> nn.Sequential:
    """A feedforward ReLU network whose last `linear_tail` weight matrices have no activation between them (T3.4).

    `widths` counts input and output, so `len(widths) - 1` matrices, named `layer1`, `layer2`, …; each of the first
    ones is followed by `relu1`, `relu2`, …. `linear_tail=1` is the usual ReLU network, `linear_tail=len(widths) - 1`
    a deep linear one. Weights are float64, drawn in order from a generator of its own seeded with `seed`:
    N(0, 1/fan_in), or `init` among `INITS`; then multiplied by `scale`. Biases, where asked for, start at zero.
    `balanced` then rescales them so that every law starts at zero (T2): `W₊ᵀ W₊ = W Wᵀ` below a linear layer, and
    `‖in‖ = ‖out‖` for each neuron with a ReLU.

    >>> mlp([784, 64, 64, 1], linear_tail=2)
    Sequential(
      (layer1): Linear(in_features=784, out_features=64, bias=False)
      (relu1): ReLU()
      (layer2): Linear(in_features=64, out_features=64, bias=False)
      (layer3): Linear(in_features=64, out_features=1, bias=False)
    )

    Raises `InputError` for widths that are not positive integers, fewer than two of them, a tail outside
    1 … `len(widths) - 1`, an unknown `init`, a scale that is not positive and finite, and balanced linear layers that
    are narrower than the rank of those above.
    """
    sizes = widths_checked(widths)
    depth = len(sizes) - 1
    rectified = depth - integer_checked("linear_tail", linear_tail, 1, depth)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k in range(1, depth + 1):
        layers[f"layer{k}"] = linear_layer(sizes[k - 1], sizes[k], bias)
        if k <= rectified:
            layers[f"relu{k}"] = nn.ReLU()
    model = nn.Sequential(layers)
    start_weights(model, seed, init, scale)
    if balanced:
        _balance([cast(nn.Linear, layers[f"layer{k}"]) for k in range(1, depth + 1)], rectified)
    return model


def _balance(layers: list[nn.Linear], rectified: int) -> None:
    """Make every law zero, from the last layer down; the last keeps its weights.

    Below a ReLU each row keeps its direction. Below a linear layer, with `W₊ = L S R` cut to its rank, `W ← Rᵀ S Q`
    with `Q` the polar factor of `R W`: its rank is that of `W₊`.

    Raises:
        InputError: where a layer is too narrow for that rank.
    """
    with torch.no_grad():
        for k in range(len(layers) - 1, 0, -1):
            below, above = layers[k - 1].weight, layers[k].weight
            if k <= rectified:
                below.mul_((above.norm(dim=0) / below.norm(dim=1))[:, None])
                continue
            _, values, right = torch.linalg.svd(above, full_matrices=False)
            rank = int((values > 1e-9 * values[0]).sum())
            if rank > below.shape[1]:
                raise InputError(
                    expected=f"at least {rank} inputs of layer{k}, the rank of layer{k + 1}, for balanced weights",
                    found=str(below.shape[1]),
                    remedy="widen the layers below, or pass balanced=False",
                )
            left, _, turn = torch.linalg.svd(right[:rank] @ below, full_matrices=False)
            below.copy_(right[:rank].mT @ (values[:rank, None] * (left @ turn)))


class DiagonalSkip(nn.Module):
    """`h ↦ z ∘ h`, one trained factor `z_j` for each coordinate, all 1 at the start.

    >>> DiagonalSkip(2)(torch.tensor([3.0, 4.0]).double())
    tensor([3., 4.], dtype=torch.float64, grad_fn=<MulBackward0>)
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=torch.float64))

    def forward(self, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Each coordinate times its factor."""
        return self.weight * h


class ResidualBlock(nn.Module):
    """`h ↦ skip(h) + down(relu(up(h)))`, the skip an identity, a trained dense map or a trained diagonal one (T2.5)."""

    def __init__(self, width: int, hidden: int, skip: str, bias: bool):
        super().__init__()
        self.up = linear_layer(width, hidden, bias)
        self.relu = nn.ReLU()
        self.down = linear_layer(hidden, width, bias)
        made = {"identity": nn.Identity, "dense": lambda: linear_layer(width, width, bias=False)}
        self.skip = made.get(skip, lambda: DiagonalSkip(width))()

    def forward(self, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The residual branch added to the skip."""
        return self.skip(h) + self.down(self.relu(self.up(h)))


@checked
def residual_mlp(
    inputs: int,
    width: int,
    hidden: int,
    outputs: int = 1,
    *,
    blocks: int = 1,
    skip: str = "identity",
    linear_tail: int = 2,
    bias: bool = False,
    seed: int = 0,
    init: str = "fan_in",
    scale: float | int = 1.0,
) -> nn.Sequential:
    """A linear embedding, ReLU blocks with skips on a stream of `width`, and a tail of linear layers (T2.5, T3.4).

    `embed` maps `inputs` to `width`; `block1`, `block2`, … add `down(relu(up(h)))`, through `hidden` neurons, to `h`
    (`skip="identity"`), to a trained `Z h` (`skip="dense"`), or to `z ∘ h` with a trained factor for each coordinate
    (`skip="diagonal"`), under which the stream keeps its laws vertex by vertex only; `layer1`, … are the `linear_tail`
    last matrices.
    Weights start as in `mlp`. An identity skip breaks homogeneity.

    >>> model = residual_mlp(4, 8, 16)
    >>> [name for name, _ in model.named_parameters()]
    ['embed.weight', 'block1.up.weight', 'block1.down.weight', 'layer1.weight', 'layer2.weight']

    Raises:
        InputError: for sizes that are not positive integers, an unknown `skip` or `init`, a senseless `scale`.
    """
    d_in, d, d_hidden, d_out = widths_checked([inputs, width, hidden, outputs])
    depth = integer_checked("linear_tail", linear_tail, 1)
    if skip not in SKIPS:
        raise InputError(expected=f"skip among {', '.join(SKIPS)}", found=repr(skip), remedy="pass skip='identity'")
    layers: OrderedDict[str, nn.Module] = OrderedDict(embed=linear_layer(d_in, d, bias))
    for b in range(1, integer_checked("blocks", blocks, 1) + 1):
        layers[f"block{b}"] = ResidualBlock(d, d_hidden, skip, bias)
    for k in range(1, depth + 1):
        layers[f"layer{k}"] = linear_layer(d, d_out if k == depth else d, bias)
    model = nn.Sequential(layers)
    start_weights(model, seed, init, scale)
    return model


@checked
def convnet(
    image: tuple[int, int],
    channels: Iterable[Any],
    width: int,
    outputs: int = 1,
    *,
    linear_tail: int = 2,
    pool: str = "average",
    bias: bool = False,
    seed: int = 0,
    init: str = "fan_in",
    scale: float | int = 1.0,
) -> nn.Sequential:
    """Convolutions of 3 × 3 taps with ReLU and pooling by 2 on grey images, then `linear_tail` linear layers (T3.4).

    Takes images of `image = (height, width)` pixels, flat or not. `conv1`, `conv2`, … write `channels` channels, each
    followed by a ReLU and a pooling (`pool="average"` or `"maximum"`); `layer1`, … are the last matrices, of `width`
    neurons between. Weights start as in `mlp`.

    >>> model = convnet((8, 8), (2, 3), width=5)
    >>> [(name, tuple(weight.shape)) for name, weight in model.named_parameters()]
    [('conv1.weight', (2, 1, 3, 3)), ('conv2.weight', (3, 2, 3, 3)), ('layer1.weight', (5, 12)),
     ('layer2.weight', (1, 5))]

    Raises:
        InputError: for sizes that are not positive integers, an image too small for its poolings, and an unknown `pool`
            or `init`.
    """
    height, length = widths_checked(image)
    counts = widths_checked([1, *channels])
    depth = integer_checked("linear_tail", linear_tail, 1)
    if pool not in POOLS:
        raise InputError(expected=f"pool among {', '.join(POOLS)}", found=repr(pool), remedy="pass pool='average'")
    layers: OrderedDict[str, nn.Module] = OrderedDict(image=_Image(height, length))
    for k, (below, above) in enumerate(pairwise(counts), 1):
        layers[f"conv{k}"] = cast(
            nn.Conv2d, skip_init(nn.Conv2d, below, above, 3, padding=1, bias=bias, dtype=torch.float64)
        )
        layers[f"relu{k}"] = nn.ReLU()
        layers[f"pool{k}"] = POOLS[pool](2)
        height, length = height // 2, length // 2
    layers["flat"] = nn.Flatten()
    sizes = [integer_checked("pixels left after the poolings", counts[-1] * height * length, 1)]
    sizes += [width] * (depth - 1) + [outputs]
    for k, (below, above) in enumerate(pairwise(widths_checked(sizes)), 1):
        layers[f"layer{k}"] = linear_layer(below, above, bias)
    model = nn.Sequential(layers)
    start_weights(model, seed, init, scale)
    return model


class TransformerBlock(nn.Module):
    """`h ↦ h + out(attention(norm(h)))`, then `h ↦ h + down(relu(up(norm(h))))`; every norm is before its branch."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, dtype=torch.float64) for _ in range(2))
        self.query, self.key, self.value, self.out = (linear_layer(width, width, bias=False) for _ in range(4))
        self.up, self.down = linear_layer(width, hidden, bias=False), linear_layer(hidden, width, bias=False)

    def forward(self, h: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n tokens width"]:
        """Attention, then the two-layer network."""
        x = self.norm1(h)
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + self.out(mixed)
        return h + self.down(torch.relu(self.up(self.norm2(h))))


@checked
def transformer(
    tokens: int,
    inputs: int,
    width: int = 8,
    heads: int = 2,
    outputs: int = 1,
    *,
    blocks: int = 1,
    hidden: int | None = None,
    linear_tail: int = 2,
    seed: int = 0,
    init: str = "fan_in",
    scale: float | int = 1.0,
) -> nn.Sequential:
    """A small transformer on `tokens` vectors of `inputs` numbers, with a linear tail on the mean of them (T3.4).

    Takes inputs flat or not. `embed` maps each token to `width`; `block1`, … are attention with `heads` heads and a
    ReLU network of `hidden` neurons (default `2 width`), each after a LayerNorm; `layer1`, … are the `linear_tail`
    last matrices. There is no positional embedding. Weights start as in `mlp`, gains at one.

    >>> model = transformer(4, 16)
    >>> [name for name, _ in model.named_parameters() if "block" not in name]
    ['embed.weight', 'layer1.weight', 'layer2.weight']
    >>> model(torch.zeros(3, 64).double()).shape
    torch.Size([3, 1])

    Raises:
        InputError: for sizes that are not positive integers, a width that `heads` does not divide, and an unknown
            `init`.
    """
    count, d_in, d, d_out = widths_checked([tokens, inputs, width, outputs])
    depth = integer_checked("linear_tail", linear_tail, 1)
    if d % integer_checked("heads", heads, 1, d):
        raise InputError(expected=f"heads that divide the width {d}", found=str(heads), remedy="pass heads=1")
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        tokens=_Tokens(count, d_in), embed=linear_layer(d_in, d, bias=False)
    )
    for b in range(1, integer_checked("blocks", blocks, 1) + 1):
        layers[f"block{b}"] = TransformerBlock(d, heads, integer_checked("hidden", hidden or 2 * d, 1))
    layers["mean"] = _Mean()
    for k in range(1, depth + 1):
        layers[f"layer{k}"] = linear_layer(d, d_out if k == depth else d, bias=False)
    model = nn.Sequential(layers)
    start_weights(model, seed, init, scale)
    return model


class _Tokens(nn.Module):
    """Flat or not, as (n, tokens, inputs)."""

    def __init__(self, tokens: int, inputs: int):
        super().__init__()
        self.tokens, self.inputs = tokens, inputs

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n tokens inputs"]:
        return x.reshape(-1, self.tokens, self.inputs)


class _Mean(nn.Module):
    """The mean over tokens."""

    def forward(self, h: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n width"]:
        return h.mean(1)


class _Image(nn.Module):
    """Flat or square, with or without an axis for its one channel, as (n, 1, height, width)."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n 1 height width"]:
        return x.reshape(-1, 1, self.height, self.width)


def linear_layer(fan_in: int, fan_out: int, bias: bool) -> nn.Linear:
    """A layer in float64 whose weights are not drawn yet: `nn.Linear(...)` would use the global generator."""
    return cast(nn.Linear, skip_init(nn.Linear, fan_in, fan_out, bias=bias, dtype=torch.float64))


def start_weights(model: nn.Module, seed: int, init: str, scale: float | int) -> None:
    """Draw the weights of all linear and convolutional layers in order, and set biases to zero."""
    if init not in INITS:
        raise InputError(expected=f"init among {', '.join(INITS)}", found=repr(init), remedy="pass init='fan_in'")
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(expected="a positive finite scale", found=str(scale), remedy="pass scale=1.0")
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, DiagonalSkip):
            with torch.no_grad():
                layer.weight.mul_(scale)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            INITS[init](layer.weight, generator=generator)
            with torch.no_grad():
                layer.weight.mul_(scale)
                if layer.bias is not None:
                    layer.bias.zero_()


def widths_checked(widths: Iterable[Any]) -> list[int]:
    """Widths as integers. Raises `InputError` for fewer than two of them, and for what is no positive integer."""
    sizes = [integer_checked("every width", width, 1) for width in widths]
    if len(sizes) < 2:
        raise InputError(
            expected="at least two widths, input and output", found=str(sizes), remedy="pass e.g. [784, 64, 1]"
        )
    return sizes


def integer_checked(what: str, value: Any, low: int, high: int | None = None) -> int:
    """An integer between two bounds. Raises `InputError` for anything else."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise InputError(expected=f"{what} an integer {bounds}", found=repr(value), remedy=f"pass e.g. {low}")
    return int(value)
