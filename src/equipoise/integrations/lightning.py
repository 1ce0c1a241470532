"""`eq.watch` as a callback of Lightning's `Trainer`."""

from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from equipoise.monitor import Log, watch


class LightningWatch(Callback):
    """Watch the training of a `LightningModule`: `Trainer(callbacks=[WatchCallback(every=50, out="runs/exp1")])`.

    The arguments are those of `eq.watch`; the result is `callback.log`. `part` names the submodule that holds the
    network, where `training_step` calls that and not the module itself: the laws need to see its forward pass.
    """

    def __init__(self, every: int = 50, *, part: str = "", **arguments: Any):
        self.every, self.part, self.arguments = every, part, arguments
        self.log: Log | None = None
        self._stack = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the hooks on."""
        model = pl_module.get_submodule(self.part)
        watching = watch(model, trainer.optimizers, self.every, **self.arguments)
        self.log = self._stack.enter_context(watching)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take a last snapshot, and the hooks off."""
        self._stack.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The hooks off."""
        stack, self._stack = self._stack, ExitStack()
        stack.__exit__(type(exception), exception, exception.__traceback__)


WatchCallback = LightningWatch
