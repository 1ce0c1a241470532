"""Where a run stands, and the checkpoint that keeps it: tensors, and floats in JSON, which keeps every bit of them."""

from dataclasses import dataclass, field

from torch import Tensor

from equipoise.integrate.problem import Problem
from equipoise.integrate.steppers import State
from equipoise.observers import Memory
from equipoise.store import Checkpoint, Record


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the whole of what a checkpoint holds."""

    step: int
    state: State
    memories: tuple[Memory, ...]
    falls: tuple[float, ...] = ()  # log-losses of the last steps, to see a stall
    slopes: tuple[float, ...] = ()  # ‖∇ log R‖ ‖w‖ at the same points
    sizes: tuple[float, ...] = ()  # ‖Δw‖/‖w‖ of the last steps
    records: list[Record] = field(default_factory=list, repr=False)  # a log, only ever appended to
    written: int = 0  # records that are on disk
    saved: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)  # likewise only ever added to
    seconds: float = 0.0
    committed: float = 0.0  # of these, at the last checkpoint


def packed(progress: Progress) -> Checkpoint:
    """All of it but the records, which are in the store already."""
    state = progress.state
    tensors = {"weights": state.weights, "dual": state.dual}
    tensors |= {f"slopes/{index}": slope for index, slope in enumerate(state.slopes)}
    if state.velocity is not None:
        tensors["velocity"] = state.velocity
    for index, memory in enumerate(progress.memories):
        tensors |= {f"memory/{index}/{name}": tensor for name, tensor in memory.items()}
    told = {
        "sizes": state.sizes,
        "log_time": state.log_time,
        "temperature": state.temperature,
        "examples_visited": state.examples_visited,
        "taken": state.taken,
        "missed": state.missed,
        "falls": list(progress.falls),
        "slopes": list(progress.slopes),
        "sizes_taken": list(progress.sizes),
        "steepness": state.steepness,
        "seconds": progress.seconds,
    }
    return Checkpoint(progress.step, {name: tensor.contiguous() for name, tensor in tensors.items()}, told)


def state_of(saved: Checkpoint, kinks: int, problem: Problem) -> State:
    """Where the flow stood."""
    tensors, told = {name: tensor.to(problem.weights.device) for name, tensor in saved.tensors.items()}, saved.metadata
    return State(
        weights=tensors["weights"],
        evaluation=problem.margins.evaluate(tensors["weights"]),
        slopes=tuple(tensors[f"slopes/{index}"] for index in range(kinks)),
        dual=tensors["dual"],
        velocity=tensors.get("velocity"),
        steepness=told["steepness"],
        sizes=told["sizes"],
        log_time=told["log_time"],
        temperature=told["temperature"],
        examples_visited=told["examples_visited"],
        taken=told["taken"],
        missed=told["missed"],
    )


def memory_of(saved: Checkpoint, index: int) -> Memory:
    """What the observer of that index carried."""
    prefix = f"memory/{index}/"
    return {name.removeprefix(prefix): tensor for name, tensor in saved.tensors.items() if name.startswith(prefix)}


def memories_of(saved: Checkpoint) -> tuple[Memory, ...]:
    """What every observer carried that carried anything."""
    indices = {int(name.split("/")[1]) for name in saved.tensors if name.startswith("memory/")}
    return tuple(memory_of(saved, index) for index in sorted(indices))
