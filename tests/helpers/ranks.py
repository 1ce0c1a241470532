"""One process of a data-parallel training under watch."""

import itertools
import json
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import equipoise as eq
from equipoise.laws.evaluate.moments import UnitLaws
from equipoise.linalg import krylov

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(24) % 3


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 24), nn.Linear(24, 20), nn.Linear(20, 3)]
    return nn.Sequential(*layers).double()


def wrapped(model, kind, size):
    """For several processes."""
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (size,))
    for layer in (model[0], model[2], model[3], model):
        fully_shard(layer, mesh=mesh)
    return model


def train(model, optimizer, part, folder, lead):
    out = folder if lead else None
    with eq.watch(model, optimizer, every=3, out=out, full=True, quiet=True) as log:
        for _ in range(9):
            optimizer.zero_grad()
            F.cross_entropy(model(X[part]), Y[part]).backward()
            optimizer.step()
    return log


class Looks:
    """An observer that remembers when it looked, on whatever process it is."""

    name = "looks"

    def __init__(self):
        self.steps = []

    def init(self, scene):
        return {}

    def observe(self, scene, memory, snapshot):
        self.steps.append(snapshot.step)
        return memory, []


def unequal(rank, size, folder):
    """Steps of unequal speed within a budget: what this process looked at goes into a file of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    model = nn.parallel.DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    looks = Looks()
    with eq.watch(model, optimizer, every=1, budget=0.5, observe=[looks, eq.Spectrum()], quiet=True) as log:
        for step in range(1, 41):
            optimizer.zero_grad()
            time.sleep(0.004 * rank)  # the others are slower, each by its own measure
            F.cross_entropy(model(X[rank::size]), Y[rank::size]).backward()
            optimizer.step()
            cost = log.meter.training / step / (1 + rank)  # and snapshots seem dearer to the first: a step's time each
            log.meter.spent += cost
            log.meter.clock -= cost
    Path(folder, f"steps{rank}").write_text(json.dumps(looks.steps))
    dist.barrier()
    dist.destroy_process_group()


def failing_at(call, work):
    """Part of a look, which fails when it is called for that time."""
    calls = itertools.count(1)

    def fails(*args):
        if next(calls) == call:
            raise MemoryError("no room for it")
        return work(*args)

    return fails


PLACES = {
    "before the sum": (krylov, "_multiply", 60),
    "after the sum": (krylov, "leading_of", 11),
    "in the laws": (UnitLaws, "sums", 6),
    "of the laws": (UnitLaws, "figures", 4),
}


def failing(kind, places, rank, size, folder):
    """Trainings in which a look fails on the last process, before or after what all sum up together."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    part = slice(rank * len(X) // size, (rank + 1) * len(X) // size)
    off = []
    for place in places:
        model = wrapped(network(), kind, size)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        owner, name, call = PLACES[place]
        work = getattr(owner, name)
        if rank == size - 1:
            setattr(owner, name, failing_at(call, work))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", eq.TrainingAlarm)
            log = train(model, optimizer, part, f"{folder}/{place}", rank == 0)
        setattr(owner, name, work)
        off.append(log.off)
    Path(folder, f"off{rank}").write_text(json.dumps(off))
    dist.barrier()
    dist.destroy_process_group()


def main(kind, rank, size, folder):
    warnings.simplefilter("error", eq.TrainingAlarm)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    model = wrapped(network(), kind, size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-2)
    share = len(X) // size
    log = train(model, optimizer, slice(rank * share, (rank + 1) * share), f"{folder}/run", rank == 0)
    assert log.off == {}, log.off
    dist.barrier()
    dist.destroy_process_group()
