"""The largest set of generators within all restrictions satisfies every one of them."""

import numpy as np
import pytest

from equipoise.graph.constraints import GeneratorConstraints


@pytest.mark.parametrize("units", [1, 8])
def test_an_equation_that_settles_another_is_settled_first(units):
    """`a + b = c` and `c + d = e` with `e = 0`: in whichever order, the second makes `c = -d` within the first."""
    symmetry = GeneratorConstraints()
    coordinates = np.stack([symmetry.fresh(5) for _ in range(units)])
    weights = np.repeat([[1.0], [1.0], [-1.0]], units, axis=1)
    symmetry.balance(coordinates.T[:3], weights)
    symmetry.balance(coordinates.T[2:], weights)
    symmetry.still(coordinates[:, 4])
    solution = symmetry.solution()
    assert len(solution.width) == 2 * units
    for block in range(2 * units):
        inside = solution.block == block
        rates = dict(zip(solution.member[inside].tolist(), solution.rate[inside].tolist(), strict=True))
        rate = np.array([rates.get(root, 0.0) for root in solution.root.tolist()]) * solution.ratio
        a, b, c, d, _ = rate[coordinates].T
        assert np.array_equal(a + b, c)
        assert np.array_equal(c, -d)
