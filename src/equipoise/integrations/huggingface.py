"""`eq.watch` as a callback of the Hugging Face `Trainer`."""

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from equipoise.monitor import Log, watch


class HuggingFaceWatch(TrainerCallback):
    """Watch a training: `Trainer(..., callbacks=[WatchCallback(every=50, out="runs/exp1")])`.

    The arguments are those of `eq.watch`; the result is `callback.log`.
    """

    def __init__(self, every: int = 50, **arguments: Any):
        self.every, self.arguments = every, arguments
        self.log: Log | None = None
        self._stack = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the hooks on."""
        optimizer = kwargs["optimizer"]
        while type(optimizer).__name__ == "AcceleratedOptimizer":  # it steps the one that it wraps
            optimizer = optimizer.optimizer
        self.log = self._stack.enter_context(watch(kwargs["model"], optimizer, self.every, **self.arguments))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take a last snapshot, and the hooks off."""
        self._stack.close()


WatchCallback = HuggingFaceWatch
