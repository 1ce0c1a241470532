"""What a check differentiates: a loss of the outputs, by name or callable, or a fixed combination of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from equipoise.errors import InputError, one_line
from equipoise.losses import LOSSES, Loss, NamedLoss

LossLike = str | Loss | Callable[..., Any] | None


def run_backward(model: nn.Module, data: Any, loss: LossLike) -> None:
    """`loss(model(input)[, target]).backward()`; see `Laws.check`."""
    inputs, function = objective(data, loss)
    try:
        value = function(_called(model, inputs))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(
            expected="data that the model and the loss accept",
            found=one_line(error),
            remedy="pass the input, or (input, target) and a loss of both",
        ) from error
    value.backward()


class OutputGradients:
    """A forward hook that records, of each call of a model, its inputs and the gradient that reaches its outputs.

    `⟨output, gradient⟩` then is a loss with the same backward pass, whatever it was that computed it.
    """

    def __init__(self, model: nn.Module):
        self.calls: list[tuple[Any, list[Tensor | None]]] = []
        self.handle = model.register_forward_hook(self._record, with_kwargs=True)

    def __enter__(self) -> "OutputGradients":
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        leaves = [leaf for leaf in pytree.tree_leaves(_plain(output)) if isinstance(leaf, Tensor)]
        found: list[Tensor | None] = [None] * len(leaves)
        for place, leaf in enumerate(leaves):
            if leaf.requires_grad:
                leaf.register_hook(partial(_keep, found, place))
        inputs = pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), (args, kwargs))
        self.calls.append((inputs, found))

    def losses(self) -> Iterator[tuple[Any, Callable[[Any], Tensor]]]:
        """The inputs of each call and a function of its outputs."""
        for inputs, found in self.calls:
            if any(gradient is not None for gradient in found):
                yield inputs, partial(_against, found)


def _keep(found: list[Tensor | None], place: int, gradient: Tensor) -> None:
    before = found[place]
    found[place] = gradient.detach() if before is None else before + gradient.detach()


def _against(found: Sequence[Tensor | None], output: Any) -> Tensor:
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    if len(leaves) != len(found):
        raise InputError(
            expected=f"{len(found)} outputs, as the model returns",
            found=str(len(leaves)),
            remedy="derive the laws with the inputs that the backward pass uses",
        )
    pairs = zip(leaves, found, strict=True)
    return torch.stack([(leaf * gradient.to(leaf)).sum() for leaf, gradient in pairs if gradient is not None]).sum()


def objective(data: Any, loss: LossLike) -> tuple[Any, Callable[[Any], Tensor]]:
    """The inputs of the model, and what is differentiated as a function of its output."""
    paired = isinstance(data, (tuple, list)) and len(data) == 2 and loss is not None
    inputs, target = data if paired else (data, None)
    function = _function(loss)
    return inputs, lambda output: function(output, *(() if target is None else (target,)))


def _function(loss: LossLike) -> Callable[..., Tensor]:
    """The loss as a function of outputs and target; without one, a fixed combination of the outputs."""
    chosen = _named(loss)
    if isinstance(chosen, NamedLoss):
        return chosen.mean
    if isinstance(chosen, Loss) and not callable(chosen):
        raise InputError(
            expected=f"a loss among {', '.join(LOSSES)}",
            found=f"the {chosen.name} loss, of margins",
            remedy="or pass a callable of the outputs and the target",
        )
    return chosen or _random_combination


def _named(loss: LossLike) -> Loss | Callable[..., Any] | None:
    """The loss of that name; everything else as it is. Raises `InputError` for an unknown name."""
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise InputError(expected=f"a loss among {', '.join(LOSSES)}", found=repr(loss), remedy="or pass a callable")
    return LOSSES[loss]


def ignores_shift(loss: LossLike) -> bool:
    """Whether a loss takes the softmax of the outputs, so that a common shift of them changes nothing."""
    chosen = _named(loss)
    if isinstance(chosen, Loss):
        return chosen.multiclass
    plain = isinstance(chosen, nn.CrossEntropyLoss) and chosen.label_smoothing == 0
    return chosen is F.cross_entropy or plain


def _called(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(inputs) if isinstance(inputs, Tensor) else model(*inputs)


def _random_combination(output: Any) -> Tensor:
    """A scalar that depends on every element of every floating output, the same at each call."""
    leaves = [leaf for leaf in pytree.tree_leaves(_plain(output)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    total = torch.zeros((), dtype=leaves[0].dtype, device=leaves[0].device)
    for leaf in leaves:
        weights = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        total = total + (leaf.tanh() * weights.to(leaf)).sum()
    return total


def _plain(output: Any) -> Any:
    return dict(output) if isinstance(output, Mapping) else output
