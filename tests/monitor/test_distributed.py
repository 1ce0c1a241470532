"""Several processes see what one sees, over gloo; those that do not train one model together are refused by name."""

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


def log_of_one_process(build):
    model = build()
    return key(ranks.train(model, ranks.sgd(model), (0, 1), None).table())


@pytest.fixture(scope="module")
def alone():
    """The numbers of one process."""
    return {"network": log_of_one_process(ranks.network), "tokens": log_of_one_process(ranks.tokens)}


# What a training and its first export import, once for all processes.
IMPORTED = ["torch.distributed.fsdp", "torch.export._trace", "torch.fx.experimental.symbolic_shapes", "torch._dynamo"]
IMPORTED += ["torch._functorch.aot_autograd", "torch._inductor.test_operators", "equipoise.monitor", "equipoise.laws"]
IMPORTED += ["pandas", "sqlite3"]


def run(each, target):
    """One process for the arguments of each, to its end."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(IMPORTED)
    processes = [server.Process(target=target, args=its) for its in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        if process.is_alive():  # they wait for each other
            process.kill()
            process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


def told(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("told*"))]


EXACT = ["sigma_1", "frobenius_norm", "stable_rank", "alignment_next", "relative_drift", "effective_rank"]
EXACT += ["relative_drift_estimate", "rank_one_residual"]


def check(folder, alone):
    """The same numbers of the same things, and gradients at rounding."""
    seen = key(Store.open(folder / "run").table())
    assert set(seen.index) == set(alone.index)
    for quantity in {*EXACT, "residual"} & set(alone.index.get_level_values("quantity")):
        mine, theirs = (values.xs(quantity, level="quantity") for values in (seen, alone))
        floor = 1e-14 if quantity == "residual" else 1e-12  # of a law that an eps breaks it is no rounding
        np.testing.assert_allclose(mine, theirs[mine.index], rtol=1e-6, atol=floor, err_msg=quantity)
    assert seen.xs("excess", level="quantity").max() < 1
    return seen


SLOW = pytest.mark.slow
KINDS = [
    ("ddp", "network", 2),
    pytest.param("fsdp", "network", 2, marks=SLOW),  # as with accumulation, below
    ("tp", "network", 2),
    ("2d", "network", 4),
    pytest.param("fsdp", "network", 4, marks=SLOW),
    pytest.param("hsdp", "network", 4, marks=SLOW),
    pytest.param("ddp of tp", "network", 4, marks=SLOW),
    pytest.param("columns", "network", 2, marks=SLOW),
    pytest.param("tp", "tokens", 2, marks=SLOW),
    pytest.param("fsdp", "tokens", 2, marks=SLOW),
]


@pytest.mark.parametrize(("kind", "build", "size"), KINDS)
def test_the_numbers_are_those_of_one_process(kind, build, size, alone, tmp_path):
    """And the training is the same as without watch, bit for bit."""
    run([(kind, build, rank, size, str(tmp_path)) for rank in range(size)], ranks.main)
    seen = check(tmp_path, alone[build])
    if build == "network":
        assert {place for _, _, place, _ in seen.index} >= {"0.weight", "0.weight → 2.weight", "2.weight → 3.weight"}


@pytest.mark.parametrize(
    "name", ["accumulation", pytest.param("frozen", marks=SLOW), pytest.param("checkpointing", marks=SLOW)]
)
def test_ways_to_train_under_fully_shard(name, tmp_path):
    model = ranks.network()
    prepare, _ = ranks.WAYS[name]
    if prepare is not None:
        prepare(model)
    alone = key(ranks.train(model, ranks.sgd(model), (0, 1), None).table())
    run([(name, "fsdp", rank, 2, str(tmp_path)) for rank in range(2)], ranks.way)
    check(tmp_path, alone)
    assert [each["off"] for each in told(tmp_path)] == [{}, {}]


@SLOW
def test_mixed_precision_of_fully_shard_is_judged_by_its_rounding(tmp_path):
    run([("bfloat16", "fsdp", rank, 2, str(tmp_path)) for rank in range(2)], ranks.way)
    seen = key(Store.open(tmp_path / "run").table())
    assert seen.xs("residual", level="quantity").max() > 1e-5  # of bfloat16, not of float32
    assert seen.xs("excess", level="quantity").drop("drift", level="observer", errors="ignore").max() < 1
    assert [each["off"] for each in told(tmp_path)] == [{}, {}]


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=SLOW), pytest.param("tp", marks=SLOW)])
def test_gradients_that_are_changed_after_the_backward_pass_are_noted_and_not_accused(kind, tmp_path):
    run([("clipping", kind, rank, 2, str(tmp_path)) for rank in range(2)], ranks.way)
    for each in told(tmp_path):
        assert (each["off"], each["alarms"]) == ({}, [])
        assert any("gradients were changed between backward and step" in note for note in each["notes"])


@pytest.mark.parametrize("kind", [pytest.param("ddp", marks=SLOW), "fsdp"])
def test_a_wrong_backward_pass_is_found_by_all(kind, tmp_path):
    run([("wrong", kind, rank, 2, str(tmp_path)) for rank in range(2)], ranks.way)
    first, second = told(tmp_path)
    assert first["alarms"] == second["alarms"]
    assert {"2.weight → 3.weight", "3.weight → 4.weight"} <= set(first["alarms"])
    assert "0.weight → 2.weight" not in first["alarms"]


@pytest.mark.parametrize("written", [pytest.param(False, marks=SLOW), True])
def test_heads_of_a_shard_that_are_written_into_the_code_are_no_accusation(written, tmp_path):
    """Tensor parallelism: the code of attention may know only the heads of its own process, and is read with all."""
    run([(written, rank, 2, str(tmp_path)) for rank in range(2)], ranks.heads)
    for each in told(tmp_path):
        assert (each["off"], each["alarms"]) == ({}, [])
        assert any("the sizes of its own shard" in note for note in each["notes"]) == written
    seen = key(Store.open(tmp_path / "run").table())
    laws = {place for _, observer, place, _ in seen.index if observer == "residual"}
    assert "up.weight → head.weight" in laws
    assert seen.xs("residual", level="quantity").max() < 1e-14
    if not written:
        torch.manual_seed(0)
        model = ranks.Heads(None).double()
        check(tmp_path, key(ranks.train(model, ranks.sgd(model), (0, 1), None).table()))


REFUSED = {
    "pipeline": "process 0 has 0.weight (10, 6), 0.bias (10,) and 2 more, and process 1 1.weight (10, 6)",
    "pipeline of twins": "0.weight, …, 2.bias (4)",
    "experts": "2.weight",
    "twin experts": "the gradients of 0.weight, …, 4.bias",
    "fsdp1": "parameters differ from process to process",
    "one process in shards": "not all of the 2 processes that hold shards of the weights watch",
}


@pytest.mark.parametrize(
    "kind", [kind if kind in ("pipeline", "experts") else pytest.param(kind, marks=SLOW) for kind in REFUSED]
)
def test_processes_that_do_not_train_one_model_together_are_refused_by_name(kind, tmp_path):
    """And the training is what it is without watch."""
    run([(kind, rank, 2, str(tmp_path)) for rank in range(2)], ranks.refusing)
    found = told(tmp_path)
    assert len(found) == (1 if kind.startswith("one process") else 2)
    for each in found:
        assert set(each["off"]) == {"spectrum", "alignment", "drift", "residual"}
        (reason,) = set(each["off"].values())
        assert REFUSED[kind] in reason


def test_one_process_of_several_can_watch_alone(tmp_path):
    """Of weights that all have, without a sum over processes that do not take part."""
    run([("one process", rank, 2, str(tmp_path)) for rank in range(2)], ranks.refusing)
    (found,) = told(tmp_path)
    assert found["off"] == {}
    assert found["steps"] == [1, 2, 4]


def test_a_process_that_leaves_the_block_by_an_exception_holds_no_other_up(tmp_path):
    run([("one leaves", rank, 2, str(tmp_path)) for rank in range(2)], ranks.refusing)
    first, last = told(tmp_path)
    assert first["off"] == last["off"] == {}
    assert any("a process left the block before its end" in note for note in first["notes"])


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("ddp", ("in the laws", "after the sum")),
        ("fsdp", ("before the sum", "of the laws", "in an observer")),
        pytest.param("ddp", ("before the sum", "of the laws", "in an observer"), marks=SLOW),
        pytest.param("fsdp", ("in the laws", "after the sum"), marks=SLOW),
        pytest.param("tp", ("before the sum", "after the sum", "in the laws", "of the laws"), marks=SLOW),
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
