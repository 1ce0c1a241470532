"""Rare things that training loops do: threads, context variables, swapped tensors, odd modules, closed outputs."""

import asyncio
import concurrent.futures
import contextlib
import copy
import gc
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import equipoise as eq
from loops.base import RECIPES, Loop, batch, loss_of, plain, recipe
from loops.models import batch_normalised, perceptron


def _instead(loop: Loop, around: Callable[[Callable[[int], Any], int], Any]) -> Loop:
    """The loop with `around(step, number)` in place of each step."""
    inner = loop.step
    loop.step = lambda number: around(inner, number)
    return loop


def _within(loop: Loop, manager: Callable[[], contextlib.AbstractContextManager[Any]]) -> Loop:
    def around(step: Callable[[int], Any], number: int) -> None:
        with manager():
            step(number)

    return _instead(loop, around)


def _after(change: Callable[[nn.Module, Any, int], Any], make: Callable[[], nn.Module] = perceptron) -> Loop:
    return plain(make(), after=change)


# ---- where the loop runs ----


@recipe
def in_another_thread() -> Loop:
    def around(step: Callable[[int], Any], number: int) -> None:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(step, number).result()

    return _instead(plain(perceptron()), around)


@recipe
def in_a_coroutine() -> Loop:
    async def one(step: Callable[[int], Any], number: int) -> None:
        await asyncio.sleep(0)
        step(number)

    return _instead(plain(perceptron()), lambda step, number: asyncio.run(one(step, number)))


@recipe
def two_models_in_two_threads() -> Loop:
    """The other one trains at the same time, with a watch of its own."""
    loop, other = plain(perceptron()), plain(perceptron())

    def around(step: Callable[[int], Any], number: int) -> None:
        def second() -> None:
            with eq.watch(other.model, other.optimizers, every=1, quiet=True):
                other.step(number)

        thread = threading.Thread(target=second)
        thread.start()
        step(number)
        thread.join()

    return _instead(loop, around)


@recipe
def watched_again_inside() -> Loop:
    loop = plain(perceptron())

    def around(step: Callable[[int], Any], number: int) -> None:
        with eq.watch(loop.model, loop.optimizers, every=1, quiet=True):
            step(number)

    return _instead(loop, around)


@recipe
def forked_in_between() -> Loop:
    def after(model: nn.Module, optimizer: Any, number: int) -> None:
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)

    return _after(after)


@recipe
def workers_that_load() -> Loop:
    loop = plain(perceptron())
    data = DataLoader(TensorDataset(*batch(3)), batch_size=8, num_workers=1)
    return _instead(loop, lambda step, number: (list(data) if number == 1 else None, step(number)))


@recipe
def loss_in_a_generator() -> Loop:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def losses() -> Iterator[Tensor]:
        for number in range(100):
            optimizer.zero_grad()
            loss = loss_of(model, number)
            loss.backward()
            optimizer.step()
            yield loss

    running = losses()
    return Loop(model, optimizer, lambda number: next(running))


# ---- clocks and outputs ----


@recipe
def clock_going_backwards() -> Loop:
    ticks = iter(range(10**6, 0, -1))

    @contextlib.contextmanager
    def backwards() -> Iterator[None]:
        with mock.patch.multiple(time, time=lambda: float(next(ticks)), perf_counter=lambda: float(next(ticks))):
            yield

    return _within(plain(perceptron(), budget=0.02), backwards)


def _without_output(loop: Loop, stream: Any) -> Loop:
    loop.settings["quiet"] = False

    def around(step: Callable[[int], Any], number: int) -> None:
        step(number)
        if number == 4:  # the summary is printed after the last step; the campaign itself has redirected the output
            sys.stdout = stream

    return _instead(loop, around)


def _closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


# ---- what torch can be switched to ----


@recipe
def default_device_set() -> Loop:
    return _within(plain(perceptron()), lambda: torch.device("cpu"))


@recipe
def saved_tensors_elsewhere() -> Loop:
    return plain(perceptron(), around=lambda: torch.autograd.graph.save_on_cpu())


@recipe
def saved_tensors_rounded() -> Loop:
    pack = torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t)
    return plain(perceptron(), around=lambda: pack)


@recipe
def one_thread_backward() -> Loop:
    return _within(plain(perceptron()), lambda: torch.autograd.set_multithreading_enabled(False))


@recipe
def forked_generators() -> Loop:
    return _within(plain(perceptron()), torch.random.fork_rng)


class Counting(torch.overrides.TorchFunctionMode):
    calls = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Counting.calls += 1
        return function(*args, **(kwargs or {}))


class Dispatched(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


# ---- gradients and steps ----


@recipe
def gradients_kept_as_zeros() -> Loop:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step(number: int) -> None:
        optimizer.zero_grad(set_to_none=False)
        loss_of(model, number).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def functional_gradients() -> Loop:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        x, y = batch(number)
        held = {name: p.detach() for name, p in model.named_parameters()}
        found = torch.func.grad(lambda p: F.cross_entropy(torch.func.functional_call(model, p, (x,)), y))(held)
        for name, parameter in model.named_parameters():
            parameter.grad = found[name]
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def second_derivatives() -> Loop:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        loss = loss_of(model, number)
        loss.backward(create_graph=True)
        optimizer.step()
        for parameter in model.parameters():  # as the documentation of create_graph asks for
            parameter.grad = None

    return Loop(model, optimizer, step)


@recipe
def graph_kept_for_two_backwards() -> Loop:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        loss = loss_of(model, number)
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def strong_wolfe() -> Loop:
    model = perceptron()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, line_search_fn="strong_wolfe")

    def step(number: int) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, number)
            loss.backward()
            return loss

        optimizer.step(closure)

    return Loop(model, optimizer, step)


@recipe
def steps_between_forward_and_backward() -> Loop:
    """The step of another batch comes between: delayed gradients."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    waiting: list[dict[str, Tensor]] = []

    def step(number: int) -> None:
        optimizer.zero_grad()
        loss_of(model, number).backward()
        waiting.append({name: p.grad.clone() for name, p in model.named_parameters()})
        for name, parameter in model.named_parameters():
            parameter.grad = waiting[max(len(waiting) - 2, 0)][name]
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def schedule_chained() -> Loop:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=2)
    later = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, later], [2])
    return plain(model, optimizer, after=lambda m, o, n: schedule.step())


@recipe
def schedule_on_plateau() -> Loop:
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return plain(model, optimizer, after=lambda m, o, n: schedule.step(1.0))


@recipe
def groups_emptied() -> Loop:
    return plain(perceptron(), after=lambda m, o, n: o.param_groups.clear() if n == 2 else None)


@recipe
def step_replaced() -> Loop:
    """Another function in the place of the optimizer's `step`, as patches of libraries put there."""

    def after(model: nn.Module, optimizer: Any, number: int) -> None:
        if number == 1:
            before = optimizer.step
            optimizer.step = lambda closure=None: before(closure)

    return _after(after)


class Fresh(torch.optim.SGD):
    """Groups made anew whenever they are asked for."""

    @property
    def param_groups(self) -> Any:
        return [dict(group) for group in self.__dict__["_groups"]]

    @param_groups.setter
    def param_groups(self, groups: Any) -> None:
        self.__dict__["_groups"] = groups

    def add_param_group(self, group: Any) -> None:
        defaults = {name: value for name, value in self.defaults.items() if name not in group}
        self.__dict__["_groups"].append({**group, "params": list(group["params"]), **defaults})


# ---- tensors ----


@recipe
def data_swapped() -> Loop:
    return _after(lambda m, o, n: [setattr(p, "data", p.data.clone()) for p in m.parameters()])


@recipe
def tensors_swapped() -> Loop:
    def after(model: nn.Module, optimizer: Any, number: int) -> None:
        for parameter in model.parameters() if number == 2 else ():
            parameter.grad = None
            torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach().clone()))

    return _after(after)


@recipe
def shared_memory() -> Loop:
    return _after(lambda m, o, n: m.share_memory() if n == 1 else None)


@recipe
def weights_tied_on_the_way() -> Loop:
    return _after(lambda m, o, n: setattr(m[2], "bias", m[0].bias) if n == 2 else None)


@recipe
def weights_untied_on_the_way() -> Loop:
    def made() -> nn.Module:
        model = perceptron()
        model[2].bias = model[0].bias
        return model

    def after(model: nn.Module, optimizer: Any, number: int) -> None:
        if number == 2:
            model[2].bias = nn.Parameter(model[0].bias.detach().clone())
            optimizer.add_param_group({"params": [model[2].bias]})

    return _after(after, made)


@recipe
def garbage_collected() -> Loop:
    return _after(lambda m, o, n: gc.collect())


@recipe
def copied_shallowly() -> Loop:
    return _after(lambda m, o, n: copy.copy(m)(batch(n)[0]).sum())


@recipe
def saved_whole() -> Loop:
    def after(model: nn.Module, optimizer: Any, number: int) -> None:
        file = io.BytesIO()
        torch.save(model, file)
        torch.load(io.BytesIO(file.getvalue()), weights_only=False)(batch(1)[0])

    return _after(after)


@recipe
def lazy() -> Loop:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.LazyLinear(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        x, y = batch(number)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


# ---- modules ----


class Empty(nn.Sequential):
    """Which says that it has no length."""

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


class Gains(nn.Module):
    """Parameters without entries, with one, and with many dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.none = perceptron(), nn.Parameter(torch.zeros(0, 3))
        self.one, self.many = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.ones(1, 1, 1, 1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.one * self.many.flatten() + self.none.sum()


def _named() -> nn.Module:
    model = nn.Sequential()
    layers = perceptron()
    names = ["λ", "层", "emoji 😀", "esc \x1b[31m", "new\nline", "‮mirrored", "a" * 500]
    for name, layer in zip(names, layers, strict=False):
        model.add_module(name, layer)
    return model


def _deep(count: int = 100) -> nn.Module:
    model: nn.Module = perceptron()
    for _ in range(count):
        model = nn.Sequential(model)
    return model


def _wide(count: int = 300) -> nn.Module:
    return nn.Sequential(*[nn.Linear(6, 6) for _ in range(count)], nn.Linear(6, 3))


def _forward_replaced(model: nn.Module, optimizer: Any, number: int) -> None:
    if number == 1:
        before = model.forward
        model.forward = lambda x: before(x)


def _hooked(register: Callable[[nn.Module], Any], make: Callable[[], nn.Module] = perceptron) -> Loop:
    model = make()
    register(model)
    return plain(model)


def _keep_hooks(model: nn.Module, optimizer: Any, number: int) -> None:
    """All hooks of the model are removed and put back, as some tools do."""
    for module in model.modules():
        kept = dict(module._forward_pre_hooks)
        module._forward_pre_hooks.clear()
        module._forward_pre_hooks.update(kept)


def _hooks_cleared(model: nn.Module, optimizer: Any, number: int) -> None:
    optimizer._optimizer_step_pre_hooks.clear()


# ---- sinks ----


class ClosedEarly:
    """A writer of TensorBoard that the loop closes before the end."""

    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(tempfile.mkdtemp())
        self.sink = eq.sinks.TensorBoard(writer=self.writer)


def _tensorboard() -> Loop:
    held = ClosedEarly()
    return plain(perceptron(), sinks=[held.sink], after=lambda m, o, n: held.writer.close() if n == 2 else None)


def _wandb() -> Loop:
    import wandb

    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": tempfile.mkdtemp()}
    run = wandb.init(project="faults", reinit=True)
    loop = plain(perceptron(), sinks=[eq.sinks.WandB(run)], after=lambda m, o, n: run.finish() if n == 3 else None)
    return loop


# ---- folders ----


def _folder() -> Path:
    return Path(tempfile.mkdtemp()) / "run"


def _changed(change: Callable[[Path], Any], at: int = 2) -> Loop:
    """A change to the folder of the run while the training runs, where it is watched."""
    place = _folder()
    return plain(perceptron(), after=lambda m, o, n: change(place) if n == at and place.exists() else None, out=place)


def _renamed(place: Path) -> None:
    place.rename(place.with_name("moved"))


def _linked() -> Loop:
    place = _folder()
    place.with_name("real").mkdir()
    place.symlink_to(place.with_name("real"))
    return plain(perceptron(), out=place)


def _elsewhere() -> Loop:
    """A relative folder, and a loop that changes the working directory."""
    place, here = _folder(), os.getcwd()
    os.chdir(place.parent)
    loop = plain(perceptron(), after=lambda m, o, n: os.chdir("/" if n < 4 else here), out="run")
    return loop


def _locked(place: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(place / "records.sqlite", isolation_level=None, timeout=0)
    with contextlib.suppress(sqlite3.Error):
        connection.execute("BEGIN EXCLUSIVE")
    _HELD.append(connection)


_HELD: list[Any] = []


def _filled(place: Path) -> None:
    (place / "records.sqlite").write_bytes(b"no database" * 100)


RECIPES |= {
    "output closed": lambda: _without_output(plain(perceptron()), _closed()),
    "output none": lambda: _without_output(plain(perceptron()), None),
    "a mode of functions": lambda: _within(plain(perceptron()), Counting),
    "a mode of dispatch": lambda: _within(plain(perceptron()), Dispatched),
    "optimizer: groups made anew": lambda: (lambda m: plain(m, Fresh(m.parameters(), lr=0.05)))(perceptron()),
    "module: no length": lambda: plain(Empty(*perceptron())),
    "module: odd parameters": lambda: plain(Gains()),
    "module: odd names": lambda: plain(_named(), quiet=False),
    "module: odd names, a folder": lambda: plain(_named(), out=_folder()),
    "module: a hundred deep": lambda: plain(_deep()),
    "module: three hundred layers": lambda: plain(_wide(), every=3),
    "forward replaced": lambda: _after(_forward_replaced),
    "hooks that change outputs": lambda: _hooked(lambda m: m[0].register_forward_hook(lambda _, __, out: 2 * out)),
    "hooks on backward": lambda: _hooked(lambda m: m[2].register_full_backward_hook(lambda _, given, __: given)),
    "hooks that stop gradients": lambda: _hooked(lambda m: m[0].register_full_backward_hook(lambda _, g, __: g)),
    "hooks put back": lambda: _after(_keep_hooks),
    "hooks of the optimizer cleared": lambda: _after(_hooks_cleared),
    "batch norm in evaluation mode": lambda: _after(lambda m, o, n: m.eval(), batch_normalised),
    "tensorboard, closed early": _tensorboard,
    "wandb, offline, finished early": _wandb,
    "a folder, renamed": lambda: _changed(_renamed),
    "a folder, linked": _linked,
    "a folder, relative": _elsewhere,
    "a folder, read-only": lambda: _changed(lambda place: place.chmod(0o500)),
    "a folder, locked by another": lambda: _changed(_locked),
    "a folder, records overwritten": lambda: _changed(_filled),
    "a folder, manifest overwritten": lambda: _changed(lambda place: (place / "manifest.json").write_text("[" * 9999)),
    "a folder, named oddly": lambda: plain(perceptron(), out=Path(tempfile.mkdtemp()) / "λ \x1b[2J\n😀"),
}
