"""Lists of different lengths, one for each owner, compared all at once."""

import numpy as np
from jaxtyping import Int64, Shaped
from numpy import ndarray

DENSE = 4  # times as many numbers as values: up to there counting is faster than sorting


def places(lengths: Int64[ndarray, " lists"], starts: Int64[ndarray, " lists"]) -> Int64[ndarray, " items"]:
    """`starts[i], starts[i] + 1, …`, `lengths[i]` of them, for every list after the other.

    >>> places(np.array([2, 0, 1]), np.array([5, 7, 9])).tolist()
    [5, 6, 9]
    """
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)


def alike(count: int, owners: Int64[ndarray, " items"], values: Int64[ndarray, " items"]) -> Int64[ndarray, " count"]:
    """A number for each of `count` owners, equal where the lists of their values, in the order given, are equal.

    >>> alike(4, np.array([0, 1, 2, 0, 2]), np.array([7, 8, 7, 9, 9])).tolist()
    [2, 1, 2, 0]
    """
    order = np.argsort(owners, kind="stable")
    lengths = np.bincount(owners, minlength=count)
    starts = np.cumsum(lengths) - lengths
    ranks, numbers, used = ranked(values[order]), np.zeros(count, np.int64), 0
    base = int(ranks.max(initial=0)) + 1
    for length in np.unique(lengths).tolist():
        mine = np.flatnonzero(lengths == length)
        found = np.zeros(len(mine), np.int64)
        for place in range(length):
            found = ranked(found * base + ranks[starts[mine] + place])
        numbers[mine] = used + found
        used += int(found.max()) + 1
    return numbers


def joined(*columns: Shaped[ndarray, " n"]) -> Int64[ndarray, " n"]:
    """A number for each row of some columns, equal where the rows are.

    >>> joined(np.array([3, 3, 1]), np.array([0, 0, 0])).tolist()
    [1, 1, 0]
    """
    found, *others = map(ranked, columns)
    for column in others:
        found = ranked(found * (int(column.max(initial=0)) + 1) + column)
    return found


def distinct(values: Int64[ndarray, "*shape"]) -> Int64[ndarray, " distinct"]:
    """The distinct values in ascending order; by counting where the values are dense, else by sorting.

    >>> distinct(np.array([[3, 1], [1, 3]])).tolist()
    [1, 3]
    """
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if high - low <= DENSE * values.size:
        present = np.zeros(int(high - low) + 1, bool)
        present[values.reshape(-1) - low] = True
        return np.flatnonzero(present) + low
    ordered = np.sort(values, axis=None)
    return ordered[np.concatenate([np.ones(min(1, len(ordered)), bool), ordered[1:] != ordered[:-1]])]


def ranked(values: Shaped[ndarray, " n"]) -> Int64[ndarray, " n"]:
    """The place of each value among the distinct ones; by counting where the values are dense, else by sorting.

    >>> ranked(np.array([9, 2, 9])).tolist(), ranked(np.array([9, 10**12, 9])).tolist()
    ([1, 0, 1], [0, 1, 0])
    """
    low, high = (values.min(), values.max()) if len(values) else (0, 0)
    if not np.issubdtype(values.dtype, np.integer) or high - low > DENSE * len(values):
        return np.unique(values, return_inverse=True)[1].reshape(-1)
    present = np.zeros(int(high - low) + 1, bool)
    present[values - low] = True
    return (np.cumsum(present) - 1)[values - low]


def numbered(values: Int64[ndarray, " n"]) -> tuple[Int64[ndarray, " n"], Int64[ndarray, " distinct"]]:
    """The place of each value among the distinct ones in order of appearance, and where each appears first.

    >>> [found.tolist() for found in numbered(np.array([5, 2, 5, 3]))]
    [[0, 1, 0, 2], [0, 1, 3]]
    """
    rank, backwards = ranked(values), np.arange(len(values))[::-1]
    first = np.zeros(int(rank.max(initial=-1)) + 1, np.int64)
    first[rank[backwards]] = backwards  # the last one to be written stays
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place[rank], first[order]
