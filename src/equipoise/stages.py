"""Progress: work announces its stages where it is done, and `show_progress` draws them on a terminal.

Nothing is drawn, and hardly anything computed, where nobody asked for it or standard error is no terminal. What ends
within two seconds leaves no trace.
"""

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from equipoise.arguments import checked
from equipoise.errors import visible

if TYPE_CHECKING:  # rich is imported when something is drawn
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID

DELAY = 2.0  # seconds before anything is drawn
T = TypeVar("T")


@runtime_checkable
class Stage(Protocol):
    """A part of some work, of which it is known how much is done."""

    def update(self, done: float | None = None, *, total: float | None = None, description: str | None = None) -> None:
        """State what is done of how much, or describe the stage anew; None leaves a value as it is."""
        ...


@contextmanager
def stage(description: str, total: float | None = None) -> Iterator[Stage]:
    """Announce a stage of the work for as long as the block runs.

    Args:
        description: of the stage, in a few words.
        total: of what `update` counts; None where it is not known.

    Yields:
        The stage, to be updated.

    >>> with stage("sweeping") as sweeps:  # nobody watches
    ...     sweeps.update(3)
    """
    display = _DISPLAY.get()
    if display is None:
        yield _Unseen()
        return
    seen = display.opened(description, total)
    try:
        yield seen
    finally:
        seen.close()


def staged(items: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
    """The items of a stage, counted as they are done.

    >>> list(staged("abc", "reading"))
    ['a', 'b', 'c']
    """
    count = len(items) if total is None and isinstance(items, Sized) else total
    with stage(description, count) as current:
        for done, item in enumerate(items, start=1):
            yield item
            current.update(done)


@checked
@contextmanager
def show_progress(*, quiet: bool = False) -> Iterator[None]:
    """Draw on standard error how far a computation is, once it has taken two seconds; erased when it ends.

    Nothing is drawn where standard error is no terminal. The commands of `equipoise` do it by themselves.

    Args:
        quiet: draw nothing.

    >>> import torch, equipoise as eq
    >>> with eq.show_progress():
    ...     laws = eq.invariances(eq.networks.mlp([4, 3, 2, 1]), torch.ones(2, 4).double())
    """
    if quiet:
        yield
        return
    from rich.console import Console

    with drawn_on(Console(stderr=True)):
        yield


@contextmanager
def drawn_on(console: "Console") -> Iterator[None]:
    """The same on a console of rich; within another block, that one goes on drawing."""
    if not console.is_terminal or _DISPLAY.get() is not None:
        yield
        return
    display = _Display(console)
    token = _DISPLAY.set(display)
    try:
        with display.drawn():
            yield
    finally:
        _DISPLAY.reset(token)


class _Unseen:
    """A stage that nobody watches."""

    def update(self, done: float | None = None, *, total: float | None = None, description: str | None = None) -> None:
        """Do nothing."""


class _Seen:
    """A stage on a terminal."""

    def __init__(self, progress: "Progress", task: "TaskID"):
        self.progress, self.task = progress, task

    def update(self, done: float | None = None, *, total: float | None = None, description: str | None = None) -> None:
        """Change what is drawn next."""
        shown = None if description is None else visible(description)
        self.progress.update(self.task, completed=done, total=total, description=shown)
        self.progress.update(self.task, count=_count(self.progress, self.task))

    def close(self) -> None:
        """Draw it no more."""
        self.progress.remove_task(self.task)


class _Display:
    """The stages that are open, the outer ones first, drawn once the work has taken a while."""

    def __init__(self, console: "Console"):
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        words = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
        count = TextColumn("{task.fields[count]}", justify="right")
        columns = (SpinnerColumn(), words, BarColumn(bar_width=24), count, TimeElapsedColumn())
        self.console, self.begun = console, time.monotonic()
        self.progress = Progress(*columns, console=console, auto_refresh=False)

    def opened(self, description: str, total: float | None) -> _Seen:
        """A further stage."""
        seen = _Seen(self.progress, self.progress.add_task(visible(description), total=total, count=""))
        seen.update()
        return seen

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Draw what is open for as long as the block runs."""
        from rich.live import Live

        with Live(console=self.console, get_renderable=self._picture, transient=True, refresh_per_second=8):
            yield

    def _picture(self) -> "RenderableType":
        from rich.console import Group

        due = time.monotonic() - self.begun >= DELAY
        return self.progress.get_renderable() if due and self.progress.tasks else Group()


def _count(progress: "Progress", task: "TaskID") -> str:
    """Progress as `done/total`, `done` alone without a total; empty where neither is counted."""
    found = next(each for each in progress.tasks if each.id == task)
    if found.total is None:
        return f"{found.completed:.0f}" if found.completed else ""
    return f"{found.completed:.0f}/{found.total:.0f}"


_DISPLAY: ContextVar[_Display | None] = ContextVar("display", default=None)
