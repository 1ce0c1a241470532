import pytest
import torch
from torch import nn

from equipoise import measure
from equipoise.data import load
from equipoise.errors import InputError


def random_matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_distance_to_rank_is_that_of_the_truncated_matrix():
    matrix = random_matrix(6, 9)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    for rank in (0, 1, 3, 6):
        nearest = left[:, :rank] * values[:rank] @ right[:rank]
        assert measure.distance_to_rank(matrix, rank) == pytest.approx(float((matrix - nearest).norm()), abs=1e-14)


@pytest.mark.parametrize(("lr", "decay", "batch", "steps"), [(0.1, 0.1, 1, 5), (0.05, 0.3, 3, 4), (3.0, 0.5, 2, 3)])
def test_no_step_of_sgd_leaves_the_batch_bound(lr, decay, batch, steps):
    torch.manual_seed(0)
    X, y = load("digits", n=60, seed=1)
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 10, bias=False)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=decay)
    norms = []
    for step in range(12):
        norms.append([float(weight.detach().norm()) for weight in model.parameters()])
        rows = slice(batch * step, batch * (step + 1))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[rows]), y[rows]).backward()
        optimizer.step()
    for weight, norm in zip(model.parameters(), norms[-steps], strict=True):
        bound = measure.batch_rank_bound(norm, lr, decay, batch, steps)
        assert bound.rank == steps * batch
        assert measure.distance_to_rank(weight.detach(), bound.rank) <= bound.distance * (1 + 1e-12)


def test_one_step_without_gradient_attains_the_batch_bound():
    weight = random_matrix(4, 4)
    bound = measure.batch_rank_bound(float(weight.norm()), lr=0.1, weight_decay=1.0, batch=0, steps=1)
    assert measure.distance_to_rank(0.9 * weight, bound.rank) == pytest.approx(bound.distance)


def test_the_cluster_bound_holds_where_the_gradient_is_not_zero():
    """At any point: a random network on random clusters, the gradient's norm in the bound."""
    labels = torch.arange(3).repeat(4)
    inputs = 3 * random_matrix(3, 5)[labels] + 0.01 * random_matrix(12, 5, seed=1)
    weight = random_matrix(8, 5, seed=2).requires_grad_()
    z = inputs @ weight.T
    loss, decay = z.relu().square().mean(), 0.5
    (sensitivities,) = torch.autograd.grad(loss, z, retain_graph=True)
    (gradient,) = torch.autograd.grad(loss + decay / 2 * weight.square().sum(), weight)
    bound = measure.cluster_rank_bound(inputs, sensitivities, labels, decay, float(gradient.norm()))
    assert bound.rank == 3
    assert measure.distance_to_rank(weight.detach(), 3) <= bound.distance
    # one point a cluster, and the gradient taken out of the weight: nothing is left beyond the rank
    exact = -(sensitivities.T @ inputs) / decay
    collapsed = -(sensitivities.T @ (torch.eye(3).double()[labels].T @ inputs / 4)[labels]) / decay
    assert measure.distance_to_rank(collapsed, 3) < 1e-12
    tight = measure.cluster_rank_bound(inputs, sensitivities, labels, decay)
    assert measure.distance_to_rank(exact, 3) <= tight.distance


def test_the_imbalance_rate_is_a_lower_bound_and_sometimes_attained():
    generator = torch.Generator().manual_seed(0)
    slack = []
    for _ in range(300):
        n, m, more = torch.randint(1, 5, (3,), generator=generator).tolist()
        hidden = max(n, m) + more - 1
        scales = 10 ** (2 * torch.rand(2, generator=generator) - 1)
        first, second = (
            scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
            for scale, shape in zip(scales, [(n, hidden), (hidden, m)], strict=True)
        )
        least = torch.linalg.eigvalsh(first @ first.T)[0] + torch.linalg.eigvalsh(second.T @ second)[0]
        slack.append(float(least - measure.imbalance_rate(first, second)) / float(least + 1e-9))
    assert min(slack) > -1e-9
    assert sum(each < 1e-6 for each in slack) > 10


def test_bad_input_says_what_to_do():
    with pytest.raises(InputError, match="positive weight decay; found 0"):
        measure.cluster_rank_bound(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), 0.0)
    with pytest.raises(InputError, match="steps of zero or more"):
        measure.batch_rank_bound(1.0, 0.1, 0.1, 2, -1)
    with pytest.raises(InputError, match=r"h at least n and m; found shapes \(3, 2\) and \(2, 1\)"):
        measure.imbalance_rate(torch.ones(3, 2), torch.ones(2, 1))
