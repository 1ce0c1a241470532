"""The contract of every commutant: an orthogonal projection on an algebra, its count, and what follows for a law."""

import math

import pytest
import torch
from torch import Tensor

from equipoise.errors import InputError
from equipoise.graph.interface import Interface, Member
from equipoise.laws import (
    Antisymmetric,
    Blocks,
    Commutant,
    ComplexPlanes,
    Diagonal,
    Full,
    Intersection,
    Law,
    Product,
    Scalar,
    Shift,
)
from equipoise.laws.commutant import projection

MATRICES = [
    Full(3),
    Diagonal(4),
    Blocks(2, 3),
    ComplexPlanes(2),
    Scalar(),
    Antisymmetric(1, 3),
    Antisymmetric(2, 2),
    Product((ComplexPlanes(1), Full(2))),
    Product((Diagonal(2), Blocks(2, 2), Antisymmetric(1, 2))),
    Intersection((Blocks(2, 3), Diagonal(6))),
    Intersection((Blocks(2, 3), ComplexPlanes(3))),  # the middle plane lies across the blocks: it only scales
    Intersection((ComplexPlanes(2), Diagonal(2), Full(4))),
    Intersection((Full(4), Scalar())),
    Intersection((Product((Full(1), Full(3))), Product((Full(3), Full(1))))),
]
CONTRACT = pytest.mark.parametrize("commutant", MATRICES, ids=repr)


def random_moments(commutant, seed=0):
    blocks, width = commutant.shape
    return torch.randn(blocks, width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def basis(commutant, *, symmetric=False):
    """Unit matrices of each block, or symmetric ones."""
    blocks, width = commutant.shape
    for block in range(blocks):
        for row in range(width):
            for column in range(row if symmetric else 0, width):
                unit = torch.zeros(blocks, width, width, dtype=torch.float64)
                unit[block, row, column] = 1
                if symmetric:
                    unit[block, column, row] = 1
                yield unit


@CONTRACT
def test_projects_orthogonally(commutant):
    assert isinstance(commutant, Commutant)
    a, b = random_moments(commutant), random_moments(commutant, 1)
    projected = commutant.project(a)
    torch.testing.assert_close(commutant.project(projected), projected)
    torch.testing.assert_close((projected * b).sum(), (a * commutant.project(b)).sum())
    torch.testing.assert_close(commutant.project(2 * a - b), 2 * projected - commutant.project(b))


@CONTRACT
def test_counts_the_symmetric_matrices_it_holds(commutant):
    images = torch.stack([commutant.project(unit).reshape(-1) for unit in basis(commutant, symmetric=True)])
    assert commutant.count == torch.linalg.matrix_rank(images, tol=1e-9)


@CONTRACT
def test_is_closed_under_what_generators_are(commutant):
    """Products of two matrices that commute with a map commute with it; antisymmetric ones have only brackets."""
    a, b = (commutant.project(random_moments(commutant, seed)) for seed in (0, 1))
    closed = a @ b - b @ a if "Antisymmetric" in repr(commutant) else a @ b
    torch.testing.assert_close(commutant.project(closed), closed)
    torch.testing.assert_close(commutant.project(a.mT), a.mT)


def law_of(commutant, copies=2):
    """A law between two producers and a consumer of degree two, all random."""
    blocks, width = commutant.shape
    size = blocks * width * copies
    index = torch.arange(size).reshape(blocks, width, copies).transpose(1, 2)
    shapes = {"w": (size, 5), "b": (size,), "v": (3, size)}
    sides = [("w", 0, 1.0), ("b", 0, 1.0), ("v", 1, -2.0)]
    members = tuple(Member(name, shapes[name], (axis,), index, degree) for name, axis, degree in sides)
    random = lambda seed: {  # noqa: E731
        name: torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + len(shape)))
        for name, shape in shapes.items()
    }
    return Law("some", Interface(members, blocks, width), commutant), random(0), random(7)


def acted_on(law, generator, weights):
    """`W ← W + A W` for producers, `V ← V - degree A'ᵀ`-wise for consumers: the infinitesimal symmetry."""
    moved = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for member in law.interface.members:
        matrix = generator if member.degree > 0 else abs(member.degree) * generator.mT
        change = torch.einsum("bwv,bcvr->bcwr", matrix, member.slices(weights[member.parameter]))
        rows = moved[member.parameter].movedim(member.axes[0], 0)
        rows[member.index.reshape(-1)] += math.copysign(1, member.degree) * change.reshape(-1, *rows.shape[1:])
    return moved


@CONTRACT
def test_the_residual_pairs_gradients_with_the_symmetry(commutant):
    """T1: `⟨A, identity⟩ = ⟨∂_t W, G⟩` for every `A` of the commutant, so that it vanishes for an invariant loss."""
    law, weights, gradients = law_of(commutant)
    generator = commutant.project(random_moments(commutant))
    moved = acted_on(law, generator, weights)
    pairing = sum((moved[name] * gradients[name]).sum() for name in weights)
    torch.testing.assert_close((generator * law.identity(weights, gradients)).sum(), torch.as_tensor(pairing))


@CONTRACT
def test_the_residual_vanishes_exactly_on_gradients_across_the_orbits(commutant):
    law, weights, gradients = law_of(commutant)
    moves = [acted_on(law, commutant.project(unit), weights) for unit in basis(commutant)]
    flat = lambda tensors: torch.cat([tensors[name].reshape(-1) for name in weights])  # noqa: E731
    orbit = torch.linalg.svd(torch.stack([flat(move) for move in moves]), full_matrices=False)
    directions = orbit.Vh[1e-9 * orbit.S[0] < orbit.S]
    across = flat(gradients) - directions.T @ (directions @ flat(gradients))
    pieces = across.split([weights[name].numel() for name in weights])
    shaped = {name: piece.reshape(weights[name].shape) for name, piece in zip(weights, pieces, strict=True)}
    assert law.residual(weights, gradients) > 1e-3
    assert law.residual(weights, shaped) < 1e-15


@CONTRACT
def test_a_gradient_step_changes_the_value_by_the_identity_and_the_drift(commutant):
    """`C(W - ηG) = C(W) - 2η sym(identity) + η² C(G)`, the algebra behind T2 and T2.2."""
    law, weights, gradients = law_of(commutant)
    identity, rate = law.identity(weights, gradients), 0.3
    stepped = {name: weights[name] - rate * gradients[name] for name in weights}
    first_order = commutant.folded(commutant.project(identity + identity.mT))
    torch.testing.assert_close(
        law.value(stepped), law.value(weights) - rate * first_order + rate**2 * law.value(gradients)
    )
    updates = {name: -rate * gradients[name] for name in weights}
    torch.testing.assert_close(law.value(stepped), law.value(weights) + law.change(weights, updates))


@CONTRACT
def test_the_value_has_as_many_independent_entries_as_it_counts(commutant):
    law, weights, _ = law_of(commutant)
    shapes = [(name, tensor.shape, tensor.numel()) for name, tensor in weights.items()]

    def value(flat: Tensor) -> Tensor:
        parts = flat.split([size for *_, size in shapes])
        return law.value({name: part.reshape(shape) for (name, shape, _), part in zip(shapes, parts, strict=True)})

    points = torch.randn(40, sum(size for *_, size in shapes), dtype=torch.float64)
    values = torch.stack([value(point).reshape(-1) for point in points])
    assert torch.linalg.matrix_rank(values, tol=1e-9 * float(values.norm() + 1)) == commutant.count


def test_shift_sums_each_group_of_each_producer():
    index = torch.arange(6).reshape(2, 1, 3)
    member = Member("w", (6, 2), (0,), index, 1.0)
    shift = Shift(2, 3, 2)
    law = Law("shift", Interface((member,), 2, 3), shift)
    weights = {"w": torch.arange(12.0, dtype=torch.float64).reshape(6, 2)}
    assert shift.count == 4
    assert law.value(weights).tolist() == [[6.0, 9.0], [24.0, 27.0]]
    gradients = {"w": torch.randn(6, 2, dtype=torch.float64)}
    centred = {"w": (gradients["w"].reshape(2, 3, 2) - gradients["w"].reshape(2, 3, 2).mean(1, True)).reshape(6, 2)}
    assert law.residual(weights, gradients) > 1e-3
    assert law.residual(weights, centred) < 1e-15
    stepped = {"w": weights["w"] - 0.1 * gradients["w"]}
    torch.testing.assert_close(law.value(stepped) - law.value(weights), -0.1 * law.value(gradients))


@pytest.mark.parametrize(
    ("parts", "same"),
    [
        ((Full(6), Diagonal(6)), Diagonal(6)),
        ((Blocks(3, 2), Full(6)), Blocks(3, 2)),
        ((Blocks(2, 3), Blocks(3, 2)), Product((Full(2), Full(1), Full(1), Full(2)))),
        ((Diagonal(6), Scalar()), Scalar()),
        ((Product((Full(2), Full(2))),), Blocks(2, 2)),
    ],
)
def test_intersections_are_what_they_should_be(parts, same):
    matrix = torch.randn(6, 6, dtype=torch.float64)[: math.prod(parts[0].shape), : math.prod(parts[0].shape)]
    together = Intersection(parts)
    torch.testing.assert_close(projection(together, matrix), projection(same, matrix))
    assert together.count == same.count


def test_only_commutants_of_one_vector_intersect():
    with pytest.raises(InputError, match="sizes 3, 4; use Product"):
        Intersection((Full(3), Full(4)))
