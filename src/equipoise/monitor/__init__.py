"""What is behind `eq.watch`: hooks on optimizers, looks on a schedule, alarms, and what it all costs."""

from equipoise.monitor.alarms import Alarm, Collapse, Dying, Rule, TrainingAlarm, default_rules
from equipoise.monitor.log import Log
from equipoise.monitor.session import default_observers, watch

__all__ = ["Alarm", "Collapse", "Dying", "Log", "Rule", "TrainingAlarm", "default_observers", "default_rules", "watch"]
