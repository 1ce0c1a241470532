"""Parts of a model by name and by type of module: only these are watched and judged, and the log says so."""

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import InputError


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 2))


def train(model, *optimizers, **arguments):
    optimizers = optimizers or (torch.optim.SGD(model.parameters(), lr=0.1),)
    with eq.watch(model, list(optimizers), every=1, quiet=True, **arguments) as log:
        for _ in range(2):
            for optimizer in optimizers:
                optimizer.zero_grad()
            model(torch.ones(3, 4)).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
    return log


def places(log, observer):
    table = log.table()
    return set(table[table.observer == observer].place)


def test_only_what_a_pattern_names_is_watched():
    log = train(network(), names="3.*")
    assert places(log, "spectrum") == {"3.weight"}
    assert places(log, "residual") == {"2.weight → 3.weight"}
    assert places(log, "alignment") == set()
    assert log.notes == ["step 0: watching 2 of 6 parameters (names=['3.*'])"]


def test_names_and_types_must_agree():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    log = train(model, names=["*.weight"], types=nn.LayerNorm)
    assert places(log, "spectrum") == set()
    assert log.notes == ["step 0: watching 1 of 6 parameters (names=['*.weight'], types=['LayerNorm'])"]
    log = train(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)), types=[nn.Linear])
    assert places(log, "spectrum") == {"0.weight", "2.weight"}


def test_a_law_is_read_with_the_first_optimizer_that_holds_a_watched_part_of_it():
    model = network()
    first, second = torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.SGD(model[2:].parameters(), lr=0.1)
    log = train(model, first, second, names="2.*")
    assert places(log, "spectrum") == {"2.weight"}
    assert places(log, "residual") == {"0.weight → 2.weight", "2.weight → 3.weight"}


def test_a_pattern_that_names_nothing_is_refused():
    with pytest.raises(InputError, match=r"none with names=\['layer\.\*'\]; its parameters are 0\.weight, 0\.bias"):
        train(network(), names="layer.*")
