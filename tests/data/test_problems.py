import pytest
import torch

from equipoise.data import low_rank_matrix, modular_addition, one_hot_examples, stochastic_block_model
from equipoise.errors import InputError


@pytest.mark.parametrize("p", [2, 7])
def test_every_pair_is_there_once_with_its_sum(p):
    split = modular_addition(p, share=0.4, seed=2)
    X, y = (torch.cat(parts) for parts in zip(split.train, split.test, strict=True))
    pairs = {(int(x[:p].argmax()), int(x[p:].argmax())) for x in X}
    assert len(pairs) == len(X) == p * p
    assert all(int(x[:p].argmax()) + int(x[p:].argmax()) - int(c) in (0, p) for x, c in zip(X, y, strict=True))
    tokens = modular_addition(p, share=0.4, seed=2, encoding="tokens").train
    assert torch.equal(tokens[0].sum(1) % p, tokens[1])
    assert torch.equal(tokens[1], split.train[1])


def test_splits_are_drawn_by_the_seed():
    a, b, c = (modular_addition(7, seed=seed).train[1] for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("positive", [False, True])
def test_low_rank_matrices_have_their_rank_and_share(positive):
    problem = low_rank_matrix(40, 40, rank=4, seen=0.3, positive=positive)
    values = torch.linalg.svdvals(problem.matrix)
    assert values[3] > 1
    assert values[4] < 1e-12 * values[0]
    assert float(problem.seen.double().mean()) == pytest.approx(0.3, abs=0.06)
    assert torch.equal(problem.matrix, problem.matrix.T) == torch.equal(problem.seen, problem.seen.T) == positive
    assert not positive or torch.linalg.eigvalsh(problem.matrix).min() > -1e-12


def test_communities_have_the_densities_that_were_asked_for():
    graph = stochastic_block_model((100, 150), inside=0.3, between=0.05, signal=3.0)
    a, b = graph.edges
    same = graph.y[a] == graph.y[b]
    assert len(a) == len(set(zip(a.tolist(), b.tolist(), strict=True)))
    assert set(zip(a.tolist(), b.tolist(), strict=True)) == set(zip(b.tolist(), a.tolist(), strict=True))
    assert not (a == b).any()
    assert int(same.sum()) / (100 * 99 + 150 * 149) == pytest.approx(0.3, abs=0.01)
    assert int((~same).sum()) / (2 * 100 * 150) == pytest.approx(0.05, abs=0.01)


def test_bad_input_says_what_to_do():
    with pytest.raises(InputError, match="leaves some to test on"):
        modular_addition(5, share=1.0)
    with pytest.raises(InputError, match="encoding='binary'"):
        modular_addition(5, encoding="binary")
    with pytest.raises(InputError, match="rank=7"):
        low_rank_matrix(5, 5, rank=7)
    with pytest.raises(InputError, match="two or more classes"):
        stochastic_block_model((5,))
    with pytest.raises(InputError, match="two classes or more"):
        one_hot_examples([3])
