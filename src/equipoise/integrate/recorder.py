"""The recorder of a run: weights at goals, records and checkpoints in its folder, and the finished run."""

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from equipoise.integrate.goals import Goal
from equipoise.integrate.observation import observed_in
from equipoise.integrate.problem import Problem, trained_copy
from equipoise.integrate.run import Run, Status, slides_in_data
from equipoise.integrate.state import PhysicalTime, Progress, State
from equipoise.observers import ObserverResult, StateLike
from equipoise.observers.state import to_tensors
from equipoise.store import Record, ResumePoint, Store

CHECKPOINT_SECONDS = 1.0
"""Between two checkpoints, at the least."""


@dataclass(frozen=True)
class Recorder:
    """Keeps a run in memory, and in a folder where it has one."""

    problem: Problem
    store: Store | None

    def keep(self, progress: Progress, goals: Iterable[Goal]) -> None:
        """Save the weights under the names of the goals that they have just reached."""
        for goal in goals:
            weights = self.problem.layout.copies(progress.state.weights)
            progress.saved[goal.describe()] = weights
            if self.store is not None:
                self.store.save_weights(goal.describe(), weights)

    def checkpoint(self, progress: Progress) -> Progress:
        """Commit, if the last one was long enough ago."""
        due = progress.seconds - progress.committed > CHECKPOINT_SECONDS
        return self.commit(progress) if due else progress

    def commit(self, progress: Progress, result: ObserverResult | None = None) -> Progress:
        """Write the new records and a checkpoint, with the result of a run that has ended, if there is a folder."""
        if self.store is None:
            return progress
        self.store.commit(progress.records[progress.written :], pack_progress(progress, result))
        return replace(progress, written=len(progress.records), committed=progress.seconds)

    def interruption(self, progress: Progress) -> str:
        """The message of an interrupted run: its last step, and how it goes on."""
        where = f"interrupted after step {progress.step}"
        if self.store is None:
            return f"{where}; nothing is kept without a folder: pass out="
        return f"{where}; go on with equipoise flow --resume {shlex.quote(str(self.store.folder))}, or eq.resume"

    def restored(self, saved: ResumePoint, started: Sequence[StateLike]) -> Progress:
        """The progress of a checkpoint; weights saved after it will be reached, and saved, again.

        `started` are the states of the observers before the first snapshot.
        """
        assert self.store is not None
        records = [Record(*row) for row in self.store.table_of_checkpoint().itertuples(index=False)]
        known = saved.metadata
        return Progress(
            step=saved.step,
            state=state_of(saved, len(self.problem.margins.kinks), self.problem),
            observed=observed_in(saved, started),
            falls=tuple(known["falls"]),
            slopes=tuple(known["slopes"]),
            sizes=tuple(known["sizes_taken"]),
            records=records,
            written=len(records),
            saved={name: self.store.load_weights(name)[0] for name in self.store.between()},
            seconds=known["seconds"],
            committed=known["seconds"],
        )

    def concluded(self, progress: Progress, status: Status, reason: str | None) -> Run:
        """The finished run, written to the folder if there is one."""
        result = ObserverResult.of(progress.observed)
        run = self._run(progress, result, status, reason)
        if self.store is not None:
            self.commit(progress, result)
            self.store.save_weights("final", run.final)
            self.store.finish(run.summary())
        return run

    def _run(self, progress: Progress, result: ObserverResult, status: Status, reason: str | None) -> Run:
        state, problem = progress.state, self.problem
        shares, final = problem.example_weights, problem.layout.copies(state.weights)
        return Run(
            model=trained_copy(problem.model, final),
            initial=problem.initial,
            final=final,
            data=problem.data,
            loss=problem.loss,
            status=status,
            log_loss=problem.log_loss(state.evaluation),
            growth=problem.growth(state.weights),
            log_time=state.time.log,
            time_error=state.time.relative_error,
            steps=progress.step,
            gradient_evaluations=state.examples_visited / problem.margins.count,
            seconds=progress.seconds,
            records=progress.records,
            folder=None if self.store is None else Path(self.store.folder),
            saved=progress.saved,
            defects=dict(result.predicted_changes),
            slid=slides_in_data(result.spans(progress.step), shares),
            example_weights=None if shares is None else shares.cpu(),
            reason=reason,
            missed=state.missed,
            captured=problem.captured,
        )


# ---- checkpoints: tensors, and floats in JSON, which keeps every bit of them ----


def pack_progress(progress: Progress, result: ObserverResult | None = None) -> ResumePoint:
    """The checkpoint of a run: all but its records, which are in the store already."""
    state = progress.state
    tensors = {"weights": state.weights, "dual": state.dual}
    tensors |= {f"slopes/{index}": slope for index, slope in enumerate(state.slopes)}
    if state.velocity is not None:
        tensors["velocity"] = state.velocity
    if state.stiffest is not None:
        tensors["stiffest"] = state.stiffest
    for index, observed in enumerate(progress.observed):
        tensors |= to_tensors(observed, f"observers/{index}")
    tensors |= {name: tensor.clone() for name, tensor in to_tensors(result, "result").items()}  # some are in a state
    known = {
        "sizes": state.sizes,
        "costs": state.costs,
        "log_time": state.time.log,
        "log_time_error": state.time.log_error,
        "temperature": state.temperature,
        "examples_visited": state.examples_visited,
        "taken": state.taken,
        "missed": state.missed,
        "falls": list(progress.falls),
        "slopes": list(progress.slopes),
        "sizes_taken": list(progress.sizes),
        "gradient_norm": state.gradient_norm,
        "seconds": progress.seconds,
    }
    return ResumePoint(progress.step, {name: tensor.contiguous() for name, tensor in tensors.items()}, known)


def state_of(saved: ResumePoint, kinks: int, problem: Problem) -> State:
    """The state of the flow in a checkpoint."""
    tensors, known = {name: tensor.to(problem.weights.device) for name, tensor in saved.tensors.items()}, saved.metadata
    return State(
        weights=tensors["weights"],
        evaluation=problem.margins.evaluate(tensors["weights"]),
        slopes=tuple(tensors[f"slopes/{index}"] for index in range(kinks)),
        dual=tensors["dual"],
        velocity=tensors.get("velocity"),
        gradient_norm=known["gradient_norm"],
        sizes=known["sizes"],
        costs=known.get("costs", {}),
        stiffest=tensors.get("stiffest"),
        time=PhysicalTime(known["log_time"], known.get("log_time_error", math.nan)),
        temperature=known["temperature"],
        examples_visited=known["examples_visited"],
        taken=known["taken"],
        missed=known["missed"],
    )
