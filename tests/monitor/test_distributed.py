"""Several processes see what one sees: DistributedDataParallel and FSDP2 over gloo."""

import json
import multiprocessing

import numpy as np
import pytest
import torch

from equipoise.store import Store
from helpers import ranks


def key(table):
    ours = table[table.observer != "watch"]
    return ours.set_index(["step", "observer", "place", "quantity"]).value


@pytest.fixture(scope="module")
def alone():
    """The numbers of one process."""
    model = ranks.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-2)
    return key(ranks.train(model, optimizer, slice(None), None, lead=False).table())


def run(each, target):
    """One process for the arguments of each, to its end."""
    server = multiprocessing.get_context("forkserver")  # what they import is imported once for all of them
    server.set_forkserver_preload(["torch.distributed.fsdp", "torch.export", "equipoise.monitor", "pandas", "sqlite3"])
    processes = [server.Process(target=target, args=its) for its in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        if process.is_alive():  # they wait for each other
            process.kill()
            process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


@pytest.mark.parametrize(("kind", "size"), [("ddp", 2), ("fsdp", 2), pytest.param("fsdp", 4, marks=pytest.mark.slow)])
def test_the_numbers_are_those_of_one_process(kind, size, alone, tmp_path):
    run([(kind, rank, size, str(tmp_path)) for rank in range(size)], ranks.main)
    seen = key(Store.open(tmp_path / "run").table())
    assert set(seen.index) == set(alone.index)
    assert {place for _, _, place, _ in seen.index} >= {"0.weight", "0.weight → 2.weight", "2.weight → 3.weight"}
    exact = ["sigma_1", "frobenius_norm", "stable_rank", "alignment_next", "relative_drift", "effective_rank"]
    exact += ["relative_drift_estimate", "rank_one_residual"]
    for quantity in exact:
        mine, theirs = (values.xs(quantity, level="quantity") for values in (seen, alone))
        np.testing.assert_allclose(mine, theirs[mine.index], rtol=1e-6, atol=1e-12, err_msg=quantity)
    assert seen.xs("residual", level="quantity").max() < 1e-14
    assert seen.xs("excess", level="quantity").max() < 1


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("ddp", ("in the laws", "after the sum")),
        ("fsdp", ("before the sum", "of the laws")),
        pytest.param("ddp", ("before the sum", "of the laws"), marks=pytest.mark.slow),
        pytest.param("fsdp", ("in the laws", "after the sum"), marks=pytest.mark.slow),
    ],
)
def test_a_look_that_fails_on_one_process_ends_the_looks_on_all(kind, places, tmp_path):
    """And none of them waits for another: the training goes on to its end. The places are of two trainings."""
    run([(kind, places, rank, 2, str(tmp_path)) for rank in range(2)], ranks.failing)
    trainings = (json.loads((tmp_path / f"off{rank}").read_text()) for rank in range(2))
    for first, last in zip(*trainings, strict=True):
        assert set(first) == set(last) == {"spectrum", "alignment", "drift", "residual"}
        assert set(last.values()) == {"PeerFailure: MemoryError: no room for it"}
        assert set(first.values()) == {"PeerFailure: observation failed on another rank; see its log"}


def test_processes_of_unequal_speed_look_at_the_same_steps(tmp_path):
    run([(rank, 2, str(tmp_path)) for rank in range(2)], ranks.unequal)
    first, second = (json.loads((tmp_path / f"steps{rank}").read_text()) for rank in range(2))
    assert first == second
    assert 3 <= len(first) < 40  # the budget has stretched the cadence
