"""Every linear symmetry and shift that a model has, from gradients alone: an oracle that shares nothing with the walk.

A generator moves the weights by `dw = A w + c`. Here `A` acts on each parameter by one matrix along one of its axes, or
along two axes taken together, or by a matrix of its own for each index into another axis; `c` is any constant. It is
a symmetry if `⟨A w + c, ∇_w ⟨a, f(x; w)⟩⟩ = 0` for all `w`, `x` and `a`: a linear system, whose null space is counted
and compared with the span of the laws. Symmetric `A` conserve `wᵀAw + 2cᵀw`, the others are identities only.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import scipy.linalg
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from equipoise.laws.law import Law

LARGEST = 1e8  # norm of a gradient that rounding leaves something of
MIXED = 150  # entries of a matrix along axes, at most; longer axes are scaled entry by entry
COTANGENTS = 8  # gradients from each forward pass
FIRST = 96  # gradients to begin with, to see which entries move at all, and to confirm what was found
NULL, GAP = 1e-11, 1e-9  # relative singular values that count as zero, and that do not
RANK = 1e-7  # the same, where columns are of comparable size
Named = Mapping[str, Tensor]


class InDouble(TorchFunctionMode):
    """What a model asks to be done in float32 is done in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        wide = lambda value: torch.float64 if value is torch.float32 else value  # noqa: E731
        return func(*map(wide, args), **{key: wide(value) for key, value in (kwargs or {}).items()})


class NoGap(ValueError):
    """Singular values leave open which of them are zero."""


@dataclass(frozen=True)
class Verdict:
    """What there is beyond the laws: linear quantities, other conserved ones, and identities that conserve nothing.

    `false` names laws that the gradients do not obey; `moved` are the parameters that each generator beyond the laws
    moves.
    """

    unknowns: int
    generators: int
    linear: int
    conserved: int
    identities: int
    false: tuple[str, ...]
    moved: tuple[tuple[str, ...], ...]

    @property
    def complete(self) -> bool:
        """Whether the laws are all that there is."""
        return not (self.linear or self.conserved or self.identities or self.false)

    def __str__(self) -> str:
        """In a few words."""
        kinds = {"linear": self.linear, "conserved": self.conserved, "identities": self.identities}
        parts = [f"{count} {kind} missing" for kind, count in kinds.items() if count]
        false = [f"false: {', '.join(self.false)}"] if self.false else []
        return "; ".join([f"{self.generators} generators", *parts, *false])


def null_space(
    model: nn.Module,
    inputs: Callable[[int], Any],
    outputs: Callable[[nn.Module, Any], Sequence[Tensor]],
    laws: Sequence[Law],
    *,
    differences: bool = False,
    spread: float = 0.7,
    seed: int = 0,
) -> Verdict:
    """All generators of a model beside those of its laws; the model's weights are drawn anew.

    `outputs(model, inputs(seed))` are the tensors that a loss may depend on; with `differences`, only on differences
    along their last axis. A generator that moves the weights along linear laws only, by whatever amounts, counts for
    nothing beside these. Raises `NoGap` where rounding does not let the null space be told.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    draw = _Draws(model, trained, inputs, outputs, differences, spread, torch.Generator().manual_seed(seed))
    weights, gradients = draw.rows(FIRST)
    alive = {name: (g != 0).any(0) for name, g in gradients.items()}
    basis = _Basis.of(trained, alive, laws, draw.generator)
    rows = basis.values(weights, gradients)
    scale = basis.by_parameter(rows.square().mean(0).sqrt())
    scale = scale.clamp(min=1e-4 * scale.max())
    null = torch.eye(basis.size, dtype=rows.dtype)
    while True:
        more = draw.rows(FIRST if len(rows) >= basis.size else basis.size + 20 - len(rows))
        fresh = basis.values(*more) / scale
        if len(rows) >= basis.size and bool(((fresh @ null).norm(dim=1) <= GAP * null.norm()).all()):
            break
        rows, (weights, gradients) = torch.cat([rows, fresh * scale]), _joined((weights, gradients), more)
        null = _null(rows / scale)
    null = torch.linalg.qr(null / scale[:, None])[0]
    false = _false(laws, weights, gradients)
    known = _orthonormal(basis.of_laws(skip=false))
    linear = basis.linear(null)
    explained = _orthonormal(torch.cat([known, basis.along(null, linear)], 1))
    missing = null.shape[1] - explained.shape[1]
    conserved = _symmetric(basis, null) - _symmetric(basis, explained)
    extra = [*_sparsest(basis, linear, basis.linear(known)), *_sparsest(basis, null, explained)]
    missing_linear = linear.shape[1] - basis.linear(known).shape[1]
    return Verdict(
        basis.size, null.shape[1], missing_linear, conserved, missing - conserved, tuple(false), tuple(extra)
    )


# Gradients ----------------------------------------------------------------------------------------------------------


@dataclass
class _Draws:
    model: nn.Module
    trained: Named
    inputs: Callable[[int], Any]
    outputs: Callable[[nn.Module, Any], Sequence[Tensor]]
    differences: bool
    spread: float
    generator: torch.Generator

    def rows(self, count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """At least so many pairs of weights and gradients, of length one, by parameter."""
        weights: dict[str, list[Tensor]] = {name: [] for name in self.trained}
        gradients: dict[str, list[Tensor]] = {name: [] for name in self.trained}
        for _ in range(4 * count):
            if sum(map(len, next(iter(weights.values())))) >= count:
                break
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.copy_(self.spread * self._normal(parameter))
            drawn = int(torch.randint(2**31, (), generator=self.generator))
            with InDouble():
                outputs = self.outputs(self.model, self.inputs(drawn))
            found = self._pulled(outputs)
            norm = torch.stack([g.reshape(len(g), -1).norm(dim=1) for g in found]).norm(dim=0).clamp(min=1e-300)
            if not norm.max() < LARGEST:  # a normalised channel without variance, and no `eps`
                continue
            for (name, parameter), gradient in zip(self.trained.items(), found, strict=True):
                weights[name].append(parameter.detach().clone().expand_as(gradient))
                gradients[name].append(gradient / norm.reshape(-1, *(1 for _ in parameter.shape)))
        if sum(map(len, next(iter(weights.values())))) < count:
            raise NoGap("no finite gradients")
        together = lambda rows: {name: torch.cat(mine) for name, mine in rows.items()}  # noqa: E731
        return together(weights), together(gradients)

    def _pulled(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of random combinations of the outputs, all at once where torch can."""
        trained = list(self.trained.values())
        cotangents = [self._cotangent(output.expand(COTANGENTS, *output.shape)) for output in outputs]
        pull = partial(torch.autograd.grad, outputs, trained, allow_unused=True, retain_graph=True)
        try:
            found = pull(cotangents, is_grads_batched=True)
        except (RuntimeError, NotImplementedError):  # an operation that vmap does not know
            rows = [pull([cotangent[row] for cotangent in cotangents]) for row in range(COTANGENTS)]
            dense = [[None if g is None else g.to_dense() if g.is_sparse else g for g in row] for row in rows]
            found = [None if column[0] is None else torch.stack(column) for column in zip(*dense, strict=True)]
        none = lambda p: p.new_zeros(COTANGENTS, *p.shape)  # noqa: E731
        return [none(p) if g is None else g.detach() for g, p in zip(found, trained, strict=True)]

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=self.generator)

    def _cotangent(self, output: Tensor) -> Tensor:
        cotangent = self._normal(output)
        return cotangent - cotangent.mean(-1, keepdim=True) if self.differences else cotangent


def _joined(a: tuple[Named, Named], b: tuple[Named, Named]) -> tuple[Named, Named]:
    together = [{name: torch.cat([x[name], y[name]]) for name in x} for x, y in zip(a, b, strict=True)]
    return together[0], together[1]


def _false(laws: Sequence[Law], weights: Named, gradients: Named) -> list[str]:
    """Laws that the first rows do not obey."""
    worst = {law.name: 0.0 for law in laws}
    for row in range(0, FIRST, 8):
        w, g = ({name: rows[row] for name, rows in named.items()} for named in (weights, gradients))
        for law in laws:
            worst[law.name] = max(worst[law.name], float(law.residual(w, g)))
    return [name for name, residual in worst.items() if not residual < 1e-10]


# The ansatz ---------------------------------------------------------------------------------------------------------


def _products(w: Tensor, g: Tensor) -> Iterator[Tensor]:
    """`⟨E w, g⟩` for the generators `E` of one parameter, from rows of weights and gradients."""
    axes = range(1, w.ndim)
    if w.ndim == 1:
        yield (w * g)[:, None]
    for axis in axes:
        yield _along(w, g, (), (axis,))
    if w.ndim == 4:
        for pair in itertools.combinations(axes, 2):
            yield _along(w, g, (), pair)
        for each, axis in itertools.permutations(axes, 2):
            yield _along(w, g, (each,), (axis,))
    if w.ndim > 4:  # a convolution, perhaps in groups
        yield _along(w, g, (1,), (2,))


def _along(w: Tensor, g: Tensor, each: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    """The entries of `G Wᵀ` along some axes, for each index into others; sums where that would be too many."""
    a, b = math.prod(w.shape[axis] for axis in each), math.prod(w.shape[axis] for axis in axes)
    w, g = (
        t.movedim((*each, *axes), tuple(range(1, 1 + len(each) + len(axes)))).reshape(len(t), a, b, -1) for t in (w, g)
    )
    if a * b * b <= MIXED:
        return (g @ w.mT).flatten(1)
    return (g * w).sum(-1).flatten(1) if a * b <= MIXED else (g * w).sum((-2, -1))


@dataclass(frozen=True)
class _Basis:
    """Independent functionals `⟨E w, g⟩` of pairs of weights and gradients, parameter by parameter, then of laws."""

    parts: dict[str, Tensor]  # combinations of the products of a parameter that are independent
    alive: Named
    laws: tuple[Law, ...]
    beyond: Tensor  # combinations of laws' identities that the ansatz does not contain
    coefficients: Tensor  # of the laws' identities in all of them
    owners: tuple[str, ...]  # the law of each column of these

    @classmethod
    def of(cls, trained: Named, alive: Named, laws: Sequence[Law], generator: torch.Generator) -> "_Basis":
        parts = {name: _independent(p, alive[name], generator) for name, p in trained.items()}
        bare = cls(parts, alive, tuple(laws), torch.zeros(0, 0, dtype=torch.float64), torch.zeros(0, 0), ())
        count = sum(part.shape[1] for part in parts.values()) + sum(alive[name].sum().item() for name in parts)
        owners = tuple(law.name for law in laws for _ in range(_width(law, trained)))
        w, g = _unrelated(trained, alive, int(count) + len(owners) + 20, generator)
        inside, wanted = bare.values(w, g), _identities(laws, w, g)
        if not owners:
            return cls(
                parts, alive, (), torch.zeros(0, 0, dtype=torch.float64), inside.new_zeros(inside.shape[1], 0), ()
            )
        known = torch.linalg.lstsq(inside, wanted).solution
        outside = wanted - inside @ known
        norms = wanted.norm(dim=0).clamp(min=1e-30)
        beyond = _range(outside / norms) / norms[:, None]
        if beyond.shape[1]:
            known = torch.linalg.lstsq(torch.cat([inside, wanted @ beyond], 1), wanted).solution
        return cls(parts, alive, tuple(laws), beyond, known, owners)

    @property
    def size(self) -> int:
        """Unknowns of a generator."""
        return sum(part.shape[1] for part in self.parts.values()) + self._shifts + self.beyond.shape[1]

    @property
    def _shifts(self) -> int:
        return sum(int(self.alive[name].sum()) for name in self.parts)

    def values(self, weights: Named, gradients: Named, *, shifts: bool = True) -> Tensor:
        """A row for each pair, a column for each unknown; without `shifts` zeros in their place."""
        columns = [_all_products(weights[name], gradients[name]) @ part for name, part in self.parts.items()]
        shifted = [
            gradients[name].reshape(len(gradients[name]), -1)[:, self.alive[name].flatten()] for name in self.parts
        ]
        columns += shifted if shifts else [torch.zeros_like(g) for g in shifted]
        if self.beyond.numel():
            columns.append(_identities(self.laws, weights, gradients) @ self.beyond)
        return torch.cat(columns, 1)

    def by_parameter(self, columns: Tensor) -> Tensor:
        """The mean of a number for each unknown over those of one parameter."""
        means = [part.mean().expand(len(part)) for part in columns.split(self._sizes) if len(part)]
        return torch.cat(means)

    @property
    def _sizes(self) -> list[int]:
        products = [part.shape[1] for part in self.parts.values()]
        return [*products, *(int(self.alive[name].sum()) for name in self.parts), self.beyond.shape[1]]

    def of_laws(self, skip: Sequence[str] = ()) -> Tensor:
        """The generators of the laws, column by column."""
        kept = [number for number, owner in enumerate(self.owners) if owner not in skip]
        return self.coefficients[:, kept]

    def linear(self, generators: Tensor) -> Tensor:
        """Those combinations of generators that only shift."""
        products = sum(self._sizes[: len(self.parts)])
        others = torch.cat([generators[:products], generators[products + self._shifts :]])
        return _orthonormal(generators @ _kernel(others))

    def along(self, generators: Tensor, linear: Tensor) -> Tensor:
        """Those combinations of generators that move the weights along linear laws only."""
        if not linear.shape[1]:
            return linear
        products = sum(self._sizes[: len(self.parts)])
        directions = _orthonormal(linear[products : products + self._shifts])
        w, g = self._anything(generators.shape[1] + 10)
        flat = torch.cat([g[name].flatten(1)[:, self.alive[name].flatten()] for name in self.parts], 1)
        flat = flat - flat @ directions @ directions.T
        parts = flat.split([int(self.alive[name].sum()) for name in self.parts], 1)
        across = {name: torch.zeros_like(g[name]) for name in self.parts}
        for name, part in zip(self.parts, parts, strict=True):
            across[name].flatten(1)[:, self.alive[name].flatten()] = part
        return generators @ _kernel(self.values(w, across) @ generators)

    def skew(self, generators: Tensor) -> Tensor:
        """`⟨A w, g⟩ - ⟨A g, w⟩` of each generator, a row for each of some random pairs."""
        w, g = self._anything(generators.shape[1] + 10)
        return (self.values(w, g, shifts=False) - self.values(g, w, shifts=False)) @ generators

    def _anything(self, count: int) -> tuple[Named, Named]:
        """Weights and gradients that have nothing to do with each other, no entry of them zero."""
        shapes = {name: torch.empty(self.alive[name].shape) for name in self.parts}
        everywhere = {name: torch.ones_like(alive) for name, alive in self.alive.items()}
        return _unrelated(shapes, everywhere, count, torch.Generator().manual_seed(1))

    def moved(self, generator: Tensor) -> tuple[str, ...]:
        """The parameters that a generator moves, shifted ones marked by a plus."""
        names = [*self.parts, *(f"+{name}" for name in self.parts), "laws"]
        sizes = {name: float(part.norm()) for name, part in zip(names, generator.split(self._sizes), strict=True)}
        top = max(sizes.values())
        return tuple(name for name, size in sizes.items() if size > 1e-6 * top)


def _all_products(w: Tensor, g: Tensor) -> Tensor:
    return torch.cat(list(_products(w, g)), 1)


def _independent(parameter: Tensor, alive: Tensor, generator: torch.Generator) -> Tensor:
    """Combinations of the products of a parameter that are independent, of comparable size."""
    shape = tuple(parameter.shape)
    count = _all_products(torch.zeros(1, *shape), torch.zeros(1, *shape)).shape[1] + 10
    w, g = (torch.randn(count, *shape, dtype=torch.float64, generator=generator) for _ in range(2))
    return _range(_all_products(w, g * alive))


def _unrelated(trained: Named, alive: Named, count: int, generator: torch.Generator) -> tuple[Named, Named]:
    """Weights and gradients that have nothing to do with each other."""
    drawn = [
        {name: torch.randn(count, *p.shape, dtype=torch.float64, generator=generator) for name, p in trained.items()}
        for _ in range(2)
    ]
    return drawn[0], {name: g * alive[name] for name, g in drawn[1].items()}


def _width(law: Law, trained: Named) -> int:
    return law.identity(trained, trained).numel()


def _identities(laws: Sequence[Law], weights: Named, gradients: Named) -> Tensor:
    """What each law says of each pair, entry by entry."""
    said = [vmap(law.identity)(weights, gradients).flatten(1) for law in laws]
    return torch.cat(said, 1) if said else torch.zeros(len(next(iter(weights.values()))), 0, dtype=torch.float64)


# Linear algebra -----------------------------------------------------------------------------------------------------


def _null(rows: Tensor) -> Tensor:
    """The null space; raises `NoGap` where it cannot be told."""
    triangle, order = scipy.linalg.qr(rows.numpy(), mode="r", pivoting=True)
    triangle = torch.from_numpy(triangle[: rows.shape[1]])
    sizes = triangle.diagonal().abs() / triangle.diagonal().abs().max()
    rank = int((sizes > NULL).sum())
    if rank and sizes[rank - 1] < GAP:
        raise NoGap(
            f"no gap between {sizes[rank - 1]:.0e} and {float(sizes[rank:].max() if rank < len(sizes) else 0):.0e}"
        )
    null = torch.zeros(rows.shape[1], rows.shape[1] - rank, dtype=rows.dtype)
    null[order[:rank]] = -torch.linalg.solve_triangular(triangle[:rank, :rank], triangle[:rank, rank:], upper=True)
    null[order[rank:]] = torch.eye(rows.shape[1] - rank, dtype=rows.dtype)
    return null


def _range(columns: Tensor) -> Tensor:
    """Combinations of columns that are orthonormal, as many as are independent."""
    _, sigma, right = torch.linalg.svd(columns, full_matrices=False)
    kept = sigma > 1e-9 * max(float(sigma.max()) if len(sigma) else 0.0, 1.0)
    return right[kept].T / sigma[kept]


def _orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of what columns span."""
    if not columns.shape[1]:
        return columns
    left, sigma, _ = torch.linalg.svd(columns / columns.norm(dim=0).clamp(min=1e-30), full_matrices=False)
    return left[:, sigma > RANK]


def _kernel(matrix: Tensor) -> Tensor:
    """An orthonormal basis of what a matrix maps to zero, for columns of comparable size."""
    if not matrix.shape[1]:
        return matrix.new_zeros(0, 0)
    _, sigma, right = torch.linalg.svd(matrix, full_matrices=True)
    return right[int((sigma > RANK * max(1.0, float(sigma.max()) if len(sigma) else 1.0)).sum()) :].T


def _symmetric(basis: _Basis, generators: Tensor) -> int:
    """How many combinations of generators are symmetric: `⟨A w, g⟩ = ⟨A g, w⟩`."""
    return _kernel(basis.skew(generators)).shape[1] if generators.shape[1] else 0


def _sparsest(basis: _Basis, generators: Tensor, known: Tensor) -> Iterator[tuple[str, ...]]:
    """What is moved by generators that complete known ones to all of them, those that move few parameters first."""
    missing = generators.shape[1] - known.shape[1]
    candidates = _echelon(generators).T if missing else []
    for generator in sorted(candidates, key=lambda candidate: len(basis.moved(candidate))):
        rest = generator / generator.norm()
        rest = rest - known @ (known.T @ rest)
        if missing and rest.norm() > RANK:
            known, missing = torch.cat([known, (rest / rest.norm())[:, None]], 1), missing - 1
            yield basis.moved(generator)


def _echelon(columns: Tensor) -> Tensor:
    """The same span in reduced echelon form, whose columns meet few unknowns each."""
    rows = columns.T.clone()
    place = 0
    for column in range(rows.shape[1]):
        pivot = place + int(rows[place:, column].abs().argmax())
        if rows[pivot, column].abs() < RANK:
            continue
        rows[[place, pivot]] = rows[[pivot, place]]
        rows[place] /= rows[place, column].clone()
        others = torch.arange(len(rows)) != place
        rows[others] -= rows[others, column, None] * rows[place]
        place += 1
        if place == len(rows):
            break
    return rows.T
