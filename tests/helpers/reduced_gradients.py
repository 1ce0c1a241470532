"""Two processes that share a batch and reduce their gradients over gloo: rightly, and wrongly in several ways."""

import json
from pathlib import Path

import torch
from torch import distributed, nn

from equipoise.laws import invariances

ONE = "2.weight"
WAYS = ("right", "one parameter left out", "one parameter averaged, the others summed", "maximum in place of the sum")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def reduce(model: nn.Module, way: str) -> None:
    """All-reduce every gradient, in one of the `WAYS`."""
    for name, parameter in model.named_parameters():
        if name == ONE and way == "one parameter left out":
            continue
        operation = distributed.ReduceOp.MAX if way.startswith("maximum") else distributed.ReduceOp.SUM
        distributed.all_reduce(parameter.grad, op=operation)
        if name == ONE and way.startswith("one parameter averaged"):
            parameter.grad /= distributed.get_world_size()


def worker(rank: int, world: int, folder: str) -> None:
    """Half of a batch each; the first process audits what came of each way, and writes it down."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model, found = network(), {}
    laws = invariances(model, x) if rank == 0 else None
    for way in WAYS:
        model.zero_grad()
        model(x[rank::world]).exp().sum().backward()
        reduce(model, way)
        if laws is not None:
            audit = laws.audit(model)
            found[way] = {"passed": audit.passed, "suspects": audit.suspects}
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    distributed.destroy_process_group()
