"""`eq.watch`: hooks on optimizers, snapshots on a schedule, alarms, and the log."""

from equipoise.monitor.alarms import Alarm, Collapse, Dying, Rule, TrainingAlarm, default_rules
from equipoise.monitor.log import Log
from equipoise.monitor.watching import default_observers, watch

__all__ = ["Alarm", "Collapse", "Dying", "Log", "Rule", "TrainingAlarm", "default_observers", "default_rules", "watch"]
