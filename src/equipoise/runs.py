"""`eq.load`: what a run folder holds, whichever verb wrote it."""

from pathlib import Path

from torch import nn

from equipoise.arguments import checked
from equipoise.integrate.run import Run
from equipoise.modes import default_modes
from equipoise.monitor import Log
from equipoise.monitor.alarms import Alarm
from equipoise.sinks.disk import KIND as WATCHED
from equipoise.sinks.protocol import Memory
from equipoise.store import Record, Store


@checked
@default_modes()
def load(folder: str | Path, model: nn.Module | None = None, data: object = None) -> Run | Log:
    """Read a run of `eq.flow`, or the log of `eq.watch`, back from its folder.

    Args:
        folder: the `out` of the flow or the training. A flow must be finished; a training may still be running.
        model: for a flow of a model of your own, its architecture; a log needs none.
        data: for a flow on data of your own, the same examples.

    Returns:
        The run as `eq.flow` returned it; or a log with the records and the alarms of the training, without its laws.

    Raises:
        InputError: for a flow without the model or the data that are not in its folder, or for others; and for a flow
            that has not finished.
        StoreError: for a folder of anything else, or damaged.

    >>> import tempfile
    >>> import equipoise as eq
    >>> folder = f"{tempfile.mkdtemp()}/run"
    >>> model, data = eq.networks.mlp([5, 4, 1], linear_tail=1), eq.data.load("separable", n=20, d=5)
    >>> run = eq.flow(model, data, until=eq.Steps(2), out=folder)
    >>> eq.load(folder, model).log_loss == run.log_loss
    True
    """
    with Store.open(folder) as store:
        if store.manifest.get("kind") == WATCHED:
            return _log(store)
    return Run.load(folder, model, data)


def _log(store: Store) -> Log:
    """The log of a watched training, its records in memory."""
    records = [Record(*row) for row in store.table().itertuples(index=False, name=None)]
    kept = Memory()
    kept.write(records)
    raised = [record for record in records if record.observer == "alarm"]
    alarms = [Alarm(each.step, each.quantity, each.place, f"{each.quantity}, on record") for each in raised]
    return Log(kept, (), (), alarms=alarms, steps=max((record.step for record in records), default=0))
