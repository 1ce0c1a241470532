"""One process of a training that several share, under watch: data, sharded, hybrid and tensor parallelism."""

import contextlib
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


class TokenBlock(nn.Module):
    """A residual block that reads through a LayerNorm."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x):
        return x + self.down(F.relu(self.up(self.norm(x))))


class Tokens(nn.Module):
    """A convolution that makes tokens, a block, and two weights that are one."""

    def __init__(self):
        super().__init__()
        self.mix, self.block = nn.Conv1d(4, 6, 3, padding=1), TokenBlock()
        self.first, self.second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.second.weight, self.head = self.first.weight, nn.Linear(6, 3)

    def forward(self, x):
        x = self.mix(x.unflatten(1, (2, 3)).repeat(1, 2, 2)).mT.contiguous()
        return self.head(self.second(F.relu(self.first(self.block(x)))).mean(1))


def tokens():
    torch.manual_seed(0)
    return Tokens().double()


def wrapped(model, kind, size):
    """For several processes, and which of how many parts of the batch this one has."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    rank, layers = dist.get_rank(), [layer for layer in model.children() if len(list(layer.parameters()))]
    if isinstance(model, Tokens):
        layers = [model.mix, model.block, [model.first, model.second], model.head]  # tied: in one group
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model), (rank, size)
    if kind == "fsdp" or kind == "columns":
        mesh = init_device_mesh("cpu", (size,))
    elif kind == "hsdp":
        mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicate", "shard"))
    elif kind == "tp":
        parallelize(model, init_device_mesh("cpu", (size,), mesh_dim_names=("tp",)))
        return model, (0, 1)
    else:
        whole = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("dp", "tp"))
        parallelize(model, whole["tp"])
        mesh, part = whole["dp"], (rank // (size // 2), 2)
        if kind == "ddp of tp":
            return by_hand(model, mesh), part
        for layer in (*layers, model):
            fully_shard(layer, mesh=mesh)
        return model, part
    from torch.distributed.tensor import Shard

    options = {"shard_placement_fn": lambda weight: Shard(min(1, weight.ndim - 1))} if kind == "columns" else {}
    for layer in (*layers[:1], *layers[2:], model) if kind == "columns" else (*layers, model):
        fully_shard(layer, mesh=mesh, **options)
    return model, (rank, size)


def parallelize(model, mesh):
    """Tensor parallelism; a LayerNorm along the sequence."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    if isinstance(model, nn.Sequential):
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel(), "3": ColwiseParallel(), "4": RowwiseParallel()}
    else:
        plan = {
            "block": PrepareModuleInput(
                input_layouts=Replicate(), desired_input_layouts=Shard(1), use_local_output=True
            ),
            "block.norm": SequenceParallel(),
            "block.up": ColwiseParallel(input_layouts=Shard(1)),
            "block.down": RowwiseParallel(output_layouts=Shard(1)),
            "first": PrepareModuleInput(
                input_layouts=Shard(1), desired_input_layouts=Replicate(), use_local_output=True
            ),
        }
    parallelize_module(model, mesh, plan)


def by_hand(model, mesh):
    """Data parallelism over tensor parallelism: gradients are averaged as soon as they are there."""
    for parameter in model.parameters():

        def average(parameter):
            gradient = parameter.grad
            local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
            dist.all_reduce(local, group=mesh.get_group())
            local /= mesh.size()

        parameter.register_post_accumulate_grad_hook(average)
    return model


def part_of(tensor, part):
    number, count = part
    share = len(tensor) // count
    return tensor[number * share : (number + 1) * share]


def train(model, optimizer, part, folder, watched=True):
    """The log of nine steps, or None if they were not watched."""
    context = eq.watch(model, optimizer, every=3, out=folder, full=True, quiet=True)
    with context if watched else contextlib.nullcontext() as log:
        for _ in range(9):
            optimizer.zero_grad()
            F.cross_entropy(model(part_of(X, part)), part_of(Y, part)).backward()
            optimizer.step()
    return log


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-2)


def met(rank, size, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)


KEPT = []  # to the end of the process


def parted():
    """The group outlives a model in `DistributedDataParallel`.

    That model would otherwise end the group while it holds the interpreter's lock, for which the thread of gloo may
    wait: in torch 2.13 neither goes on then.
    """
    dist.barrier()
    KEPT.append(dist.group.WORLD)
    dist.destroy_process_group()


def local(model):
    return [each.to_local() if hasattr(each, "to_local") else each for each in map(torch.detach, model.parameters())]


def main(kind, build, rank, size, folder):
    """A training with watch beside the same without: bit for bit, and no alarm."""
    warnings.simplefilter("error", eq.TrainingAlarm)
    met(rank, size, folder)
    ends = []
    for watched in (False, True):
        model, part = wrapped({"network": network, "tokens": tokens}[build](), kind, size)
        log = train(model, sgd(model), part, f"{folder}/run" if rank == 0 else None, watched)
        ends.append(local(model))
    assert all(map(torch.equal, *ends))
    assert log.off == {}, log.off
    assert not log.alarms
    parted()


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
    met(rank, size, folder)
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
    parted()


def failing_at(call, work):
    """Part of a look, which fails when it is called for that time."""
    calls = itertools.count(1)

    def fails(*args):
        if next(calls) == call:
            raise MemoryError("no room for it")
        return work(*args)

    return fails


PLACES = {
    "before the sum": (krylov, "_push", 60),
    "after the sum": (krylov, "leading_of", 11),
    "in the laws": (UnitLaws, "sums", 6),
    "of the laws": (UnitLaws, "figures", 4),
    "in an observer": (eq.Spectrum, "observe", 2),
}


def failing(kind, places, rank, size, folder):
    """Trainings in which a look fails on the last process, before or after what all sum up together."""
    met(rank, size, folder)
    off = []
    for place in places:
        model, part = wrapped(network(), kind, size)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        owner, name, call = PLACES[place]
        work = getattr(owner, name)
        if rank == size - 1:
            setattr(owner, name, failing_at(call, work))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", eq.TrainingAlarm)
            log = train(model, optimizer, part, f"{folder}/{place}" if rank == 0 else None)
        setattr(owner, name, work)
        off.append(log.off)
    Path(folder, f"off{rank}").write_text(json.dumps(off))
    parted()


# --- trainings that are not watched, or by one process only ---


def experts(rank, size):
    """Plain parameters of each process's own beside shared ones, whose gradients are averaged."""
    model = network()
    torch.manual_seed(1 + rank)
    nn.init.normal_(model[2].weight)
    for layer in (model[0], model[3], model[4]):
        for parameter in layer.parameters():
            parameter.register_post_accumulate_grad_hook(lambda each: dist.all_reduce(each.grad))
    return model


def twin_experts(rank, size):
    """Experts that begin with the same numbers, and see examples of their own."""
    return network()


def fsdp1(rank, size):
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(network(), device_id=torch.device("cpu"))


def steps_of(model, rank, size):
    F.cross_entropy(model(X[rank::size]), Y[rank::size]).backward()


class Pipeline:
    """Two stages of GPipe; the same names and shapes on both processes, or other ones."""

    def __init__(self, rank, size, alike):
        from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

        torch.manual_seed(rank)
        widths = [(6, 6), (6, 6)] if alike else [(6, 10), (10, 6)]
        layers = [nn.Linear(*widths[0]), nn.ReLU(), nn.Linear(*widths[1])]
        self.module = (nn.Sequential(*layers) if alike or rank == 0 else nn.Sequential(nn.ReLU(), *layers)).double()
        stage = PipelineStage(self.module, rank, size, torch.device("cpu"))
        self.schedule = ScheduleGPipe(stage, n_microbatches=2, loss_fn=F.cross_entropy)
        self.rank = rank

    def step(self):
        self.schedule.step(X) if self.rank == 0 else self.schedule.step(target=Y)


def refusing(kind, rank, size, folder):
    """A training with and without watch; what was off, and what was noted."""
    from equipoise.monitor import distributed

    met(rank, size, folder)
    distributed.PATIENCE = 1.0
    warnings.simplefilter("error", eq.TrainingAlarm)
    ends = []
    for watched in (False, True):
        if kind.startswith("pipeline"):
            pipeline = Pipeline(rank, size, kind == "pipeline of twins")
            model, step = pipeline.module, pipeline.step
        else:
            build = {"experts": experts, "twin experts": twin_experts, "fsdp1": fsdp1}
            model = build[kind](rank, size) if kind in build else wrapped(network(), "ddp", size)[0]
            if kind == "one process in shards":
                model = wrapped(network(), "fsdp", size)[0]
            step = lambda model=model: steps_of(model, rank, size)  # noqa: E731
        optimizer = sgd(model)
        watched = watched and (rank == 0 or not kind.startswith("one process"))
        log = looped(model, optimizer, step, watched, leaves=kind == "one leaves" and rank == 1)
        ends.append(local(model))
    assert all(map(torch.equal, *ends))
    if log is not None:
        assert not log.alarms
        told = {"off": log.off, "notes": log.notes, "steps": sorted(set(log.table().step))}
        Path(folder, f"told{rank}").write_text(json.dumps(told))
    parted()


def looped(model, optimizer, step, watched, leaves):
    context = eq.watch(model, optimizer, every=2, quiet=True) if watched else contextlib.nullcontext()
    with contextlib.suppress(InterruptedError), context as log:
        for _ in range(4):
            optimizer.zero_grad()
            step()
            optimizer.step()
        if leaves:
            raise InterruptedError
    return log


# --- ways to train ---


def accumulating(model, optimizer, part):
    """Two backward passes a step, the first of which is not reduced."""
    for number in range(2):
        model.set_requires_gradient_sync(number == 1)
        half = (2 * part[0] + number, 2 * part[1])
        (F.cross_entropy(model(part_of(X, half)), part_of(Y, half)) / 2).backward()


def plainly(model, optimizer, part):
    F.cross_entropy(model(part_of(X, part)), part_of(Y, part)).backward()


def clipping(model, optimizer, part):
    """Gradients that are changed after the backward pass, which breaks every law."""
    plainly(model, optimizer, part)
    torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3)


class Doubled(torch.autograd.Function):
    """The identity, with a wrong backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class WrongLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, Doubled.apply(self.weight), self.bias)


def wrong(model):
    wrong, right = WrongLinear(24, 20).double(), model[3]
    wrong.load_state_dict(right.state_dict())
    model[3] = wrong


def frozen(model):
    model[3].weight.requires_grad_(False)


def checkpointed(model):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model[2] = checkpoint_wrapper(model[2])


WAYS = {  # what is done to the model, and the backward pass
    "accumulation": (None, accumulating),
    "clipping": (None, clipping),
    "wrong": (wrong, plainly),
    "frozen": (frozen, plainly),
    "checkpointing": (checkpointed, plainly),
    "bfloat16": (None, plainly),
}


def way(name, kind, rank, size, folder):
    """One of the ways: numbers into the folder, beside a training without watch."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    met(rank, size, folder)
    warnings.simplefilter("ignore" if name == "wrong" else "error", eq.TrainingAlarm)
    prepare, backward = WAYS[name]
    ends = []
    for watched in (False, True):
        model = network()
        if prepare:
            prepare(model)
        if name == "bfloat16":
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=True)
            model, part = model.float(), (rank, size)
            for layer in (model[0], model[2], model[3], model):
                fully_shard(layer, mp_policy=policy)
        else:
            model, part = wrapped(model, kind, size)
        optimizer = sgd(model)
        out = f"{folder}/run" if rank == 0 and watched else None
        context = eq.watch(model, optimizer, every=3, out=out, full=True, quiet=True)
        with context if watched else contextlib.nullcontext() as log:
            for _ in range(9):
                optimizer.zero_grad()
                backward(model, optimizer, part)
                optimizer.step()
        ends.append(local(model))
    assert all(map(torch.equal, *ends))
    alarms = [alarm.place for alarm in log.alarms]
    Path(folder, f"told{rank}").write_text(json.dumps({"off": log.off, "notes": log.notes, "alarms": alarms}))
    parted()


class Heads(nn.Module):
    """Attention whose code has the number of heads of one process written into it, or leaves it open."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)
        self.up, self.head = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = torch.stack([x, x.roll(1, 1), x.roll(2, 1)], 1)
        shape = (self.heads, -1) if self.heads else (-1, 2)
        q, k, v = (layer(x).unflatten(-1, shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(F.relu(self.up(self.o(mixed))).mean(1))


def heads(written, rank, size, folder):
    """Tensor parallelism of four heads of width two, of which each process has half."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    met(rank, size, folder)
    warnings.simplefilter("error", eq.TrainingAlarm)
    torch.manual_seed(0)
    model = Heads(4 // size if written else None).double()
    plan = {name: ColwiseParallel() for name in "qkv"} | {"o": RowwiseParallel()}
    parallelize_module(model, init_device_mesh("cpu", (size,)), plan)
    log = train(model, sgd(model), (0, 1), f"{folder}/run" if rank == 0 else None)
    alarms = [alarm.place for alarm in log.alarms]
    Path(folder, f"told{rank}").write_text(json.dumps({"off": log.off, "notes": log.notes, "alarms": alarms}))
    parted()
