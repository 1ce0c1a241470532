import torch

from equipoise.integrate.implicit.anderson import Anderson, SparseChange


def test_a_linear_map_is_solved_in_as_many_steps_as_it_has_dimensions():
    generator = torch.Generator().manual_seed(0)
    matrix = 2 * torch.randn(5, 5, generator=generator, dtype=torch.float64)  # plain iteration diverges
    shift = torch.randn(5, generator=generator, dtype=torch.float64)
    exact = torch.linalg.solve(torch.eye(5).double() - matrix, shift)
    history, x, follower = Anderson(), torch.zeros(5).double(), torch.zeros(3).double()
    for _ in range(7):
        history, (x, follower) = history.next_iterate(x, (matrix @ x + shift, x[:3]))
    assert torch.allclose(x, exact, atol=1e-9)
    assert torch.allclose(follower, exact[:3], atol=1e-9)


def test_only_what_changed_is_kept():
    before = torch.zeros(4, 5)
    after = before.clone()
    after[1, 2] = 3.0
    places, values = SparseChange.between(before, after)
    assert (places.tolist(), values.tolist()) == ([7], [3.0])
