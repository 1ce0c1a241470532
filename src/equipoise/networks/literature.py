"""Networks that papers study: deep unconstrained features, paired weights, and a transformer for modular addition."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equipoise.arguments import checked, checked_fields
from equipoise.errors import InputError
from equipoise.networks.standard import integer_checked, linear_layer, mlp, start_weights, widths_checked


@checked
def deep_features(
    counts: Sequence[int],
    width: int,
    depth: int,
    *,
    rectified: bool = False,
    seed: int = 0,
    init: str = "fan_in",
    scale: float | int = 1.0,
) -> nn.Sequential:
    """The deep unconstrained features model `W_L … W_1 H`, or `W_L σ(… σ(W_1 H))` with ReLU.

    Free features `H` (width × examples) in place of a network below, then `depth` matrices of which the last has a row
    for each class (Mixon et al. 2022; Súkeník, Mondelli & Lampert 2024; Garrod & Keating 2024). `H` is the weight of a
    linear layer `features` that reads one-hot examples, `eq.data.one_hot_examples(counts)`; `layer1`, … follow. So all
    verbs of the library work on it, and a ridge on all its weights is that of the papers.

    Args:
        counts: examples of each class, which may differ.
        width: of the features and of all matrices between.
        depth: number of matrices above `H`.
        rectified: whether there is a ReLU after each matrix but the last.
        seed: of the weights.
        init: among `INITS`.
        scale: of all weights.

    Returns:
        The model, in float64.

    Raises:
        InputError: for sizes that are not positive integers, an unknown `init`, a senseless `scale`.

    >>> model = deep_features([5, 5, 5], width=8, depth=2)
    >>> [(name, tuple(weight.shape)) for name, weight in model.named_parameters()]
    [('features.weight', (8, 15)), ('layer1.weight', (8, 8)), ('layer2.weight', (3, 8))]
    """
    classes = widths_checked(counts)
    d, above = integer_checked("width", width, 1), integer_checked("depth", depth, 1)
    layers: OrderedDict[str, nn.Module] = OrderedDict(features=linear_layer(sum(classes), d, False))
    for k in range(1, above + 1):
        layers[f"layer{k}"] = linear_layer(d, len(classes) if k == above else d, False)
        if rectified and k < above:
            layers[f"relu{k}"] = nn.ReLU()
    model = nn.Sequential(layers)
    start_weights(model, seed, init, scale)
    return model


@checked
def paired_mlp(
    widths: Iterable[Any], *, seed: int = 0, init: str = "fan_in", scale: float | int = 1.0
) -> nn.Sequential:
    """A bias-free ReLU network that is a linear function at its start: its neurons come in pairs of opposite sign.

    Weights `A` of half the widths are drawn as by `mlp`; the first matrix is `[A; -A]`, those between
    `[[A, -A], [-A, A]]`, the last `[A, -A]`. As `σ(z) - σ(-z) = z`, the output is the product of all `A` and `x`. With
    one hidden layer, pairs stay pairs under gradient flow and descent where the data hold `-x`, labelled `-y`, with
    each `(x, y)`: then the network stays linear, `½ aᵀ W x` (Zhang, Saxe & Latham 2024).

    Args:
        widths: input, hidden ones, all even, and output.
        seed: of the weights.
        init: among `INITS`.
        scale: of all weights.

    Returns:
        The model, named as `mlp` does.

    Raises:
        InputError: for odd hidden widths, and as `mlp` does.

    >>> model, x = paired_mlp([3, 4, 6, 2]), torch.tensor([[1.0, 2.0, -3.0]]).double()
    >>> bool(torch.allclose(model(-x), -model(x), atol=1e-12))
    True
    """
    sizes = widths_checked(widths)
    if any(width % 2 for width in sizes[1:-1]):
        raise InputError(expected="even hidden widths", found=str(sizes), remedy="pass e.g. [3, 4, 1]")
    halves = mlp([sizes[0], *(width // 2 for width in sizes[1:-1]), sizes[-1]], seed=seed, init=init, scale=scale)
    model = mlp(sizes, seed=seed, init=init, scale=scale)
    last = len(sizes) - 1
    with torch.no_grad():
        for k in range(1, last + 1):
            half = cast(nn.Linear, halves.get_submodule(f"layer{k}")).weight
            beside = half if k == 1 else torch.cat([half, -half], 1)
            cast(nn.Linear, model.get_submodule(f"layer{k}")).weight.copy_(
                beside if k == last else torch.cat([beside, -beside])
            )
    return model


@checked_fields
class ModularTransformer(nn.Module):
    """A transformer of one block without normalisation for `a + b mod p`, on the tokens `a, b, =` (Power et al. 2022).

    Tokens and positions are embedded, then `h ← h + out(attention(h))` and `h ← h + down(relu(up(h)))`, both without
    biases; the scores are read at the last token. Weights start as N(0, 1/width). It reads
    `eq.data.modular_addition(p, encoding="tokens")`.

    Args:
        p: the modulus, which is the number of classes; the token of `=` is `p`.
        width: of the stream.
        heads: of the attention.
        hidden: neurons of the two-layer network.
        seed: of the weights.
        dtype: of the weights.

    Raises:
        InputError: for sizes that are not positive integers, and a width that `heads` does not divide.

    >>> ModularTransformer(5, width=8, heads=2, hidden=16)(torch.tensor([[1, 2, 5]])).shape
    torch.Size([1, 5])
    """

    def __init__(
        self,
        p: int,
        width: int = 128,
        heads: int = 4,
        hidden: int = 512,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ):
        super().__init__()
        classes, d, neurons = widths_checked([p, width, hidden])
        if d % integer_checked("heads", heads, 1, d):
            raise InputError(expected=f"heads that divide the width {d}", found=str(heads), remedy="pass heads=1")
        self.heads = heads
        self.tokens = nn.Parameter(torch.empty(classes + 1, d, dtype=torch.float64))
        self.positions = nn.Parameter(torch.empty(3, d, dtype=torch.float64))
        self.query, self.key, self.value, self.out = (linear_layer(d, d, False) for _ in range(4))
        self.up, self.down = linear_layer(d, neurons, False), linear_layer(neurons, d, False)
        self.unembed = linear_layer(d, classes, False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, d**-0.5, generator=generator)
        self.to(dtype)

    def forward(self, tokens: Int[Tensor, "n 3"]) -> Float[Tensor, "n p"]:
        """Scores of the sum, read at the last token."""
        h = self.tokens[tokens] + self.positions
        q, k, v = (
            part(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        h = h + self.out(mixed)
        return self.unembed((h + self.down(torch.relu(self.up(h))))[:, -1])
