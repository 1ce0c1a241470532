"""Products and eigenvalues by the addresses that scipy publishes, against torch."""

import threading
import time

import numpy as np
import pytest
import torch

from equipoise.checkpoint.spectra.blas import add_gram, eigenvalues_in_place, put_products


def numbers(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def laid_out(matrix, turned):
    return matrix.T.contiguous().T if turned else matrix


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("count", "side"), [(7, 5), (5, 7), (1, 4), (4, 1)])
def test_gram_matrices_add_up(count, side, turned):
    lines, gram = laid_out(numbers(count, side), turned), numbers(side, side)
    expected = (gram + lines.T @ lines).tril()
    above = gram.triu(1).clone()
    add_gram(lines, gram)
    torch.testing.assert_close(gram.tril(), expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(gram.triu(1), above)


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (1, 5), (6, 1)])
def test_products_go_into_their_place_and_nowhere_else(rows, columns, turned):
    left, right = laid_out(numbers(rows, 9), turned[0]), laid_out(numbers(columns, 9), turned[1])
    whole = torch.full((8, 8), 7.0, dtype=torch.float64)
    expected = whole.clone()
    expected[2 : 2 + rows, 1 : 1 + columns] = left @ right.T
    put_products(left, right, whole[2 : 2 + rows, 1 : 1 + columns])
    torch.testing.assert_close(whole, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("side", [1, 2, 33, 200])
def test_eigenvalues_are_those_of_the_lower_triangle(side):
    matrix = numbers(side, side)
    expected = np.linalg.eigvalsh(matrix.numpy())
    np.testing.assert_allclose(eigenvalues_in_place(matrix.clone()), expected, rtol=0, atol=1e-12 * side)


def test_other_threads_go_on():
    """A thread that counts while a large decomposition runs: with the interpreter held it would count nothing."""
    matrix, during, going = numbers(700, 700), [], threading.Event()

    def count():
        while not going.is_set():
            during.append(time.perf_counter())
            time.sleep(1e-4)

    counter = threading.Thread(target=count)
    counter.start()
    begun = time.perf_counter()
    eigenvalues_in_place(matrix)
    ended = time.perf_counter()
    going.set()
    counter.join()
    assert sum(begun < moment < ended for moment in during) > 5
