"""Gradients as `backward()` leaves them, and whether one that breaks a law at a step was already wrong there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from equipoise.laws.evaluate import LawPlan, LawReadings
from equipoise.monitor.distributed import ProcessGroup
from equipoise.monitor.shards import local
from equipoise.observers.judgement import Judgement, excesses, judge


@dataclass
class BackwardRecord:
    """Weights and gradients as `backward()` leaves them, kept from when it is `armed` until they are taken."""

    handles: list[RemovableHandle] = field(default_factory=list)
    kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def armed(self) -> bool:
        """Whether it will keep the gradients of the next backward pass."""
        return bool(self.handles)

    def arm(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Keep the weights and gradients of the next backward pass, until `take`."""
        self.disarm()
        for name, parameter in parameters.items():
            if parameter.requires_grad and parameter.is_leaf:
                self.handles.append(parameter.register_post_accumulate_grad_hook(partial(self._keep, name)))

    def disarm(self) -> None:
        """Take the hooks away, and forget."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.kept.clear()

    def take(
        self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], held: Iterable[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
        """Weights and gradients of the same names, the `held` ones as they were kept.

        None where a held parameter has a gradient that no backward pass left there.
        """
        kept, own = dict(self.kept), [name for name in held if name in gradients]
        self.disarm()
        if any(name not in kept and bool(local(gradients[name]).any()) for name in own):
            return None
        mine = {name: kept[name] for name in own if name in kept}
        before = {name: mine[name][0] if name in mine else weight for name, weight in weights.items()}
        return before, {**gradients, **{name: gradient for name, (_, gradient) in mine.items()}}

    def _keep(self, name: str, parameter: Tensor) -> None:
        try:
            gradient = parameter.grad
            if gradient is not None:
                with torch.no_grad():
                    dense = gradient.to_dense() if gradient.is_sparse else gradient.clone()
                    self.kept[name] = parameter.detach().clone(), dense
        except Exception:  # out of memory: it cannot be compared then
            self.kept.pop(name, None)


@dataclass
class GradientCheck:
    """Whether `backward()` left the gradients of a step as they are; compared from the first law that is broken.

    Where processes train together each compares what its own backward pass left, which under data parallelism is the
    gradient of its own examples, and obeys the laws as their mean does; what one of them finds broken is.

    Attributes:
        group: these processes.
        suspicious: the last snapshot found a law broken, and it is not known by whom.
        compared: the last snapshot was compared with the backward pass.
        comparing: every snapshot will be: a law was broken once.
    """

    group: ProcessGroup = field(default_factory=ProcessGroup)
    suspicious: bool = False
    compared: bool = False
    comparing: bool = False
    record: BackwardRecord = field(default_factory=BackwardRecord)
    _left: LawReadings | None = None

    @property
    def pending(self) -> bool:
        """Whether the next snapshot needs the gradients of the backward pass before it."""
        return self.suspicious or self.comparing

    def forget(self) -> None:
        """Drop what was read of the last backward pass."""
        self._left = None

    def read(
        self, plan: LawPlan, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], held: Iterable[str]
    ) -> None:
        """Read the laws at the weights and gradients that the backward pass left, if they were kept."""
        self._left, self.compared = None, self.record.armed
        if self.compared:
            kept = self.record.take(weights, gradients, held)
            if not self.group.any(kept is None) and kept is not None:
                before, left = kept
                self._left = plan(before, self.group.like_weights(before, left))

    def judge(self, step: LawReadings, precision: torch.dtype | None, judged: frozenset[str]) -> Judgement:
        """By law, whether the gradient of a step is right; the readings of the backward pass are used up.

        Args:
            step: readings of the laws at the step.
            precision: the narrowest dtype that the gradient was computed in.
            judged: the names of the laws to judge.
        """
        now, left = (None if each is None else excesses(each, precision) for each in (step, self._left))
        assert now is not None
        left = None if left is None else self.group.largest(left)
        found = judge(self.group.largest(now), left, judged)
        self.suspicious, self._left = bool(found.unconfirmed) and not self.compared, None
        broken = self.compared and not all(value <= 1 for value in found.excess.values())
        self.comparing |= broken or self.were_changed(found)
        return found

    def were_changed(self, found: Judgement) -> bool:
        """Whether gradients were changed between backward and step, or are none of a backward pass at all."""
        return bool(found.changed) or bool(found.unconfirmed and self.compared)
