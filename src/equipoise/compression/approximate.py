"""Moves within an error budget: layers factorised for their inputs, neurons selected; ranks chosen together.

A layer's error on the data is known from the covariance of its inputs: `‖(W - W_r) Σ^{½}‖² = Σ_{i > r} σ_i²`, the
discarded squared singular values of `W Σ^{½}`, for `W_r = U_r U_rᵀ W` with the left singular vectors of `W Σ^{½}`
(docs/theory.md, T10). `Σ` may be singular: it is never inverted. How much of it reaches the outputs is measured, one
gain a layer, and at one price of an error every layer has its cheapest rank; the price is then set by bisection on the
error of the whole model, evaluated.
"""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.compression.data import DataBatches, SecondMoment, outputs, visit
from equipoise.compression.exact import Change
from equipoise.compression.layers import columns, factors, layer, replace, rows, set_columns, set_rows
from equipoise.compression.structure import Hidden
from equipoise.errors import InputError
from equipoise.stages import staged

PROBES = 1024  # examples on which gains are measured
BISECTIONS = 16
PENALTIES = 16  # of the multi-task lasso, from all neurons to one

Accept = Callable[[nn.Module], bool]


@dataclass(frozen=True)
class Option:
    """A smaller form of a layer: its parameters, and its squared error summed over the data."""

    size: int
    cost: int
    error: float


@dataclass(frozen=True, eq=False)
class Factorisation:
    """A layer in the singular vectors of `W Σ^{½}`: one option a rank."""

    name: str
    left: Float[Tensor, "out k"]
    values: Float[Tensor, " k"]
    mean: Float[Tensor, " size"] | None

    @classmethod
    def of(cls, name: str, module: nn.Linear | nn.Conv2d, moment: SecondMoment) -> "Factorisation":
        """Singular vectors from the eigenvectors of the covariance."""
        weight = module.weight.detach().flatten(1).double().cpu()
        centred = module.bias is not None
        variances, vectors = torch.linalg.eigh(moment.covariance(centred))
        left, values, _ = torch.linalg.svd((weight @ vectors) * variances.clamp_min(0).sqrt(), full_matrices=False)
        return cls(name, left, values, moment.mean if centred else None)

    def options(self, module: nn.Linear | nn.Conv2d) -> list[Option]:
        """The layer as it is, and every rank at which two factors have fewer parameters."""
        weight = module.weight.flatten(1)
        width = sum(weight.shape)
        tails = self.values.square().flip(0).cumsum(0).flip(0).tolist()
        ranks = range(1, min(len(tails), math.ceil(weight.numel() / width)))
        whole = Option(min(weight.shape), weight.numel(), 0.0)
        return [whole, *(Option(rank, rank * width, tails[rank]) for rank in ranks if rank * width < weight.numel())]

    def apply(self, model: nn.Module, rank: int) -> Change:
        """Replace the layer by two factors; the bias takes over the mean of what is dropped."""
        module = layer(model, self.name)
        weight = module.weight.detach().flatten(1)
        left = self.left[:, :rank].to(weight)
        bias = None if module.bias is None else module.bias.detach()
        if bias is not None and self.mean is not None:
            average = weight @ self.mean.to(weight)
            bias = bias + average - left @ (left.T @ average)
        replace(model, self.name, factors(module, left, left.T @ weight, bias))
        return Change("factorise", (self.name,), min(weight.shape), rank, "singular vectors for its inputs")


@dataclass(frozen=True, eq=False)
class NeuronSelection:
    """A hidden layer with some of its neurons and readers fitted to them: one option a set of neurons."""

    hidden: Hidden
    sets: tuple[Float[Tensor, " kept"], ...]  # from all neurons to few
    gram: Float[Tensor, "channels channels"]
    read: Float[Tensor, "k channels"]

    @property
    def name(self) -> str:
        """The layer that writes the neurons."""
        return self.hidden.writer

    @classmethod
    def of(cls, model: nn.Module, hidden: Hidden, moment: SecondMoment) -> "NeuronSelection":
        """Sets of neurons on the path of a multi-task lasso: `min ‖(V - X) G^{½}‖² + λ Σ_j ‖X_j‖` (Shenouda et al.)."""
        reader = layer(model, hidden.readers[0])
        channels = len(layer(model, hidden.writer).weight)
        read = columns(reader, channels).double().cpu()
        gram = moment.covariance(centred=reader.bias is not None)
        variances, vectors = torch.linalg.eigh(gram)
        root = (vectors * variances.clamp_min(0).sqrt()).T
        design, target = root.numpy(), (root @ read.T).numpy()
        largest = float(np.linalg.norm(design.T @ target, axis=1).max()) / len(design)
        sets: list[Tensor] = [torch.arange(channels)]
        from sklearn.exceptions import ConvergenceWarning  # slow to import, and needed here only
        from sklearn.linear_model import MultiTaskLasso

        lasso = MultiTaskLasso(fit_intercept=False, warm_start=True, max_iter=200, tol=1e-3)
        for penalty in np.geomspace(largest * 0.7, largest * 1e-4, PENALTIES)[::-1] if largest > 0 else ():
            lasso.set_params(alpha=penalty)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # a rough path is enough: readers are fitted anew
                lasso.fit(design, target)
            kept = torch.from_numpy(np.flatnonzero(np.linalg.norm(lasso.coef_, axis=0)))
            if 0 < len(kept) < len(sets[-1]):
                sets.append(kept)
        return cls(hidden, tuple(sets), gram, read)

    def fitted(self, kept: Tensor) -> Float[Tensor, "k kept"]:
        """The readers that fit the old ones best on the data: `V G_{:S} G_{SS}⁺`."""
        return self.read @ self.gram[:, kept] @ torch.linalg.pinv(self.gram[kept][:, kept], hermitian=True)

    @cached_property
    def errors(self) -> tuple[float, ...]:
        """`‖(V - V' E_S) G^{½}‖²` of each set."""
        found = []
        for kept in self.sets:
            rest = self.read.clone()
            rest[:, kept] -= self.fitted(kept)
            found.append(max(float(((rest @ self.gram) * rest).sum()), 0.0) if len(kept) < len(self.gram) else 0.0)
        return tuple(found)

    def options(self, model: nn.Module) -> list[Option]:
        """Every set of neurons, with the parameters of writer and readers."""
        width = rows(layer(model, self.hidden.writer)).shape[1] + len(self.read)
        return [Option(len(kept), len(kept) * width, error) for kept, error in zip(self.sets, self.errors, strict=True)]

    def apply(self, model: nn.Module, size: int, mean: Tensor) -> Change:
        """Keep a set of neurons, fit the readers to it; their bias takes over the mean of what is dropped."""
        kept = next(each for each in self.sets if len(each) == size)
        writer, reader = layer(model, self.hidden.writer), layer(model, self.hidden.readers[0])
        fitted = self.fitted(kept)
        channels = len(writer.weight)
        if reader.bias is not None:
            missing = (self.read @ mean - fitted @ mean[kept]).reshape(len(reader.weight), -1).sum(1)
            reader.bias.data += missing.to(reader.bias)
        set_columns(reader, fitted.to(reader.weight), channels)
        set_rows(writer, rows(writer)[kept.to(writer.weight.device)])
        layers = (self.hidden.writer, *self.hidden.readers)
        return Change("select", layers, channels, size, "neurons by a multi-task lasso, readers fitted to them")


def factorise(
    model: nn.Module, names: Sequence[str], examples: DataBatches, accept: Accept
) -> tuple[nn.Module, list[Change]]:
    """The cheapest ranks of all named layers together at which the model is accepted; the model itself if none is."""
    moments = {name: SecondMoment(layer(model, name).weight[0].numel()) for name in names}
    visit(model, examples, dict(moments))
    read = [name for name in names if moments[name].count]
    found = [
        Factorisation.of(name, _factorable(model, name), moments[name]) for name in staged(read, "factorising layers")
    ]
    options = {each.name: each.options(_factorable(model, each.name)) for each in found}

    def smaller(sizes: dict[str, int]) -> tuple[nn.Module, list[Change]]:
        made = copy.deepcopy(model)
        full = {name: listed[0].size for name, listed in options.items()}
        chosen = [each for each in found if sizes.get(each.name, full[each.name]) != full[each.name]]
        return made, [each.apply(made, sizes[each.name]) for each in chosen]

    return _cheapest(model, options, smaller, examples, accept)


def select(
    model: nn.Module, hidden: Sequence[Hidden], examples: DataBatches, accept: Accept
) -> tuple[nn.Module, list[Change]]:
    """The smallest sets of neurons of all hidden layers together at which the model is accepted."""
    moments = {each.readers[0]: SecondMoment(layer(model, each.readers[0]).weight[0].numel()) for each in hidden}
    visit(model, examples, dict(moments))
    found = [NeuronSelection.of(model, each, moments[each.readers[0]]) for each in staged(hidden, "selecting neurons")]
    options = {each.name: each.options(model) for each in found}

    def smaller(sizes: dict[str, int]) -> tuple[nn.Module, list[Change]]:
        made = copy.deepcopy(model)
        chosen = [each for each in found if sizes.get(each.name, len(each.gram)) != len(each.gram)]
        return made, [each.apply(made, sizes[each.name], moments[each.hidden.readers[0]].mean) for each in chosen]

    return _cheapest(model, options, smaller, examples, accept)


def _factorable(model: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    module = layer(model, name)
    assert isinstance(module, nn.Linear | nn.Conv2d)
    return module


Smaller = Callable[[dict[str, int]], tuple[nn.Module, list[Change]]]


def _cheapest(
    model: nn.Module, options: dict[str, list[Option]], smaller: Smaller, examples: DataBatches, accept: Accept
) -> tuple[nn.Module, list[Change]]:
    """The sizes of least cost at one price of an error for all layers; the price by bisection, evaluating the model."""
    options = {name: listed for name, listed in options.items() if len(listed) > 1}
    gains = _gains(model, options, smaller, examples)
    options = {name: options[name] for name in gains}
    rates = [
        (listed[0].cost - option.cost) / (gains[name] * option.error)
        for name, listed in options.items()
        for option in listed[1:]
        if gains[name] * option.error > 0
    ]
    best: tuple[nn.Module, list[Change]] = (model, [])
    if not rates:
        return best
    low, high = math.log(min(rates)) - 1.0, math.log(max(rates)) + 1.0
    accepted: dict[tuple[int, ...], bool] = {}
    for _ in staged(range(BISECTIONS), "choosing sizes within the tolerance"):
        price = math.exp((low + high) / 2)
        sizes = {name: _choice(listed, gains[name] * price).size for name, listed in options.items()}
        key = tuple(sizes.values())
        if key not in accepted:
            made, changes = smaller(sizes)
            accepted[key] = not changes or accept(made)
            if accepted[key]:
                best = (made, changes)
        low, high = (low, math.log(price)) if accepted[key] else (math.log(price), high)
    return best


def _choice(options: Sequence[Option], price: float) -> Option:
    """The option of least parameters plus price times error."""
    return min(options, key=lambda option: option.cost + price * option.error)


def _gains(
    model: nn.Module, options: dict[str, list[Option]], smaller: Smaller, examples: DataBatches
) -> dict[str, float]:
    """How much of each layer's squared error reaches the outputs, measured at a middle size on some examples.

    Layers without which the model does not run have none: others than the model itself read their weights.
    """
    probe = examples.head(PROBES)
    before = outputs(model, probe).double()
    gains = {}
    for name, listed in staged(options.items(), "measuring what each layer's error does"):
        option = listed[len(listed) // 2]
        try:
            after = outputs(smaller({name: option.size})[0], probe)
        except InputError:
            continue
        changed = float((after - before).square().sum()) * len(examples) / len(probe)
        gains[name] = changed / option.error if option.error > 0 else 0.0
    return gains
