"""Training loops with and without `eq.watch`: bit-identical ends, no false alarm, nothing raised.

    python benchmarks/faults/watch_loops.py            # all of them, one table
    python benchmarks/faults/watch_loops.py --only sam

Each loop is a recipe: what builds model, optimizers and one training step. It is run twice from one seed, once watched
at every step. Compared are all parameters, buffers, states of optimizers, and the states of the random generators.
"""

import argparse
import contextlib
import io
import random
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from loops import RECIPES, Loop, Recipe
from loops.base import STEPS
from torch import Tensor

import equipoise as eq


@dataclass
class Outcome:
    """What became of one loop."""

    identical: bool
    alarms: list[str]
    alarmed: bool  # whether there had to be some
    raised: str
    off: dict[str, str]
    notes: list[str]

    @property
    def faults(self) -> list[str]:
        """What is not as it should be."""
        differs = [] if self.identical or self.raised else ["DIFFERS"]
        missed = ["no alarm"] if self.alarmed and not self.alarms and not self.raised else []
        return differs + missed + ([] if self.alarmed else self.alarms) + ([self.raised] if self.raised else [])


def run(make: Recipe, watched: bool, every: int = 1) -> tuple[Any, Any, bool]:
    """The state at the end, the log, and whether it must hold alarms."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    loop = make()
    log = None
    with contextlib.ExitStack() as stack:
        if loop.strict:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("error")
        if watched:
            model = loop.model if loop.watched is None else loop.watched
            given = {"quiet": True, "every": every} | loop.settings
            log = stack.enter_context(eq.watch(model, loop.optimizers, **given))
        for number in range(STEPS):
            loop.step(number)
    return list(_state(loop)), log, loop.alarmed


def _state(loop: Loop) -> Iterator[Any]:
    yield {name: value.detach().clone() for name, value in loop.model.state_dict().items()}
    yield [(parameter.requires_grad, parameter.grad) for parameter in loop.model.parameters()]
    yield [
        len(hooks) for module in loop.model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)
    ]
    for optimizer in loop.optimizers if isinstance(loop.optimizers, list) else [loop.optimizers]:
        if hasattr(optimizer, "state_dict"):
            yield optimizer.state_dict()
        yield len(getattr(optimizer, "_optimizer_step_pre_hooks", ()))
    yield [getattr(loop.model, name, None) for name in ("calls", "seen")], loop.finish()
    yield torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def same(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and _bits(one) == _bits(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def _bits(tensor: Tensor) -> bytes:
    dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    return dense.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def outcome(make: Recipe, every: int = 1) -> Outcome:
    """Run it both ways, and compare; what is printed on the way is dropped."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        alone, _, alarmed = run(make, watched=False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", eq.TrainingAlarm)
                watched, log, _ = run(make, watched=True, every=every)
        except Exception as error:  # the one thing that must not happen
            return Outcome(False, [], alarmed, f"{type(error).__name__}: {error}", {}, [])
    return Outcome(same(alone, watched), [str(alarm) for alarm in log.alarms], alarmed, "", log.off, log.notes)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="loops with this in their name")
    parser.add_argument("--verbose", action="store_true", help="print what is off, and the notes")
    asked = parser.parse_args()
    chosen = {name: make for name, make in RECIPES.items() if asked.only in name}
    begun, found = time.perf_counter(), {}
    for name, make in chosen.items():
        each = found[name] = outcome(make)
        said = each.faults
        if asked.verbose:
            said += [f"off: {what} ({why[:90]})" for what, why in each.off.items()] + each.notes
        if said or asked.verbose:
            print(f"{name:36} {'; '.join(said) or 'identical'}", flush=True)
    identical = sum(each.identical for each in found.values())
    false = sum(bool(each.alarms) and not each.alarmed for each in found.values())
    missed = sum("no alarm" in each.faults for each in found.values())
    raised = sum(bool(each.raised) for each in found.values())
    print("| loops | bit-identical | false alarms | alarms missed | raised | seconds |\n|---|---|---|---|---|---|")
    seconds = time.perf_counter() - begun
    print(f"| {len(found)} | {identical} | {false} | {missed} | {raised} | {seconds:.0f} |")
    return int(any(each.faults for each in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
