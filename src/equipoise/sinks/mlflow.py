"""Records as metrics of an MLflow run."""

import time
from collections.abc import Sequence

from equipoise.arguments import checked_fields
from equipoise.sinks.protocol import metric_name
from equipoise.store import Record

_BATCH = 1000  # metrics that a server takes in one request


@checked_fields
class MLflow:
    """Metrics under `observer_quantity/place`, in the run `run_id` or in a new one of `experiment`.

    `tracking_uri` is a server, a `sqlite:///` address or a folder; by default MLflow's own setting.
    """

    def __init__(self, run_id: str | None = None, *, experiment: str = "equipoise", tracking_uri: str | None = None):
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri)
        self._own = run_id is None
        self.run_id = self._new_run(experiment) if run_id is None else run_id

    def write(self, records: Sequence[Record]) -> None:
        """In batches."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(metric_name(record), record.value, now, record.step) for record in records]
        for first in range(0, len(metrics), _BATCH):
            self.client.log_batch(self.run_id, metrics[first : first + _BATCH])

    def close(self) -> None:
        """End a run that was made here."""
        if self._own:
            self.client.set_terminated(self.run_id)

    def _new_run(self, experiment: str) -> str:
        found = self.client.get_experiment_by_name(experiment)
        identity = self.client.create_experiment(experiment) if found is None else found.experiment_id
        return self.client.create_run(identity).info.run_id
