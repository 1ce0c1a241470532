import math

import pytest
import torch

from equipoise.errors import InputError
from equipoise.measure.alignment import alignment


def unit(size, seed):
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vector / vector.norm()


def turned_pair(angle, size=24):
    """Two rank-one layers whose singular vectors differ by `angle`."""
    u, other = torch.linalg.qr(torch.stack([unit(size, 0), unit(size, 1)], dim=1)).Q.T
    v = math.cos(angle) * u + math.sin(angle) * other
    return torch.outer(u, unit(9, 2)), torch.outer(unit(7, 3), v)


@pytest.mark.parametrize("angle", [0.0, 1e-13, 1e-9, 1e-4, 0.3, 1.0, math.pi / 2])
def test_the_planted_angle_is_found_at_every_scale(angle):
    found = alignment(*turned_pair(angle))
    assert found.sine == pytest.approx(math.sin(angle), rel=1e-9, abs=3e-15)
    assert found.cosine == pytest.approx(math.cos(angle), rel=1e-12, abs=3e-15)
    assert found.angles.tolist() == pytest.approx([angle], rel=1e-9, abs=3e-15)


def test_the_sign_of_singular_vectors_does_not_matter():
    lower, upper = turned_pair(0.2)
    assert alignment(-lower, upper).cosine == pytest.approx(math.cos(0.2))
    assert alignment(lower, -upper).sine == pytest.approx(math.sin(0.2))


def test_with_a_bias_the_augmented_matrix_counts():
    lower, bias = torch.diag(torch.tensor([2.0, 1.0])), torch.tensor([0.0, 3.0])
    upper = torch.tensor([[0.0, 1.0]])
    assert alignment(lower, upper).cosine == 0
    assert alignment(lower, upper, bias=bias).cosine == pytest.approx(1)


def test_kernels_are_unfolded_towards_the_shared_channels():
    u = unit(4, 0)
    lower = torch.einsum("o,ihw->oihw", u, torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(1)).double())
    upper = torch.einsum("ohw,c->ochw", torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(2)).double(), u)
    assert alignment(lower, upper).sine < 2e-15


def test_angles_between_the_leading_spaces():
    e = torch.eye(5, dtype=torch.float64)
    lower = torch.diag(torch.tensor([5.0, 4.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    upper = torch.stack([3 * (math.cos(0.4) * e[1] + math.sin(0.4) * e[2]), 2 * e[0]])
    assert alignment(lower, upper, r=2).angles.tolist() == pytest.approx([0.0, 0.4], abs=1e-14)


def test_directions_at_rounding_level_do_not_count():
    lower, upper = turned_pair(0.1)
    assert alignment(lower, upper, r=3).angles.shape == (1,)


@pytest.mark.parametrize("zero", ["lower", "upper"])
def test_a_zero_layer_has_no_direction(zero):
    lower, upper = turned_pair(0.1)
    found = alignment(lower * (zero != "lower"), upper * (zero != "upper"))
    assert (found.cosine, found.sine, found.angles.numel()) == (0, 1, 0)


def test_float32_stays_float32():
    lower, upper = (matrix.float() for matrix in turned_pair(1e-3))
    found = alignment(lower, upper)
    assert found.sine == pytest.approx(1e-3, rel=1e-2)
    assert found.angles.dtype == torch.float32


def test_bad_input_says_what_to_do():
    with pytest.raises(InputError, match=r"reads the 4 outputs of the lower one; found shapes \(4, 3\) and \(2, 3\)"):
        alignment(torch.ones(4, 3), torch.ones(2, 3))
    with pytest.raises(InputError, match=r"a bias of the lower layer, of shape \(4,\); found shape \(3,\)"):
        alignment(torch.ones(4, 3), torch.ones(2, 4), bias=torch.ones(3))
    with pytest.raises(InputError, match="finite numbers"):
        alignment(torch.full((2, 2), float("nan")), torch.eye(2))
