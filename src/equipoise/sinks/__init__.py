"""Where the records of a watched training go, one place a file. Nothing heavy is imported before it is used."""

from equipoise.sinks.disk import Disk
from equipoise.sinks.live import Live
from equipoise.sinks.mlflow import MLflow
from equipoise.sinks.protocol import Call, Keeper, Memory, Sink, metric_name
from equipoise.sinks.tensorboard import TensorBoard
from equipoise.sinks.wandb import WandB

__all__ = ["Call", "Disk", "Keeper", "Live", "MLflow", "Memory", "Sink", "TensorBoard", "WandB", "metric_name"]
