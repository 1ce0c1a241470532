"""Layers as matrices: rows that write channels, columns that read them; and layers replaced by others."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.compression.structure import Layer


def layer(model: nn.Module, name: str) -> Layer:
    """The layer of a name."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return module


def rows(module: Layer) -> Float[Tensor, "channels k"]:
    """The weights that write each channel, and its bias if there is one."""
    weight = module.weight.detach().flatten(1)
    return weight if module.bias is None else torch.cat([weight, module.bias.detach()[:, None]], 1)


def columns(module: Layer, channels: int) -> Float[Tensor, "k channels"]:
    """All entries of the weight that multiply each channel."""
    weight = module.weight.detach()
    return weight.reshape(weight.shape[0], channels, -1).movedim(1, 0).flatten(1).T


def set_rows(module: Layer, written: Float[Tensor, "channels k"]) -> None:
    """Replace the channels that a layer writes."""
    biased = module.bias is not None
    weight = written[:, :-1] if biased else written
    shape = (len(written), *module.weight.shape[1:])
    _set(module, weight.reshape(shape), written[:, -1] if biased else None)


def set_columns(module: Layer, read: Float[Tensor, "k channels"], channels: int) -> None:
    """Replace the channels that a layer reads, of which there were `channels`."""
    weight = module.weight.detach()
    places = weight[0].numel() // channels
    blocks = read.T.reshape(read.shape[1], weight.shape[0], places).movedim(0, 1)
    taps = weight.shape[2:]
    _set(module, blocks.reshape(weight.shape[0], -1, *taps), None if module.bias is None else module.bias.detach())


def set_matrix(module: Layer, weight: Float[Tensor, "rows k"]) -> None:
    """Replace the weight by a matrix with as many rows, and the taps of the kernel that there were."""
    shape = (len(weight), -1, *module.weight.shape[2:])
    _set(module, weight.reshape(shape), None if module.bias is None else module.bias.detach())


def resized(module: Layer, out: int | None = None, into: int | None = None) -> Layer:
    """A layer of other widths, without weights, on the meta device."""
    rows, inputs = module.weight.shape[:2]
    rows, inputs = out or rows, into or inputs
    if isinstance(module, nn.Linear):
        return nn.Linear(inputs, rows, module.bias is not None, device="meta")
    return _convolution(module, inputs, rows, module.bias is not None)


def _convolution(module: Layer, inputs: int, rows: int, bias: bool) -> Layer:
    """One of the same geometry."""
    assert not isinstance(module, nn.Linear)
    return type(module)(
        inputs,
        rows,
        module.kernel_size,  # pyright: ignore[reportArgumentType]
        stride=module.stride,  # pyright: ignore[reportArgumentType]
        padding=module.padding,  # pyright: ignore[reportArgumentType]
        dilation=module.dilation,  # pyright: ignore[reportArgumentType]
        bias=bias,
        padding_mode=module.padding_mode,
        device="meta",
    )


def add_to_bias(module: Layer, amount: Float[Tensor, " rows"]) -> None:
    """Add to the bias, which is made if there is none."""
    bias = torch.zeros_like(amount) if module.bias is None else module.bias.detach()
    _set(module, module.weight.detach(), bias + amount)


def _set(module: Layer, weight: Tensor, bias: Tensor | None) -> None:
    trained = module.weight.requires_grad
    module.weight = nn.Parameter(weight.contiguous(), requires_grad=trained)
    if bias is not None:
        module.bias = nn.Parameter(bias.contiguous(), requires_grad=trained)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    else:
        module.out_channels, module.in_channels = weight.shape[:2]


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of one."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def dense(weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None, trained: bool = True) -> nn.Linear:
    """A linear layer of given weights."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=trained)
    if bias is not None:
        made.bias = nn.Parameter(bias.contiguous(), requires_grad=trained)
    return made


def factors(
    module: Layer, left: Float[Tensor, "out r"], right: Float[Tensor, "r k"], bias: Float[Tensor, " out"] | None
) -> nn.Sequential:
    """Two layers whose product is `left @ right`: the second of a convolution is one of a single place."""
    trained = module.weight.requires_grad
    if isinstance(module, nn.Linear):
        return nn.Sequential(dense(right, None, trained), dense(left, bias, trained))
    taps = module.weight.shape[2:]
    first = _convolution(module, module.in_channels, len(right), bias=False)
    first.weight = nn.Parameter(right.reshape(len(right), module.in_channels, *taps).contiguous(), trained)
    second = type(module)(len(right), len(left), 1, bias=bias is not None, device="meta")
    second.weight = nn.Parameter(left.reshape(*left.shape, *[1 for _ in taps]).contiguous(), trained)
    if bias is not None:
        second.bias = nn.Parameter(bias.contiguous(), trained)
    return nn.Sequential(first, second)


def parameter_count(modules: nn.Module | Sequence[nn.Module]) -> int:
    """The number of entries of all parameters, tied ones once."""
    listed = [modules] if isinstance(modules, nn.Module) else modules
    found = {id(parameter): parameter.numel() for module in listed for parameter in module.parameters()}
    return sum(found.values())
