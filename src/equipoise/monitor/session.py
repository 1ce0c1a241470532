"""`eq.watch`: looks around the steps of an optimizer, while a training loop runs unchanged."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from os import PathLike
from typing import Any

from torch import nn
from torch.optim import Optimizer

from equipoise.errors import InputError, one_line
from equipoise.graph.capture import Inputs
from equipoise.monitor.alarms import Alarm, Rule, default_rules
from equipoise.monitor.crew import Crew
from equipoise.monitor.forward import Example, ForwardRecord
from equipoise.monitor.lane import Lane
from equipoise.monitor.log import Log
from equipoise.monitor.meter import Cadence
from equipoise.monitor.optimizers import held, hooked
from equipoise.monitor.scenery import Scenery, untouched_generators
from equipoise.monitor.unwrap import own_parameters
from equipoise.observers import Alignment, Drift, Observer, Residual, Spectrum
from equipoise.sinks import Call, Disk, Keeper, Memory, Sink
from equipoise.sinks.background import Background


def default_observers() -> tuple[Observer, ...]:
    """Spectra, alignment, drift of the laws, and the residual of every gradient."""
    return (Spectrum(), Alignment(), Drift(), Residual())


@contextmanager
def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    every: int = 50,
    *,
    full: bool = False,
    observe: Sequence[Observer] | None = None,
    sinks: Sequence[Sink | Callable[[list[Any]], Any]] = (),
    out: str | PathLike[str] | None = None,
    example_inputs: Inputs | None = None,
    budget: float | None = None,
    full_every: int = 100,
    alarms: Sequence[Rule] | None = None,
    on_alarm: Callable[[Alarm], Any] | None = None,
    quiet: bool = False,
) -> Iterator[Log]:
    """Watch a training loop, which stays as it is: `with eq.watch(model, optimizer) as log: train()`.

    A look is taken at the first step and at every `every`-th: before it of the gradients and of what the step should do
    to the laws, after it of what it did and of the spectra, which are followed from look to look. Every `full_every`-th
    look adds full spectra and whole laws; with `full=True` so do the first and a last one at the end. With
    `budget=0.02` looks come later where they would take more than 2% of the time of the training. Several optimizers
    count their own steps; of one that wraps others, as accelerate's, the hooks of those inside are used.

    The laws need to see a forward pass: the shapes of the first one are recorded, or are those of `example_inputs`.
    Where the model cannot be read, the observers that need it are off, `log.off` says why, and the training goes on; so
    it does whatever fails in a look, in a sink, in a rule or in `on_alarm`. Hooks on the optimizer are all that is
    added, and are gone at the end. A gradient that breaks a law at a step is compared with what `backward()` left,
    where need be at the next step: one that was changed in between is a note in `log.notes`, and no alarm. Modules and
    parameters that are replaced, added, removed or frozen are noted, and the laws are read again.

    `out` names a folder for the records (SQLite, and Parquet at the end); one of an earlier training goes on, and steps
    are counted from its last. `sinks` are further ones, each written by a thread of its own so that none can block the
    training, or callables that take the records of each look, within it. `alarms` are the rules (`default_rules()`);
    each alarm is a `TrainingAlarm` warning, is in `log.alarms`, and is passed to `on_alarm`.

    Raises `InputError` where the optimizer holds no parameter of the model, and `StoreError` for a folder in use.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> with watch(model, optimizer, every=5, quiet=True) as log:
    ...     for _ in range(10):
    ...         optimizer.zero_grad()
    ...         model(torch.ones(4, 3)).square().mean().backward()
    ...         optimizer.step()
    >>> sorted(set(log.table().step)), log.last("residual", "residual", "0.weight → 2.weight") < 1e-6
    ([1, 5, 10], True)
    """
    optimizers = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
    _check(model, optimizers, every, budget, full_every)
    crew = Crew.present()
    observers = default_observers() if observe is None else tuple(observe)
    with ExitStack() as stack:
        with untouched_generators():
            keeper: Keeper = Disk(out, _asked(every, budget, observers)) if out and crew.leads else Memory()
        others = [Background(sink) if isinstance(sink, Sink) else Call(sink) for sink in sinks]
        log = Log(keeper, others, default_rules() if alarms is None else alarms, on_alarm, crew.leads)
        given = example_inputs is not None
        scenery = Scenery(model, Example(example_inputs) if given else None, crew, given)
        lanes: list[Lane] = []
        for each in optimizers:
            cadence = Cadence(every, budget)
            lane = Lane(each, scenery, observers, cadence, full_every, log.meter, log, log.off, tuple(lanes), full)
            lanes.append(lane)
        stack.push(partial(_end, log, quiet))  # last of all, when the hooks are gone
        stack.callback(ForwardRecord(model, scenery.see).remove)
        for lane in lanes:
            stack.callback(lane.record.disarm)
            for handle in lane.hook():
                stack.callback(handle.remove)
        yield log
        for lane in lanes:
            lane.finish()


def _end(log: Log, quiet: bool, raised: type[BaseException] | None, *_: Any) -> None:
    """Whatever fails here, as the disk that is full, must not end the training."""
    try:
        with untouched_generators():
            log.close("finished" if raised is None else "interrupted")
            if log.leads and not quiet:
                print(log.summary())
    except Exception as error:
        log.off["summary"] = one_line(error)


def _asked(every: int, budget: float | None, observers: Sequence[Observer]) -> dict[str, Any]:
    return {"kind": "watch", "every": every, "budget": budget, "observers": [observer.name for observer in observers]}


def _check(model: nn.Module, optimizers: list[Any], every: int, budget: float | None, full_every: int) -> None:
    if every < 1 or full_every < 1:
        raise InputError(
            expected="a look every so many steps, 1 or more",
            found=f"every={every}, full_every={full_every}",
            remedy="pass every=50, full_every=100",
        )
    if budget is not None and not 0 < budget < 1:
        raise InputError(
            expected="a share of the training's time between 0 and 1",
            found=f"budget={budget}",
            remedy="pass budget=0.02",
        )
    named = own_parameters(model)
    unreal = [name for name, parameter in named.items() if parameter.is_complex()]
    if unreal:
        raise InputError(
            expected="a model of real weights",
            found=f"{', '.join(unreal)} of complex numbers",
            remedy="watch the parts of it that are real: eq.watch(model.part, optimizer)",
        )
    own = {id(parameter) for parameter in named.values()}
    for optimizer in optimizers:
        inside = held(optimizer)
        if own.isdisjoint(inside) and hooked(optimizer):
            raise InputError(
                expected="an optimizer of the model's parameters",
                found=f"{type(optimizer).__name__} with {len(inside)} other parameters",
                remedy="pass the optimizer made from model.parameters()",
            )
