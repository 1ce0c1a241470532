"""`eq.watch`: takes snapshots around the steps of an optimizer, while a training loop runs unchanged."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from os import PathLike
from types import TracebackType

from torch import nn

from equipoise.arguments import checked, require_integer
from equipoise.errors import InputError, one_line
from equipoise.graph.capture import Inputs
from equipoise.monitor.alarms import Alarm, Rule, default_rules
from equipoise.monitor.context import Example, ModelContext, some, untouched_generators
from equipoise.monitor.distributed import Membership, ProcessGroup
from equipoise.monitor.hooks import ForwardRecord, OptimizerHooks, OptimizerLike, held_parameters, hooked_optimizers
from equipoise.monitor.log import Log
from equipoise.monitor.schedule import Schedule
from equipoise.monitor.snapshots import ObserverSet, SnapshotTaker
from equipoise.monitor.unwrap import Selection, own_parameters
from equipoise.observers import Alignment, Drift, Observer, Residual, Spectrum
from equipoise.sinks import Disk, Memory, Sink, in_background
from equipoise.store import Record


def default_observers() -> tuple[Observer, ...]:
    """Spectra, alignment, drift of the laws, and the residual of every gradient."""
    return (Spectrum(), Alignment(), Drift(), Residual())


@checked
@contextmanager
def watch(
    model: nn.Module,
    optimizer: OptimizerLike | Sequence[OptimizerLike],
    every: int = 50,
    *,
    full: bool = False,
    observe: Sequence[Observer] | None = None,
    sinks: Sequence[Sink | Callable[[list[Record]], object]] = (),
    out: str | PathLike[str] | None = None,
    names: str | Sequence[str] | None = None,
    types: type[nn.Module] | Sequence[type[nn.Module]] | None = None,
    example_inputs: Inputs | None = None,
    budget: float | None = None,
    full_every: int = 100,
    alarms: Sequence[Rule] | None = None,
    on_alarm: Callable[[Alarm], object] | None = None,
    quiet: bool = False,
) -> Iterator[Log]:
    """Watch a training loop, which stays as it is: `with eq.watch(model, optimizer) as log: train()`.

    A snapshot is taken at the first step and at every `every`-th: before it of the gradients and of the predicted
    change of the laws, after it of the change, and of the spectra, which are tracked from snapshot to snapshot. The
    laws need to see a forward pass: the shapes of the first one are recorded, or are those of `example_inputs`. Where
    the model cannot be read, the observers that need it are off, `log.off` says why, and the training goes on; so it
    does when anything fails in a snapshot, in a sink, in a rule or in `on_alarm`. Hooks on the optimizer are all that
    is added, and are gone at the end. A gradient that breaks a law at a step is compared with what `backward()` left,
    where need be at the next step: one that was changed in between is a note in `log.notes`, and no alarm. Modules and
    parameters that are replaced, added, removed or frozen are noted, and the laws are read again. Where processes train
    together, each watches, and the figures are those of one process (docs/howto/distributed.md).

    Args:
        model: the model in training, wrapped or not.
        optimizer: one or several, which count their own steps; of one that wraps others, as accelerate's or a lookahead
            of one's own, the hooks of those inside are used.
        every: steps between snapshots.
        full: whether the first snapshot, and a last one at the end, are full ones: with full spectra and whole laws.
        observe: observers; by default `Spectrum()`, `Alignment()`, `Drift()` and `Residual()`.
        sinks: objects with `write` and `close`, each called by a thread of its own so that none can block the training,
            or callables that take the records of each snapshot, within it.
        out: a folder for the records (SQLite, and Parquet at the end); one of an earlier training goes on, and steps
            are counted from its last.
        names: glob patterns on the names of parameters, such as `"encoder.*"`: only matrices of these are watched, and
            only laws in which one of them takes part are read and judged.
        types: classes of modules, to the same effect for the parameters that they hold; with `names`, both must agree.
        example_inputs: arguments of the model, of the shapes to read it with.
        budget: the share of the training's time that snapshots may take: 0.02 puts them off where they would take more
            than 2%.
        full_every: every this many snapshots, one is full.
        alarms: rules, by default `default_rules()`; each alarm is a `TrainingAlarm` warning, and in `log.alarms`.
        on_alarm: called with each alarm.
        quiet: whether to print no summary at the end.

    Yields:
        The log, which grows as the training runs.

    Raises:
        InputError: where the optimizer holds no parameter of the model, or `names` and `types` select none.
        StoreError: for a folder in use.

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
    schedule, selection = _checked(Schedule(every, budget, full_every, full)), _selection(names, types)
    _check_model(model, optimizers, selection)
    observers = default_observers() if observe is None else tuple(observe)
    group = ProcessGroup.current()
    with ExitStack() as stack:
        keeper = _keeper(out if group.leads else None, schedule, observers)
        rules = default_rules() if alarms is None else alarms
        log = Log(keeper, [in_background(sink) for sink in sinks], rules, on_alarm, group.leads)
        stack.push(partial(_end, log, quiet))  # last of all, when the hooks are gone
        example = None if example_inputs is None else Example(example_inputs)
        membership = Membership(group)
        context = ModelContext(model, example, membership, example is not None, selection)
        stack.callback(membership.leave)
        stack.callback(ForwardRecord(model, context.see).remove)
        hooks = _attached(stack, optimizers, context, observers, schedule, log)
        yield log
        for each, taker in hooks:
            taker.finish(each.step)
        _note_left_out(log, max(each.step for each, _ in hooks), context, optimizers)


def _note_left_out(log: Log, step: int, context: ModelContext, optimizers: Sequence[object]) -> None:
    """Say which parameters gather gradients for no optimizer."""
    held = frozenset[int]().union(*(held_parameters(optimizer) for optimizer in optimizers))
    trained = {name: each for name, each in context.parameters.items() if each.requires_grad}
    left_out = [name for name, each in trained.items() if each.grad is not None and id(each) not in held]
    if left_out and len(left_out) < len(trained):  # an optimizer of copies holds none of them, and trains them all
        log.note(step, f"{some(left_out)}: {_LEFT_OUT}")


_LEFT_OUT = (
    "in no optimizer that was passed to watch, though backward() reaches them; unless another holds them, they stay"
)


def _keeper(out: str | PathLike[str] | None, schedule: Schedule, observers: Sequence[Observer]) -> Disk | Memory:
    """Where the records are kept: in a folder with what was asked for, or in memory."""
    if not out:
        return Memory()
    with untouched_generators():
        names = [observer.name for observer in observers]
        return Disk(out, {"every": schedule.every, "budget": schedule.budget, "observers": names})


def _attached(
    stack: ExitStack,
    optimizers: Sequence[object],
    context: ModelContext,
    observers: Sequence[Observer],
    schedule: Schedule,
    log: Log,
) -> list[tuple[OptimizerHooks, SnapshotTaker]]:
    """Hooks on each optimizer, which leave with the stack, and who takes the snapshots of its parameters."""
    takers: list[SnapshotTaker] = []
    found = []
    if not context.selection.everything:
        log.note(0, f"watching {len(context.watched())} of {len(context.parameters)} parameters ({context.selection})")
    for optimizer in optimizers:
        mine = ObserverSet(observers, log.off)
        taker = SnapshotTaker(optimizer, context, mine, schedule, log.meter, log, tuple(takers))
        takers.append(taker)
        found.append((_hooked(stack, optimizer, taker), taker))
    return found


def _hooked(stack: ExitStack, optimizer: object, taker: SnapshotTaker) -> OptimizerHooks:
    """Hooks of one optimizer; without any, its observers are off."""
    hooks = OptimizerHooks(optimizer, taker)
    stack.callback(taker.check.record.disarm)
    handles = list(hooks.register())
    for handle in handles:
        stack.callback(handle.remove)
    if handles:
        taker.begin()
    else:
        kind = type(optimizer).__name__
        taker.refuse(f"{kind} runs no step hooks, nor wraps a torch.optim.Optimizer that does; pass the one that steps")
    return hooks


def _end(
    log: Log, quiet: bool, raised: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    """A failure here, such as a disk that is full, must not end the training."""
    try:
        with untouched_generators():
            log.close("finished" if raised is None else "interrupted")
            if log.leads and not quiet:
                print(log.summary())
    except Exception as failure:
        log.off["summary"] = one_line(failure)


def _selection(
    names: str | Sequence[str] | None, types: type[nn.Module] | Sequence[type[nn.Module]] | None
) -> Selection:
    """One pattern or class is a list of one."""
    return Selection(
        names=[names] if isinstance(names, str) else names,
        types=[types] if isinstance(types, type) else types,
    )


def _checked(schedule: Schedule) -> Schedule:
    require_integer("every", schedule.every, "pass every=50, in steps", least=1)
    require_integer("full_every", schedule.full_every, "pass full_every=100, in snapshots", least=1)
    if schedule.budget is not None and not 0 < schedule.budget < 1:
        raise InputError(
            expected="a share of the training's time between 0 and 1",
            found=f"budget={schedule.budget}",
            remedy="pass budget=0.02",
        )
    return schedule


def _check_model(model: nn.Module, optimizers: Sequence[object], selection: Selection) -> None:
    named = own_parameters(model)
    unreal = [name for name, parameter in named.items() if parameter.is_complex()]
    if unreal:
        raise InputError(
            expected="a model of real weights",
            found=f"{', '.join(unreal)} of complex numbers",
            remedy="watch the parts of it that are real: eq.watch(model.part, optimizer)",
        )
    own = {id(parameter) for parameter in named.values()}
    if not optimizers:
        raise InputError(
            expected="an optimizer of the model's parameters",
            found="none",
            remedy="pass the optimizer made from model.parameters()",
        )
    for optimizer in optimizers:
        inside = held_parameters(optimizer)
        if own.isdisjoint(inside) and hooked_optimizers(optimizer):
            raise InputError(
                expected="an optimizer of the model's parameters",
                found=f"{type(optimizer).__name__} with {len(inside)} other parameters",
                remedy="pass the optimizer made from model.parameters()",
            )
    if not selection.of(model) and not selection.everything:
        raise InputError(
            expected="names= and types= of some parameters of the model",
            found=f"none with {selection}",
            remedy=f"its parameters are {', '.join([*named][:3])}{', …' if len(named) > 3 else ''}",
        )
