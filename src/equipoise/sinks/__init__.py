"""Sinks for the records of a watched training, one a file. Nothing heavy is imported before it is used."""

from equipoise.sinks.background import Background, in_background, sink_name
from equipoise.sinks.disk import Disk
from equipoise.sinks.live import Live
from equipoise.sinks.mlflow import MLflow
from equipoise.sinks.protocol import Call, Memory, ReadableSink, Sink, metric_name
from equipoise.sinks.tensorboard import TensorBoard
from equipoise.sinks.wandb import WandB

__all__ = [
    "Background",
    "Call",
    "Disk",
    "Live",
    "MLflow",
    "Memory",
    "ReadableSink",
    "Sink",
    "TensorBoard",
    "WandB",
    "in_background",
    "metric_name",
    "sink_name",
]
