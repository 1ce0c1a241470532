"""Records as metrics of a Weights & Biases run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from equipoise.sinks.protocol import metric_name
from equipoise.store import Record

if TYPE_CHECKING:
    import wandb

STEP = "equipoise/step"


class WandB:
    """Metrics under `equipoise/…`, over a step of their own, so that they never clash with the training's.

    In a run of one's own, or in a new one with the arguments of `wandb.init`, such as `mode="offline"`.
    """

    def __init__(self, run: "wandb.Run | None" = None, **arguments: Any):
        import wandb

        self._own = run is None
        self.run = wandb.init(**arguments) if run is None else run
        self.run.define_metric(STEP)
        self.run.define_metric("equipoise/*", step_metric=STEP)

    def write(self, records: Sequence[Record]) -> None:
        """One row of the history a step."""
        steps: dict[int, dict[str, float]] = {}
        for record in records:
            steps.setdefault(record.step, {})[f"equipoise/{metric_name(record)}"] = record.value
        for step, metrics in steps.items():
            self.run.log({STEP: step, **metrics})

    def close(self) -> None:
        """Finish a run that was made here."""
        if self._own:
            self.run.finish()
