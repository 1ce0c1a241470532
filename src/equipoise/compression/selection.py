"""Channels and heads left out, and what reads them fitted to the rest: sets of them on the path of a lasso.

With `V` the weight of the reader and `G` the covariance of what it reads, leaving out all but a set `K` of channels
costs `‖(V - V' E_K) G^{½}‖²` on the data, least for `V' = V G_{:K} G_{KK}⁺`. Single neurons are chosen by a multi-task
lasso (Shenouda, Parhi, Lee & Nowak 2024), channels that are read at several places, and heads, by a lasso on the
contribution of each (He, Zhang & Sun 2017).
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from equipoise.compression.costs import CostModel, Option, Part
from equipoise.compression.data import DataBatches, SecondMoment, outputs
from equipoise.compression.exact import Change, relative_change
from equipoise.compression.layers import layer, resized, rows, set_matrix, set_rows
from equipoise.compression.structure import Hidden, Layer
from equipoise.errors import InputError
from equipoise.graph.capture import Captured
from equipoise.transform.unit_groups import HeadGroup, UnitSlices, exchangeable

_WIDE = 1000  # neurons: above, a lasso of their whole columns takes hours, and one of their contributions seconds
PENALTIES = 16  # of the lasso, from all channels to one
RIDGE = 1e-12  # of the mean variance, with which the readers are fitted
SAME = 1e-10  # relative change of outputs between heads left out and heads of zeros

_OF_ONE = ("dim", "head_size")  # of one head, most likely, even where it is the number of heads

Attributes = dict[str, dict[str, int]]
"""By the name of a module, attributes that count heads, and what they become."""


class Channels(Protocol):
    """Channels that one layer reads and that can be left out."""

    @property
    def reader(self) -> str:
        """The layer that reads them."""
        ...

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers that change."""
        ...

    @property
    def kind(self) -> str:
        """The kind of the move."""
        ...

    @property
    def inputs(self) -> Int64[Tensor, "channels each"]:
        """The columns of the reader, as a matrix, that read each channel."""
        ...

    def parts(self, model: nn.Module, costs: CostModel, size: int) -> list[Part]:
        """The layers that change, at a number of channels, with the shapes of what goes into them."""
        ...

    def cut(self, model: nn.Module, kept: Tensor) -> None:
        """Leave out all other channels where they are written."""
        ...


@dataclass(frozen=True, eq=False)
class HiddenChannels:
    """The channels of a hidden layer with one reader."""

    hidden: Hidden
    inputs: Int64[Tensor, "channels each"]
    kind: str = "select"

    @classmethod
    def of(cls, model: nn.Module, hidden: Hidden) -> "HiddenChannels":
        """A channel may be read at several places: taps of a kernel, or positions that were flattened."""
        reader, channels = layer(model, hidden.readers[0]), len(layer(model, hidden.writer).weight)
        return cls(hidden, torch.arange(reader.weight[0].numel()).reshape(channels, -1))

    @property
    def reader(self) -> str:
        """The only one."""
        return self.hidden.readers[0]

    @property
    def layers(self) -> tuple[str, ...]:
        """Writer and reader."""
        return self.hidden.writer, self.reader

    def parts(self, model: nn.Module, costs: CostModel, size: int) -> list[Part]:
        """Both with that number of channels."""
        writer, reader = layer(model, self.hidden.writer), layer(model, self.reader)
        narrow, each = costs.shapes[self.reader], self.inputs.shape[1]
        if isinstance(reader, nn.Linear):
            shape, taken = torch.Size([*narrow[:-1], size * each]), size * each
        else:
            shape, taken = torch.Size([narrow[0], size, *narrow[2:]]), size
        return [
            (resized(writer, out=size), costs.shapes[self.hidden.writer]),
            (resized(reader, into=taken), shape),
        ]

    def cut(self, model: nn.Module, kept: Tensor) -> None:
        """Rows of the writer."""
        writer = layer(model, self.hidden.writer)
        set_rows(writer, rows(writer)[kept.to(writer.weight.device)])


@dataclass(frozen=True, eq=False)
class HeadChannels:
    """The heads of an attention, those of a group that shares keys and values together.

    `written` holds by layer the rows of each group, `attributes` what else counts heads: how each depends on the number
    of groups.
    """

    reader: str
    inputs: Int64[Tensor, "groups each"]
    written: dict[str, Int64[Tensor, "groups rows"]]
    attributes: Attributes
    kind: str = "heads"

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that write queries, keys and values, and the one that reads the heads."""
        return *self.written, self.reader

    def parts(self, model: nn.Module, costs: CostModel, size: int) -> list[Part]:
        """All with that number of groups."""
        reader, each = layer(model, self.reader), self.inputs.shape[1]
        shape = torch.Size([*costs.shapes[self.reader][:-1], size * each])
        found: list[Part] = [(resized(reader, into=size * each), shape)]
        for name, written in self.written.items():
            found.append((resized(layer(model, name), out=size * written.shape[1]), costs.shapes[name]))
        return found

    def cut(self, model: nn.Module, kept: Tensor) -> None:
        """Rows of queries, keys and values, and the attributes that count heads."""
        for name, written in self.written.items():
            module = layer(model, name)
            chosen = written[kept].flatten().sort().values
            set_rows(module, rows(module)[chosen.to(module.weight.device)])
        groups = len(self.inputs)
        for name, values in self.attributes.items():
            for attribute, value in values.items():
                setattr(model.get_submodule(name), attribute, value // groups * len(kept))


def head_channels(model: nn.Module, captured: Captured, examples: DataBatches) -> Iterator[HeadChannels]:
    """Attention whose heads can be left out: written and read by linear layers, by code that takes their number.

    What counts the heads besides the layers is found by trial: attributes of the modules around them whose values are
    the number of heads, or of all their components, are changed until the model without a head computes what the model
    with a head of zeros does.
    """
    for group in exchangeable(captured)[1]:
        found = _placed(model, group)
        if found is not None and group.groups > 1:
            for attributes in _guesses(model, found, group):
                trial = HeadChannels(found.reader, found.inputs, found.written, attributes)
                if _leaves_out(model, trial, examples):
                    yield trial
                    break


def _placed(model: nn.Module, group: HeadGroup) -> HeadChannels | None:
    """Which rows and columns of which layers the groups hold; None for other weights than those of linear layers."""
    modules = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    written: dict[str, list[Tensor]] = {}
    read: dict[str, list[Tensor]] = {}
    for part in group.parts:
        name, _, kind = part.name.rpartition(".")
        if name not in modules:
            return None
        if kind == "weight":
            sides = _sides(part, tuple(modules[name].weight.shape))
            if sides is None:
                return None
            target = written if sides[0] == 0 else read
            target.setdefault(name, []).append(sides[1])
    if len(read) != 1 or set(written) & set(read) or not written:
        return None
    (reader, taken), *_ = read.items()
    wide = {name: torch.cat(parts, 1).sort(1).values for name, parts in written.items()}
    whole = all(each.numel() == len(modules[name].weight) for name, each in wide.items())
    inputs = torch.cat(taken, 1).sort(1).values
    if not whole or inputs.numel() != modules[reader].in_features:
        return None
    return HeadChannels(reader, inputs, wide, {})


def _sides(part: UnitSlices, shape: tuple[int, ...]) -> tuple[int, Tensor] | None:
    """The axis of a matrix whose lines each unit holds, and their numbers."""
    lines = part.places // shape[1], part.places % shape[1]
    for axis in (0, 1):
        numbers = [torch.unique(row) for row in lines[axis]]
        if all(len(each) * shape[1 - axis] == part.places.shape[1] for each in numbers):
            return axis, torch.stack(numbers)
    return None


def _guesses(model: nn.Module, found: HeadChannels, group: HeadGroup) -> Iterator[Attributes]:
    """None at all, for code that asks the layers; numbers of heads and of components; those by any name."""
    yield {}
    counts = {group.groups, group.groups * group.heads, *(each.numel() for each in found.written.values())}
    for of_sizes in (False, True):
        guess: Attributes = {}
        for name in dict.fromkeys(each.rpartition(".")[0] for each in found.written):
            values = vars(model.get_submodule(name))
            guess[name] = {
                key: value
                for key, value in values.items()
                if type(value) is int and value in counts and (of_sizes or not key.endswith(_OF_ONE))
            }
        yield guess


def _leaves_out(model: nn.Module, trial: HeadChannels, examples: DataBatches) -> bool:
    """Whether the model without its last group of heads computes what one with zeros in its place does."""
    zeros, without = copy.deepcopy(model), copy.deepcopy(model)
    kept = torch.arange(len(trial.inputs) - 1)
    reader = layer(zeros, trial.reader)
    reader.weight.data[:, trial.inputs[-1]] = 0.0
    try:
        weight = reader.weight.detach()[:, trial.inputs[kept].flatten()]
        set_read(layer(without, trial.reader), weight, trial.inputs, kept)
        trial.cut(without, kept)
        return relative_change(outputs(zeros, examples), outputs(without, examples)) <= SAME
    except (InputError, RuntimeError):
        return False


def set_read(module: Layer, weight: Float[Tensor, "out _"], inputs: Tensor, kept: Tensor) -> None:
    """Give a reader the columns of the channels that are kept, in the order in which it read them."""
    order = inputs[kept].flatten().argsort()
    set_matrix(module, weight[:, order.to(weight.device)])


@dataclass(frozen=True, eq=False)
class ChannelSelection:
    """Channels of which some are left out, with their reader fitted to the rest: one option a set of channels."""

    channels: Channels
    sets: tuple[Int64[Tensor, " kept"], ...]  # from all channels to few
    gram: Float[Tensor, "columns columns"]
    read: Float[Tensor, "out columns"]

    @property
    def name(self) -> str:
        """The layers that change."""
        return " ".join(self.channels.layers)

    @classmethod
    def of(cls, model: nn.Module, channels: Channels, moment: SecondMoment) -> "ChannelSelection":
        """Sets of channels on the path of a lasso."""
        reader = layer(model, channels.reader)
        read = reader.weight.detach().flatten(1).double().cpu()
        gram = moment.covariance(centred=reader.bias is not None)
        return cls(channels, tuple(_path(read, gram, channels.inputs)), gram, read)

    def fitted(self, kept: Int64[Tensor, " kept"]) -> Float[Tensor, "out _"]:
        """The reader that fits the old one best on the data: `V G_{:K} G_{KK}⁺`."""
        places = self.channels.inputs[kept].flatten()
        own, mixed = self.gram[places][:, places], self.read @ self.gram[:, places]
        ridge = RIDGE * own.diagonal().mean().clamp_min(1e-300)
        factor, failed = torch.linalg.cholesky_ex(own + ridge * torch.eye(len(own), dtype=own.dtype))
        if int(failed):
            return mixed @ torch.linalg.pinv(own, hermitian=True)
        return torch.cholesky_solve(mixed.T, factor).T

    @cached_property
    def errors(self) -> tuple[float, ...]:
        """`‖(V - V' E_K) G^{½}‖²` of each set."""
        found = [0.0]
        for kept in self.sets[1:]:
            rest = self.read.clone()
            rest[:, self.channels.inputs[kept].flatten()] -= self.fitted(kept)
            found.append(max(float(((rest @ self.gram) * rest).sum()), 0.0))
        return tuple(found)

    def options(self, model: nn.Module, costs: CostModel) -> list[Option]:
        """Every set of channels, with the cost of the layers that change."""
        sizes = [len(kept) for kept in self.sets]
        prices = costs.curve(sizes, lambda size: self.channels.parts(model, costs, size))
        return [Option(*each) for each in zip(sizes, prices, self.errors, strict=True)]

    def apply(self, model: nn.Module, size: int, mean: Tensor) -> Change:
        """Keep a set of channels, fit the reader to it; its bias takes over the mean of what is dropped."""
        kept = next(each for each in self.sets if len(each) == size)
        reader, fitted = layer(model, self.channels.reader), self.fitted(kept)
        if reader.bias is not None:
            missing = self.read @ mean - fitted @ mean[self.channels.inputs[kept].flatten()]
            reader.bias.data += missing.to(reader.bias)
        set_read(reader, fitted.to(reader.weight), self.channels.inputs, kept)
        self.channels.cut(model, kept)
        detail = "on the path of a lasso, what reads them fitted to the rest"
        return Change(self.channels.kind, self.channels.layers, len(self.sets[0]), size, detail, kept)


def _path(read: Tensor, gram: Tensor, inputs: Tensor) -> Iterator[Int64[Tensor, " kept"]]:
    """All channels, and fewer and fewer of them, as a lasso leaves them at growing penalties."""
    count = len(inputs)
    yield torch.arange(count)
    alone = inputs.shape[1] == 1 and count <= _WIDE
    for kept in _neurons(read, gram, inputs[:, 0]) if alone else _contributing(_contributions(read, gram, inputs)):
        if 0 < len(kept) < count:
            count = len(kept)
            yield torch.from_numpy(kept)


def _neurons(read: Tensor, gram: Tensor, order: Tensor) -> Iterator[np.ndarray]:
    """Single columns: `min ‖(V - X) G^{½}‖² + λ Σ_j ‖X_j‖`."""
    from sklearn.linear_model import MultiTaskLasso  # slow to import, and needed here only

    variances, vectors = torch.linalg.eigh(gram[order][:, order])
    root = (vectors * variances.clamp_min(0).sqrt()).T
    design, target = root.numpy(), (root @ read[:, order].T).numpy()
    largest = float(np.linalg.norm(design.T @ target, axis=1).max()) / len(design)
    lasso = MultiTaskLasso(fit_intercept=False, warm_start=True, max_iter=200, tol=1e-3)
    for penalty in np.geomspace(largest * 0.7, largest * 1e-4, PENALTIES)[::-1] if largest > 0 else ():
        lasso.set_params(alpha=penalty)
        with _rough():
            lasso.fit(design, target)
        yield np.flatnonzero(np.linalg.norm(lasso.coef_, axis=0))


def _contributing(products: Float[Tensor, "channels channels"]) -> Iterator[np.ndarray]:
    """Each contribution times a number: `min_β ‖Σ_c (1 - β_c) V_c x_c‖² + λ ‖β‖₁`, at every λ where one enters."""
    from sklearn.linear_model import lars_path_gram  # slow to import, and needed here only

    scale = products.diagonal().max().clamp_min(1e-300)
    gram = (products / scale).numpy()
    with _rough():
        _, _, path = lars_path_gram(gram.sum(1), gram, n_samples=1, method="lasso")
    sets = [np.flatnonzero(column) for column in path.T[::-1]]
    for place in np.unique(np.linspace(0, len(sets) - 1, PENALTIES).round().astype(int)):
        yield sets[place]


@contextmanager
def _rough() -> Iterator[None]:
    """A rough path is enough: readers are fitted anew."""
    from sklearn.exceptions import ConvergenceWarning  # slow to import, and needed here only

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _contributions(read: Tensor, gram: Tensor, inputs: Tensor) -> Float[Tensor, "channels channels"]:
    """`tr V_c G_{cd} V_dᵀ`: inner products of what each channel adds to the outputs of the reader."""
    order = inputs.flatten()
    products = (read[:, order].T @ read[:, order]) * gram[order][:, order]
    count, each = inputs.shape
    return products.reshape(count, each, count, each).sum((1, 3))
