"""Problems that papers study, drawn by a seed: modular addition, low-rank matrices, graphs with communities."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from equipoise.arguments import checked
from equipoise.errors import InputError


@dataclass(frozen=True)
class TrainTest:
    """Examples to train on and others to test on, each as `(X, y)`."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LowRankMatrix:
    """A matrix of low rank, and which of its entries are seen."""

    matrix: Float64[Tensor, "rows columns"]
    seen: Bool[Tensor, "rows columns"]


@dataclass(frozen=True)
class Communities:
    """A graph whose nodes have classes: both directions of each edge, as PyTorch Geometric has them."""

    X: Float64[Tensor, "nodes features"]
    y: Int64[Tensor, " nodes"]
    edges: Int64[Tensor, "2 edges"]


@checked
def modular_addition(p: int = 29, share: float = 0.5, seed: int = 0, encoding: str = "one_hot") -> TrainTest:
    """All `p²` pairs `(a, b)` with the class `a + b mod p`, a share of them to train on (Power et al. 2022).

    Args:
        p: the modulus.
        share: of the pairs that are trained on, drawn by `seed`.
        seed: of the split.
        encoding: `"one_hot"`, float64 of shape (n, 2p): `a` and `b` side by side; or `"tokens"`, int64 of shape (n, 3):
            `a`, `b` and `p`, the token of `=`.

    Returns:
        The two parts; classes are int64.

    Raises:
        InputError: for `p` below 2, a share that leaves one part empty, and an unknown encoding.

    >>> split = modular_addition(p=5, share=0.6, encoding="tokens")
    >>> split.train[0].shape, split.test[0].shape
    (torch.Size([15, 3]), torch.Size([10, 3]))
    """
    count = round(share * p * p)
    if p < 2 or not 0 < count < p * p or encoding not in ("one_hot", "tokens"):
        raise InputError(
            expected="p from 2, a share of pairs that leaves some to test on, encoding 'one_hot' or 'tokens'",
            found=f"p={p}, share={share}, encoding={encoding!r}",
            remedy="pass p=29, share=0.5",
        )
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    y = (a + b) % p
    if encoding == "tokens":
        X = torch.stack([a, b, torch.full_like(a, p)], 1)
    else:
        eye = torch.eye(p, dtype=torch.float64)
        X = torch.cat([eye[a], eye[b]], 1)
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(seed))
    train, test = order[:count].sort().values, order[count:].sort().values
    return TrainTest((X[train], y[train]), (X[test], y[test]))


@checked
def low_rank_matrix(
    rows: int = 30, columns: int = 30, rank: int = 3, seen: float = 0.5, *, positive: bool = False, seed: int = 0
) -> LowRankMatrix:
    """A matrix `A Bᵀ / √rank` of Gaussian factors, of which a share of the entries is seen.

    Args:
        rows: of the matrix.
        columns: of the matrix.
        rank: of the matrix.
        seen: the probability of each entry to be seen.
        positive: whether `B = A`, so that the matrix is symmetric and positive semidefinite, and so is what is seen.
        seed: of factors and mask.

    Returns:
        The matrix and the mask.

    Raises:
        InputError: for a rank beyond the shape, a share outside [0, 1], and a positive matrix that is not square.

    >>> problem = low_rank_matrix(6, 5, rank=2)
    >>> int(torch.linalg.matrix_rank(problem.matrix)), problem.seen.shape
    (2, torch.Size([6, 5]))
    """
    if not (1 <= rank <= min(rows, columns) and 0 <= seen <= 1) or (positive and rows != columns):
        raise InputError(
            expected="1 ≤ rank ≤ rows and columns, a share in [0, 1], and a square shape where positive=True",
            found=f"{rows} × {columns}, rank={rank}, seen={seen}, positive={positive}",
            remedy="pass low_rank_matrix(30, 30, rank=3)",
        )
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    right = left if positive else torch.randn(columns, rank, generator=generator, dtype=torch.float64)
    draws = torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    draws = torch.triu(draws) + torch.triu(draws, 1).T if positive else draws
    matrix = left @ right.T / rank**0.5
    return LowRankMatrix((matrix + matrix.T) / 2 if positive else matrix, draws < seen)  # a product may round otherwise


@checked
def stochastic_block_model(
    sizes: Sequence[int] = (50, 50),
    inside: float = 0.2,
    between: float = 0.02,
    *,
    features: int = 16,
    signal: float = 1.0,
    seed: int = 0,
) -> Communities:
    """A graph with communities: each pair of nodes is joined with a probability that depends on their classes.

    Args:
        sizes: nodes of each class.
        inside: the probability of an edge within a class (Holland, Laskey & Leinhardt 1983).
        between: that of one between two classes.
        features: numbers a node, standard normal around the mean of its class.
        signal: the standard deviation of these means.
        seed: of edges and features.

    Returns:
        Features, classes and edges; no node is joined to itself.

    Raises:
        InputError: for fewer than two classes, empty ones, and what is no probability.

    >>> graph = stochastic_block_model((3, 2), inside=1.0, between=0.0)
    >>> graph.y.tolist(), graph.edges.shape
    ([0, 0, 0, 1, 1], torch.Size([2, 8]))
    """
    if len(sizes) < 2 or min(sizes) < 1 or not (0 <= inside <= 1 and 0 <= between <= 1) or features < 1:
        raise InputError(
            expected="two or more classes of nodes, probabilities in [0, 1], and one feature or more",
            found=f"sizes={tuple(sizes)}, inside={inside}, between={between}, features={features}",
            remedy="pass sizes=(50, 50), inside=0.2, between=0.02",
        )
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    same = y[:, None] == y
    chance = torch.where(same, inside, between)
    joined = torch.triu(torch.rand(len(y), len(y), generator=generator, dtype=torch.float64) < chance, 1)
    edges = (joined | joined.T).nonzero().T
    means = signal * torch.randn(len(sizes), features, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(y), features, generator=generator, dtype=torch.float64)
    return Communities(means[y] + noise, y, edges.contiguous())


@checked
def one_hot_examples(counts: Sequence[int]) -> tuple[Float[Tensor, "n n"], Int64[Tensor, " n"]]:
    """One-hot examples with the classes of a deep unconstrained features model (`eq.networks.deep_features`).

    Args:
        counts: examples of each class.

    Returns:
        The identity as `X`, and classes in ascending order as `y`.

    Raises:
        InputError: for fewer than two classes, and empty ones.

    >>> X, y = one_hot_examples([2, 1])
    >>> y.tolist(), X.shape
    ([0, 0, 1], torch.Size([3, 3]))
    """
    if len(counts) < 2 or min(counts) < 1:
        raise InputError(
            expected="two classes or more, one example or more each", found=str(tuple(counts)), remedy="pass [5, 5]"
        )
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return torch.eye(len(y), dtype=torch.float64), y
