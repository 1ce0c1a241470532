"""Sinks for the records of a watched training, one a file. Nothing heavy is imported before it is used."""

from equipoise.sinks.background import Background, in_background, sink_name
from equipoise.sinks.disk import Disk
from equipoise.sinks.labels import common_prefix, short_labels
from equipoise.sinks.lines import Lines
from equipoise.sinks.live import Live
from equipoise.sinks.mlflow import MLflow
from equipoise.sinks.protocol import Call, Memory, ReadableSink, Sink, metric_name
from equipoise.sinks.tensorboard import TensorBoard
from equipoise.sinks.wandb import WandB

__all__ = [
    "Background",
    "Call",
    "Disk",
    "Lines",
    "Live",
    "MLflow",
    "Memory",
    "ReadableSink",
    "Sink",
    "TensorBoard",
    "WandB",
    "common_prefix",
    "in_background",
    "metric_name",
    "short_labels",
    "sink_name",
]
