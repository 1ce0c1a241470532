"""What is kept of a run: weights at the goals it passes, records and checkpoints in its folder, and what it ends as."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from equipoise.integrate.checkpoints import Progress, memory_of, packed, state_of
from equipoise.integrate.goals import Goal
from equipoise.integrate.problem import Problem
from equipoise.integrate.run import Run, Status
from equipoise.store import Checkpoint, Record, Store

CHECKPOINT_SECONDS = 1.0
"""Between two checkpoints, at the least."""


@dataclass(frozen=True)
class Keeper:
    """Keeps a run in memory, and in the folder of its store where it has one."""

    problem: Problem
    store: Store | None

    def keep(self, progress: Progress, goals: Iterable[Goal]) -> None:
        """The weights, under the names of the goals that they have just reached."""
        for goal in goals:
            weights = self.problem.layout.copies(progress.state.weights)
            progress.saved[goal.describe()] = weights
            if self.store is not None:
                self.store.save_weights(goal.describe(), weights)

    def checkpoint(self, progress: Progress) -> Progress:
        """As `commit`, if the last one was long enough ago."""
        due = progress.seconds - progress.committed > CHECKPOINT_SECONDS
        return self.commit(progress) if due else progress

    def commit(self, progress: Progress) -> Progress:
        """With its new records and a checkpoint in the folder, if there is one."""
        if self.store is None:
            return progress
        self.store.commit(progress.records[progress.written :], packed(progress))
        return replace(progress, written=len(progress.records), committed=progress.seconds)

    def interruption(self, progress: Progress) -> str:
        """Where an interrupted run stands, and how it goes on."""
        where = f"interrupted after step {progress.step}"
        if self.store is None:
            return f"{where}; nothing is kept without a folder: pass out="
        return f"{where}; go on with equipoise flow --resume {shlex.quote(str(self.store.folder))}, or eq.resume"

    def restored(self, saved: Checkpoint, observers: int) -> Progress:
        """The progress of a checkpoint; weights saved after it will be reached, and saved, again."""
        assert self.store is not None
        records = [Record(*row) for row in self.store.table_of_checkpoint().itertuples(index=False)]
        told = saved.metadata
        return Progress(
            step=saved.step,
            state=state_of(saved, len(self.problem.margins.kinks), self.problem),
            memories=tuple(memory_of(saved, index) for index in range(observers)),
            falls=tuple(told["falls"]),
            slopes=tuple(told["slopes"]),
            sizes=tuple(told["sizes_taken"]),
            records=records,
            written=len(records),
            saved={name: self.store.load_weights(name)[0] for name in self.store.between()},
            seconds=told["seconds"],
            committed=told["seconds"],
        )

    def concluded(self, progress: Progress, status: Status, reason: str | None) -> Run:
        """The finished run, written down."""
        run = self._run(progress, status, reason)
        if self.store is not None:
            self.commit(progress)
            self.store.save_weights("final", run.final)
            self.store.finish(run.summary())
        return run

    def _run(self, progress: Progress, status: Status, reason: str | None) -> Run:
        state, problem = progress.state, self.problem
        return Run.of(
            problem,
            state.weights,
            progress.memories,
            status=status,
            log_loss=problem.log_loss(state.evaluation),
            growth=problem.growth(state.weights),
            log_time=state.log_time,
            steps=progress.step,
            gradient_evaluations=state.examples_visited / problem.margins.count,
            seconds=progress.seconds,
            records=progress.records,
            folder=None if self.store is None else Path(self.store.folder),
            saved=progress.saved,
            reason=reason,
            missed=state.missed,
        )
