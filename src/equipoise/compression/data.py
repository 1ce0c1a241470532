"""A model on data, in batches: its outputs, and statistics of the inputs and outputs of its layers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from equipoise.errors import InputError, one_line
from equipoise.models import call_model

Inputs: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
Hook: TypeAlias = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@dataclass(frozen=True, eq=False)
class DataBatches:
    """Inputs whose tensors have the examples along their first axis, in batches."""

    inputs: Inputs
    batch_size: int = 1024

    @classmethod
    def of(cls, inputs: Inputs, batch_size: int) -> "DataBatches":
        """Raises `InputError` for inputs that are no tensors, not finite, or of different numbers of examples."""
        leaves = pytree.tree_leaves(inputs)
        if not leaves or not all(isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in leaves):
            raise InputError(
                expected="inputs that are tensors with the examples along their first axis",
                found=f"{[type(leaf).__name__ for leaf in leaves]}",
                remedy="pass (X, y), X a tensor, a tuple of arguments or a dict of keywords",
            )
        counts = sorted({len(leaf) for leaf in leaves})
        if len(counts) > 1 or counts[0] == 0:
            raise InputError(
                expected="the same number of examples, one at least, in every input",
                found=f"{', '.join(map(str, counts))}",
                remedy="check the first axis of X",
            )
        hollow = next((leaf for leaf in leaves if leaf.is_meta or leaf.layout != torch.strided), None)
        if hollow is not None:
            raise InputError(
                expected="dense inputs with values",
                found=f"a tensor of layout {hollow.layout} on {hollow.device}",
                remedy="pass X.to_dense(), with values",
            )
        if any(leaf.is_floating_point() and not bool(leaf.isfinite().all()) for leaf in leaves):
            raise InputError(expected="finite inputs", found="NaN or infinity in X", remedy="drop these examples")
        if batch_size < 1:
            raise InputError(expected="batch_size of 1 or more", found=str(batch_size), remedy="pass batch_size=1024")
        return cls(inputs, batch_size)

    def __len__(self) -> int:
        return len(pytree.tree_leaves(self.inputs)[0])

    def head(self, count: int) -> "DataBatches":
        """The first examples."""
        return DataBatches(pytree.tree_map(lambda leaf: leaf[:count], self.inputs), self.batch_size)

    def spread(self, count: int) -> "DataBatches":
        """This number of examples at even distances, all of them if there are no more: data may be sorted by class."""
        if len(self) <= count:
            return self
        places = torch.linspace(0, len(self) - 1, count, dtype=torch.float64).round().long()
        return DataBatches(pytree.tree_map(lambda leaf: leaf[places.to(leaf.device)], self.inputs), self.batch_size)

    def batches(self, like: Tensor) -> Iterator[Inputs]:
        """One batch after the other, floating inputs in the dtype, and all on the device, of a parameter."""

        def moved(leaf: Tensor, start: int) -> Tensor:
            part = leaf[start : start + self.batch_size].to(like.device)
            return part.to(like.dtype) if part.is_floating_point() else part

        for start in range(0, len(self), self.batch_size):
            yield pytree.tree_map(lambda leaf, start=start: moved(leaf, start), self.inputs)


def call(model: nn.Module, inputs: Inputs) -> Tensor:
    """The output of a model, its first tensor if there are several; raises `InputError` if it is none."""
    try:
        output = call_model(model, inputs)
    except Exception as error:  # of any kind that the model itself may raise
        raise InputError(
            expected="inputs that the model takes", found=one_line(error), remedy="call model(X) by itself"
        ) from error
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    if not tensors:
        raise InputError(
            expected="a model that returns a tensor",
            found=type(output).__name__,
            remedy="wrap it in a module that does",
        )
    if tensors[0].ndim == 0:
        raise InputError(
            expected="outputs with the examples along their first axis",
            found="a single number for all of them",
            remedy="leave out the sum or mean over the batch",
        )
    return tensors[0]


@torch.no_grad()
def outputs(model: nn.Module, examples: DataBatches) -> Float[Tensor, "n ..."]:
    """The outputs on all examples, in the dtype of the model."""
    return torch.cat(list(output_batches(model, examples)))


def output_batches(model: nn.Module, examples: DataBatches) -> Iterator[Tensor]:
    """The outputs of one batch after the other, in the dtype of the model."""
    for batch in examples.batches(next(model.parameters())):
        with torch.no_grad():
            found = call(model, batch)
        yield found


def visit(model: nn.Module, examples: DataBatches, *hooks: Mapping[str, Hook]) -> None:
    """Run the model on all examples, with hooks at modules that are given what goes in and what comes out."""
    with _hooked(model, hooks):
        for _ in output_batches(model, examples):
            pass


@contextmanager
def _hooked(model: nn.Module, hooks: Sequence[Mapping[str, Hook]]) -> Iterator[None]:
    named = [pair for each in hooks for pair in each.items()]
    handles = [model.get_submodule(name).register_forward_hook(hook) for name, hook in named]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class PatternHash:
    """A hash of 128 bits of the activation pattern of every channel, over all examples and positions.

    Two channels have the same hash if and, but for odds of 2⁻¹²⁸ or so, only if they are active on the same examples.
    """

    def __init__(self, axis: int):
        self.axis, self.sums, self._generator = axis, torch.zeros(2, 0, dtype=torch.int64), None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Add a batch of preactivations."""
        on = output.detach().movedim(self.axis, -1).flatten(0, -2) > 0
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(0)
            self.sums = torch.zeros(2, on.shape[1], dtype=torch.int64, device="cpu")
        for place in range(2):
            keys = torch.randint(-(2**63), 2**63 - 1, (len(on), 1), generator=self._generator, device="cpu")
            keys = keys.to(on.device)
            self.sums[place] += torch.where(on, keys, 0).sum(0).cpu()

    def classes(self, left: Int64[Tensor, " left"] | None = None) -> list[Int64[Tensor, " members"]]:
        """The channels of each pattern: of all channels, or, counted from zero, of those that are left."""
        _, labels = torch.unique(self.sums if left is None else self.sums[:, left], dim=1, return_inverse=True)
        return [torch.nonzero(labels == label)[:, 0] for label in range(int(labels.max()) + 1)]


class ChannelRange:
    """The least and the largest value of every channel that a module reads, over all examples and positions."""

    def __init__(self, channels: int, axis: int):
        self.channels, self.axis = channels, axis
        self.low = torch.full((channels,), torch.inf, dtype=torch.float64)
        self.high = -self.low

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Add a batch of inputs."""
        read = inputs[0].detach().movedim(self.axis, -1)
        flat = read.reshape(-1, self.channels, read.shape[-1] // self.channels).double().cpu()
        self.low = torch.minimum(self.low, flat.amin((0, 2)))
        self.high = torch.maximum(self.high, flat.amax((0, 2)))


class SecondMoment:
    """Count, mean and covariance of what a layer multiplies its weight by: inputs, or patches of them."""

    def __init__(self, size: int):
        self.count = 0
        self.total = torch.zeros(size, dtype=torch.float64)
        self.products = torch.zeros(size, size, dtype=torch.float64)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Add a batch of inputs."""
        read = multiplied(module, inputs[0].detach()).double()
        self.count += len(read)
        self.total += read.sum(0).cpu()
        self.products += (read.T @ read).cpu()

    @property
    def mean(self) -> Float[Tensor, " size"]:
        """The mean input."""
        return self.total / self.count

    def covariance(self, centred: bool) -> Float[Tensor, "size size"]:
        """The sum of products over all inputs, less their mean if `centred`."""
        if not centred:
            return self.products
        return self.products - self.count * torch.outer(self.mean, self.mean)


def multiplied(module: nn.Module, inputs: Tensor) -> Float[Tensor, "places k"]:
    """The vectors that the rows of a layer's weight are multiplied by."""
    if isinstance(module, nn.Linear):
        return inputs.flatten(0, -2)
    assert isinstance(module, nn.Conv2d)
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs = nn.functional.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
        padding: tuple[int, ...] = (0, 0)
    else:
        padding = module.padding
    patches = nn.functional.unfold(inputs, module.kernel_size, module.dilation, padding, module.stride)  # pyright: ignore[reportArgumentType]
    return patches.movedim(1, -1).flatten(0, 1)
