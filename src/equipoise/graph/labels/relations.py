"""Linear relations between the elements of a tensor that hold for all data: a centred vector sums to zero.

Elements are written as combinations of *atoms*, of which nothing is known: the last element of a slice that sums to
zero is minus the sum of its others. A weight that reads a vector `x` with `n·x = 0` sees no shift of itself along `n`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from equipoise.graph.labels.ragged import joined

ONE = 0  # the atom that is the number one
LARGEST = 2**18  # elements of a tensor that are written as combinations of atoms
SOLVED = 128  # entries tied to each other for which all relations are solved for; of more only the sum is tried
EXACT = 1e-9  # entries below this are zero, by elimination
ROUNDING = 1e-14  # of a sum of terms, over that of their magnitudes


@dataclass(frozen=True, eq=False)
class Combinations:
    """`element[row] = Σ value · atom`, for a number of elements; each pair of element and atom once."""

    elements: int
    row: Int64[ndarray, " terms"]
    atom: Int64[ndarray, " terms"]
    value: Float64[ndarray, " terms"]

    @classmethod
    def free(cls, atoms: Int64[ndarray, " n"]) -> "Combinations":
        """Each element an atom of its own."""
        return cls(len(atoms), np.arange(len(atoms)), atoms, np.ones(len(atoms)))

    def through(self, matrix: csr_array) -> "Combinations":
        """Linear combinations of the elements, one for each row of a matrix."""
        atoms, column = np.unique(self.atom, return_inverse=True)
        own = csr_array((self.value, (self.row, column)), shape=(self.elements, len(atoms)))
        return _merged(matrix @ own, atoms)

    def plus(self, other: "Combinations") -> "Combinations":
        """Sums, element by element."""
        joined = [np.concatenate(pair) for pair in zip(self.terms, other.terms, strict=True)]
        atoms, column = np.unique(joined[1], return_inverse=True)
        return _merged(csr_array((joined[2], (joined[0], column)), shape=(self.elements, len(atoms))), atoms)

    @property
    def terms(self) -> tuple[ndarray, ndarray, ndarray]:
        """Elements, atoms and values, term by term."""
        return self.row, self.atom, self.value


def _merged(matrix: csr_array, atoms: ndarray) -> Combinations:
    terms = coo_array(matrix)
    terms.sum_duplicates()
    kept = np.abs(terms.data) > ROUNDING
    row, column = (np.asarray(side, np.int64)[kept] for side in (terms.row, terms.col))
    return Combinations(len(matrix.indptr) - 1, row, atoms[column], np.asarray(terms.data, np.float64)[kept])


def selection(numbers: Int64[ndarray, " n"], elements: int) -> csr_array:
    """The matrix that picks elements by number; zero where the number is negative.

    >>> selection(np.array([2, -1]), 3).toarray()
    array([[0., 0., 1.],
           [0., 0., 0.]])
    """
    row = np.flatnonzero(numbers >= 0)
    return csr_array((np.ones(len(row)), (row, numbers[row])), shape=(len(numbers), elements))


def balanced(slices: Int64[ndarray, "slices width"], total: float) -> csr_array:
    """Elements in terms of themselves, but the last of each slice in terms of its others: slices sum to `total`.

    The last column is the number one.

    >>> balanced(np.array([[0, 1]]), 1.0).toarray()
    array([[ 1.,  0.,  0.],
           [-1.,  0.,  1.]])
    """
    count, (last, others) = slices.size, (slices[:, -1], slices[:, :-1])
    row = np.concatenate([others.ravel(), np.repeat(last, others.shape[1]), last])
    column = np.concatenate([others.ravel(), others.ravel(), np.full(len(last), count)])
    value = np.concatenate([np.ones(others.size), -np.ones(others.size), np.full(len(last), total)])
    return csr_array((value, (row, column)), shape=(count, count + 1))


# Null vectors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Relation:
    """`Σ weights · x[entries]` is zero, or a constant, for all data."""

    entries: Int64[ndarray, " n"]
    weights: Float64[ndarray, " n"]


def relations(
    readings: Sequence[tuple[Combinations, Int64[ndarray, "_ width"]]], *, constant: bool = False
) -> list[Relation]:
    """Independent relations that hold in every row of every reading, given the numbers of its elements.

    With `constant` the sums need not vanish: one number for all rows is enough.
    """
    width = readings[0][1].shape[1]
    parts = [_equations(*reading, constant=constant) for reading in readings]
    offsets = np.cumsum([0, *(int(part[0].max(initial=-1)) + 1 for part in parts)])
    row = np.concatenate([part[0] + offset for part, offset in zip(parts, offsets[:-1], strict=True)])
    entry, value = (np.concatenate([part[place] for part in parts]) for place in (1, 2))
    return list(_solutions(row, entry, value, width))


def _equations(
    combinations: Combinations, numbers: Int64[ndarray, "rows width"], *, constant: bool
) -> tuple[ndarray, ndarray, ndarray]:
    """The equations `Σ_entry value · n[entry] = 0`: one for each row and atom."""
    rows, width = numbers.shape
    found = combinations.through(selection(numbers.reshape(-1), combinations.elements))
    (place, atom, value), count = found.terms, rows * width
    if constant:  # in every row what it is in the first
        ones = np.zeros(count)
        ones[place[atom == ONE]] = value[atom == ONE]
        ones = (ones.reshape(rows, width) - ones[:width]).reshape(-1)
        kept, differing = atom != ONE, np.flatnonzero(ones)
        place = np.concatenate([place[kept], differing])
        atom = np.concatenate([atom[kept], np.full(len(differing), ONE)])
        value = np.concatenate([value[kept], ones[differing]])
    return joined(place // width, atom), place % width, value


def _solutions(row: ndarray, entry: ndarray, value: ndarray, width: int) -> Iterator[Relation]:
    """A basis, each vector of it within entries that the equations tie to each other."""
    count = int(row.max(initial=-1)) + 1
    links = coo_array((np.ones(len(row)), (row, count + entry)), shape=(count + width,) * 2)
    component = connected_components(links, directed=False)[1]
    equations = csr_array((value, (row, entry)), shape=(count, width))
    alone = np.bincount(component[count:], minlength=component.max() + 1)[component[count:]] == 1
    alone[np.setdiff1d(np.arange(width), entry[value != 0])] = False  # an entry that vanishes is a relation
    for number in np.unique(component[count:][~alone]):
        entries = np.flatnonzero(component[count:] == number)
        own = equations[np.flatnonzero(component[:count] == number)][:, entries]
        candidates = [np.ones(len(entries))] if len(entries) > SOLVED else _kernel(own.toarray())
        found = (_exactly(own, candidate) for candidate in candidates)
        yield from (Relation(entries[n != 0], n[n != 0]) for n in found if n is not None)


def _exactly(equations: csr_array, vector: Float64[ndarray, " width"]) -> ndarray | None:
    """A null vector, in simple numbers where these are one; None where it is one nearly, as of smooth constants."""
    for tried in (vector.round(12), np.where(np.abs(vector) > EXACT, vector, 0.0)):
        scale = abs(equations) @ np.abs(tried)
        if (np.abs(equations @ tried) <= ROUNDING * scale).all():
            return tried
    return None


def _kernel(matrix: Float64[ndarray, "equations width"]) -> list[ndarray]:
    """A basis of what equations send to zero, or nearly so, in reduced echelon form: simple numbers stay simple."""
    matrix, pivots, row = np.unique(matrix, axis=0), [], 0
    for column in range(matrix.shape[1]):
        if row == len(matrix):
            break
        best = row + int(np.abs(matrix[row:, column]).argmax())
        if abs(matrix[best, column]) < EXACT:
            continue
        matrix[[row, best]] = matrix[[best, row]]
        matrix[row] /= matrix[row, column]
        matrix -= np.outer(np.where(np.arange(len(matrix)) == row, 0.0, matrix[:, column]), matrix[row])
        pivots.append(column)
        row += 1
    found = []
    for free in sorted(set(range(matrix.shape[1])) - set(pivots)):
        vector = np.zeros(matrix.shape[1])
        vector[free], vector[pivots] = 1.0, -matrix[: len(pivots), free]
        found.append(vector)
    return found
