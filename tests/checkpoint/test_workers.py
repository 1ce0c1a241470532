"""Several matrices at a time give the rows of one at a time, within bounds, and leave the threads as they were."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from threadpoolctl import threadpool_info

import equipoise as eq
from equipoise.checkpoint.workers import MemoryBudget


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def state():
    generator = torch.Generator().manual_seed(0)
    shapes = [(90, 70), (70, 200), (3,), (50, 50), (4, 5, 3, 3), (1, 60), (1040, 1030)]
    return {f"{place}.weight": torch.randn(shape, generator=generator) for place, shape in enumerate(shapes)}


def counts():
    return torch.get_num_threads(), [its["num_threads"] for its in threadpool_info()]


def test_threads_change_no_row(threads, tmp_path):
    save_file(state(), tmp_path / "m.safetensors")
    tables = []
    for count in (1, 3):
        threads(count)
        tables.append(eq.analyze(tmp_path / "m.safetensors", heavy_tail=False))
    first, second = (table.drop(columns="spectrum") for table in tables)
    pd.testing.assert_frame_equal(first, second, rtol=1e-12)
    assert list(first["name"]) == list(state())


def test_the_number_of_threads_is_as_before(threads):
    threads(3)
    before, seen = counts(), []
    eq.analyze(state(), callback=lambda *_: seen.append(torch.get_num_threads()))
    assert counts() == before
    assert (seen[0], seen[-1]) == (1, 3)  # the largest comes last, on all cores

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eq.analyze(state(), callback=stop)
    assert counts() == before
    assert not [its for its in threading.enumerate() if its.name.startswith("equipoise")]


def test_room_is_never_overdrawn_and_lets_in_what_is_too_large():
    room, taken, most = MemoryBudget(10.0), [0], [0]
    lock = threading.Lock()

    def job(size):
        with room.taking(size):
            with lock:
                taken[0] += size
                most[0] = max(most[0], taken[0] if size <= 10 else 0)
                assert size <= 10 or taken[0] == size
            time.sleep(0.001)
            with lock:
                taken[0] -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(job, [3, 4, 25, 5, 1, 9, 2, 7, 11, 6] * 5))
    assert 7 <= most[0] <= 10
