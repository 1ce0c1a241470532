"""A folder that can take no more: the training goes on, one line says so, and no record is lost."""

import shutil
import warnings
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.sinks import disk

resource = pytest.importorskip("resource")


@contextmanager
def full(size):
    """The kernel lets no file grow past `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def train(steps, spoil=None, at=None, **arguments):
    """Weights at the end, the log, and what was warned of; `spoil` is entered at a step, and left after the block."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    spoiling = spoil() if spoil else None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with eq.watch(model, optimizer, every=1, quiet=True, **arguments) as log:
            for step in range(steps):
                if step == at:
                    spoiling.__enter__()
                optimizer.zero_grad()
                model(torch.ones(3, 4)).square().mean().backward()
                optimizer.step()
        if spoiling is not None:
            spoiling.__exit__(None, None, None)
    return [p.detach().clone() for p in model.parameters()], log, [str(each.message) for each in warned]


@cache
def undisturbed():
    """Eight steps without a folder."""
    return train(8)


def figures(log):
    table = log.table()
    return table[table.observer != "watch"].reset_index(drop=True)


@pytest.mark.parametrize(("seconds", "when"), [(-1.0, "while it runs"), (1e9, "at its end")])
@pytest.mark.parametrize("kind", ["full", "removed", "records removed", "a file in its place"])
def test_a_training_goes_on_without_its_folder(tmp_path, monkeypatch, seconds, when, kind):
    folder = tmp_path / "run"

    @contextmanager
    def spoil():
        if kind == "full":
            with full(8_000):
                yield
            return
        if kind == "records removed":
            (folder / "records.sqlite").unlink()
        else:
            shutil.rmtree(folder)
        if kind == "a file in its place":
            folder.write_text("in the way")
        yield

    monkeypatch.setattr(disk, "_COMMIT_SECONDS", seconds)
    alone, memory, _ = undisturbed()
    weights, log, warned = train(8, spoil, 2, out=folder)
    assert all(map(torch.equal, alone, weights))
    assert len(warned) == 1
    assert warned[0].startswith("Disk is off: StoreError: expected ")
    assert "\n" not in warned[0]
    assert list(log.off) == ["Disk"]
    assert figures(log).equals(figures(memory))
    if kind == "a file in its place":
        assert folder.read_text() == "in the way"


def test_a_folder_that_was_full_goes_on_where_it_is_intact(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_COMMIT_SECONDS", -1.0)
    _, log, _ = train(40, lambda: full(60_000), 0, out=tmp_path)
    assert list(log.off) == ["Disk"]
    assert not (tmp_path / "records.parquet").exists()
    with eq.store.Store.open(tmp_path) as store:
        kept = store.table()
    assert 0 < len(kept) < len(log.table())
    _, again, warned = train(2, out=tmp_path)
    assert warned == []
    assert again.table().step.max() == kept.step.max() + 2


def test_a_relative_folder_is_kept_when_the_training_goes_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    @contextmanager
    def elsewhere():
        monkeypatch.chdir("/")
        yield

    _, log, warned = train(4, elsewhere, 2, out="run")
    assert (log.off, warned) == ({}, [])
    assert len(eq.load(tmp_path / "run").table()) == len(log.table())
