"""From a network to its laws (THEORY §1): this release derives those of feedforward chains."""

from torch import nn

from equipoise.errors import CaptureError
from equipoise.graph.capture import Inputs, capture
from equipoise.graph.chain import Layer, read_chain
from equipoise.laws.commutant import Diagonal, Full
from equipoise.laws.law import Law, Laws


def invariances(model: nn.Module, example_inputs: Inputs) -> Laws:
    """Every quantity that gradient flow conserves in `model`, derived from its graph (THEORY T1 and T2).

    Matrix-wise between linear layers, vertex-wise across ReLU, leaky ReLU and abs. Raises `CaptureError` for a
    network that is not a feedforward chain, and `InputError` for an activation that is not homogeneous.

    >>> import torch
    >>> from equipoise.networks import mlp
    >>> print(invariances(mlp([4, 3, 2, 1], linear_tail=2), torch.ones(5, 4).double()))
    layer1.weight → layer2.weight: vertex, 3 conserved
    layer2.weight → layer3.weight: linear, 3 conserved
    """
    chain = read_chain(capture(model, example_inputs))
    if chain is None:
        raise CaptureError(
            expected="a feedforward chain of linear layers and activations",
            found="a network with branches or other operations",
            remedy="pass the feedforward part of it",
        )
    return chain_laws(chain, {name: parameter.shape[0] for name, parameter in model.named_parameters()})


def chain_laws(chain: tuple[Layer, ...], widths: dict[str, int]) -> Laws:
    """The law of every interface between consecutive layers; `widths` maps a weight to its number of rows."""
    return Laws(
        tuple(
            Law(
                f"{lower.weight} → {upper.weight}",
                Full(widths[lower.weight]) if lower.negative_slope is None else Diagonal(widths[lower.weight]),
                (lower.weight, lower.bias) if lower.bias else (lower.weight,),
                (upper.weight,),
            )
            for lower, upper in zip(chain, chain[1:], strict=False)
        )
    )
