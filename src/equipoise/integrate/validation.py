"""Checks of a model before its first step, each with its remedy."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from equipoise.errors import InputError, one_line
from equipoise.graph.capture import Captured
from equipoise.models import call_model, require_values


def require_parameters(model: nn.Module) -> None:
    """Raises `InputError` unless the model has parameters, all of them real floating-point numbers that are trained."""
    parameters = dict(model.named_parameters())
    if not parameters:
        raise InputError(
            expected="a model with parameters", found="none", remedy="pass a network with weights to train"
        )
    require_values(model)
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise InputError(
                expected="parameters of real floating-point numbers",
                found=f"{name} of dtype {parameter.dtype}",
                remedy="register what is not trained as a buffer",
            )
        if not bool(torch.isfinite(parameter.detach()).all()):
            raise InputError(
                expected="finite weights",
                found=f"NaN or infinite entries in {name}",
                remedy="initialise the model again",
            )
    if not any(bool(parameter.any()) for parameter in parameters.values()):
        raise InputError(
            expected="weights that are not all zero, where growth has no beginning",
            found="every parameter zero",
            remedy="initialise the model, however small: eq.networks.mlp(..., scale=1e-8)",
        )
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if frozen:
        raise InputError(
            expected="a model whose every parameter is trained",
            found=f"{', '.join(frozen)} with requires_grad=False",
            remedy="call requires_grad_(), or register them as buffers: gradient flow moves all parameters",
        )


def outputs_of_two(model: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs for the first two examples; raises `InputError` where the model fails, or changes the inputs."""
    given = inputs[:2].clone()
    try:
        with torch.no_grad():
            output = call_model(model, given)
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(
            expected="inputs that the model accepts",
            found=f"examples of shape {tuple(inputs.shape[1:])} ({str(error).partition(chr(10))[0]})",
            remedy="match the width of the first layer to the data",
        ) from None
    if not isinstance(output, Tensor):
        raise InputError(
            expected="a model that returns one tensor", found=type(output).__name__, remedy="return the scores alone"
        )
    if not torch.equal(given, inputs[:2]):
        raise InputError(
            expected="a model that leaves its inputs as they are",
            found="inputs changed in place by the forward pass",
            remedy="work on a copy: x = x.clone(), or relu(x) in place of relu_(x)",
        )
    return output


def require_trainable(model: nn.Module, captured: Captured, inputs: Tensor) -> None:
    """Require that every parameter receives a gradient, and that the captured graph is the model itself.

    Three examples go through the graph, which was read from two; the first again where there are fewer.

    Raises:
        InputError: naming the parameters, or the difference.
    """
    _require_constant_buffers(captured)
    inputs = torch.cat([inputs[:3], inputs[:1], inputs[:1]])[:3]
    output = _output(model, inputs)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(output.sum(), list(parameters.values()), allow_unused=True)
    lost = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    if lost:
        raise InputError(
            expected="a model whose every parameter receives a gradient",
            found=f"{', '.join(lost)} without",
            remedy="remove what is not used, and any detach() or no_grad() on the way to the output",
        )
    _require_same(captured, parameters, inputs, output)


def _output(model: nn.Module, inputs: Tensor) -> Tensor:
    try:
        output = call_model(model, inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise _unlike(one_line(error)) from None
    assert isinstance(output, Tensor)  # as that of two examples
    if not output.requires_grad:
        raise InputError(
            expected="an output that depends on the weights by differentiable operations",
            found="one without a gradient",
            remedy="remove detach(), no_grad(), and operations on integers",
        )
    return output


def _require_constant_buffers(captured: Captured) -> None:
    if captured.mutates_buffers:
        raise InputError(
            expected="a model whose forward pass changes no buffer",
            found="buffers that change (BatchNorm in training mode)",
            remedy="call model.eval() first",
        )


def _require_same(captured: Captured, parameters: Mapping[str, Tensor], inputs: Tensor, output: Tensor) -> None:
    output = output.detach()
    scale = float(output.abs().max())
    try:
        with torch.no_grad():
            error = float((captured.run(parameters, inputs) - output).abs().max())
    except RuntimeError:
        error = float("inf")
    if error > 1e4 * torch.finfo(output.dtype).eps * max(scale, 1.0):
        raise _unlike(f"outputs {error:.1e} apart between the model and the operations read from it")


def _unlike(found: str) -> InputError:
    return InputError(
        expected="a model that treats every example alike, in a batch of any size",
        found=found,
        remedy="call model.eval(); remove what depends on the size of the batch or on the values of tensors",
    )
