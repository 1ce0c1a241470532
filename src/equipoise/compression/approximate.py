"""Moves within an error budget: layers factorised for their inputs, channels selected; sizes chosen together.

A layer's error on the data is known from the covariance of its inputs: `‖(W - W_r) Σ^{½}‖² = Σ_{i > r} σ_i²`, the
discarded squared singular values of `W Σ^{½}`, for `W_r = U_r U_rᵀ W` with the left singular vectors of `W Σ^{½}`
(docs/theory.md, T10). `Σ` may be singular: it is never inverted. How much of it reaches the outputs is measured, one
gain a layer, and at one price of an error every layer has its cheapest rank; the price is then set by bisection on the
error of the whole model: first on some of the examples, and from there on all of them.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.compression.costs import CostModel, Option
from equipoise.compression.data import DataBatches, SecondMoment, outputs, visit
from equipoise.compression.exact import Change
from equipoise.compression.layers import factors, layer, replace, resized
from equipoise.compression.selection import Channels, ChannelSelection
from equipoise.errors import InputError
from equipoise.stages import stage, staged

PROBES = 1024  # examples on which gains are measured, and prices are searched first
BISECTIONS = 16
CLOSE = 0.01  # of logarithms of prices, to which they are settled on all examples
STRIDE = 0.08  # between logarithms of the first prices that are tried there

Accept = Callable[[nn.Module], bool]


@dataclass(frozen=True)
class Acceptance:
    """Whether a smaller model is accepted on all examples, and, as a first guess, on some of them."""

    on_all: Accept
    on_some: Accept


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

    def options(self, module: nn.Linear | nn.Conv2d, costs: CostModel) -> list[Option]:
        """The layer as it is, and every rank at which two factors cost less."""
        weight, shape = module.weight.flatten(1), costs.shapes[self.name]
        tails = self.values.square().flip(0).cumsum(0).flip(0).tolist()
        ranks = list(range(1, min(len(tails), math.ceil(weight.numel() / sum(weight.shape)))))
        whole = Option(min(weight.shape), sum(costs.curve([0], lambda _: [(resized(module), shape)])), 0.0)
        prices = costs.curve(ranks, lambda rank: [(_of_rank(module, rank), shape)])
        cheaper = [
            Option(rank, price, tails[rank]) for rank, price in zip(ranks, prices, strict=True) if price < whole.cost
        ]
        return [whole, *cheaper]

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


def factorise(
    model: nn.Module, names: Sequence[str], examples: DataBatches, acceptance: Acceptance, costs: CostModel
) -> tuple[nn.Module, list[Change]]:
    """The cheapest ranks of all named layers together at which the model is accepted; the model itself if none is."""
    moments = {name: SecondMoment(layer(model, name).weight[0].numel()) for name in names}
    visit(model, examples, dict(moments))
    read = [name for name in names if moments[name].count]
    found = [
        Factorisation.of(name, _factorable(model, name), moments[name]) for name in staged(read, "factorising layers")
    ]
    options = {each.name: each.options(_factorable(model, each.name), costs) for each in found}

    def smaller(sizes: dict[str, int]) -> tuple[nn.Module, list[Change]]:
        made = copy.deepcopy(model)
        full = {name: listed[0].size for name, listed in options.items()}
        chosen = [each for each in found if sizes.get(each.name, full[each.name]) != full[each.name]]
        return made, [each.apply(made, sizes[each.name]) for each in chosen]

    return _cheapest(model, options, smaller, examples, acceptance)


def select(
    model: nn.Module, channels: Sequence[Channels], examples: DataBatches, acceptance: Acceptance, costs: CostModel
) -> tuple[nn.Module, list[Change]]:
    """The smallest sets of channels and heads of all layers together at which the model is accepted."""
    moments = {each.reader: SecondMoment(layer(model, each.reader).weight[0].numel()) for each in channels}
    visit(model, examples, dict(moments))
    read = [each for each in channels if moments[each.reader].count]
    found = [ChannelSelection.of(model, each, moments[each.reader]) for each in staged(read, "selecting channels")]
    options = {each.name: each.options(model, costs) for each in found}

    def smaller(sizes: dict[str, int]) -> tuple[nn.Module, list[Change]]:
        made = copy.deepcopy(model)
        chosen = [each for each in found if sizes.get(each.name, len(each.sets[0])) != len(each.sets[0])]
        return made, [each.apply(made, sizes[each.name], moments[each.channels.reader].mean) for each in chosen]

    return _cheapest(model, options, smaller, examples, acceptance)


def _of_rank(module: nn.Linear | nn.Conv2d, rank: int) -> nn.Module:
    """Two factors without weights."""
    out, inputs = module.weight.flatten(1).shape
    left, right = torch.empty(out, rank, device="meta"), torch.empty(rank, inputs, device="meta")
    return factors(module, left, right, None if module.bias is None else torch.empty(out, device="meta"))


def _factorable(model: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    module = layer(model, name)
    assert isinstance(module, nn.Linear | nn.Conv2d)
    return module


Smaller = Callable[[dict[str, int]], tuple[nn.Module, list[Change]]]


def _cheapest(
    model: nn.Module, options: dict[str, list[Option]], smaller: Smaller, examples: DataBatches, acceptance: Acceptance
) -> tuple[nn.Module, list[Change]]:
    """The sizes of least cost at one price of an error for all layers; the price by bisection, evaluating the model."""
    options = {name: listed for name, listed in options.items() if len(listed) > 1}
    gains = _gains(model, options, smaller, examples)
    options = {name: options[name] for name in gains}
    rates = [
        (listed[0].cost - option.cost) / (gains[name] * option.error)
        for name, listed in options.items()
        for option in listed[1:]
        if gains[name] * option.error > 0 and option.cost < listed[0].cost
    ]
    if not rates:
        return model, []

    def sizes(price: float) -> dict[str, int]:
        return {name: _choice(listed, gains[name] * math.exp(price)).size for name, listed in options.items()}

    def accepts(price: float, accept: Accept, known: dict[tuple[int, ...], bool]) -> bool:
        key = tuple(sizes(price).values())
        if key not in known:
            made, changes = smaller(sizes(price))
            known[key] = not changes or accept(made)
        return known[key]

    low, high = math.log(min(rates)) - 1.0, math.log(max(rates)) + 1.0
    on_some, on_all = (partial(accepts, accept=each, known={}) for each in (acceptance.on_some, acceptance.on_all))
    if not on_all(high):  # not even what has no error by itself
        return model, []
    with stage("choosing sizes within the tolerance"):
        found = _least(on_some, low, high, (high - low) / 2**BISECTIONS)
        if acceptance.on_some is not acceptance.on_all:
            found = _least(on_all, *_bracket(on_all, found, low, high), CLOSE)
    return smaller(sizes(found))


def _least(accepted: Callable[[float], bool], low: float, high: float, close: float) -> float:
    """The least number that is accepted, by bisection below one that is, `high`."""
    while high - low > close:
        middle = (low + high) / 2
        low, high = (low, middle) if accepted(middle) else (middle, high)
    return high


def _bracket(accepted: Callable[[float], bool], guess: float, low: float, high: float) -> tuple[float, float]:
    """Numbers that are refused and accepted, found from a guess in longer and longer strides; `high` is accepted."""
    stride = STRIDE
    if accepted(guess):
        while (lower := guess - stride) > low:
            if not accepted(lower):
                return lower, guess
            guess, stride = lower, 2 * stride
        return low, guess
    while (higher := guess + stride) < high:
        if accepted(higher):
            return guess, higher
        guess, stride = higher, 2 * stride
    return guess, high


def _choice(options: Sequence[Option], price: float) -> Option:
    """The option of least cost plus price times error."""
    return min(options, key=lambda option: option.cost + price * option.error)


def _gains(
    model: nn.Module, options: dict[str, list[Option]], smaller: Smaller, examples: DataBatches
) -> dict[str, float]:
    """How much of each layer's squared error reaches the outputs, measured at a middle size on some examples.

    Layers without which the model does not run have none: others than the model itself read their weights.
    """
    probe = examples.spread(PROBES)
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
