"""Folders, sinks, rules and warnings that fail at every instant of a block."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import equipoise as eq
from equipoise.monitor import Alarm
from loops.base import RECIPES, Loop, plain, recipe
from loops.models import perceptron
from loops.odd import Raises


def _place() -> Path:
    return Path(tempfile.mkdtemp()) / "run"


def _cry(record: Any) -> Alarm:
    return Alarm(record.step, "cry", record.place, "wolf")


def _fail(*_: Any) -> None:
    raise RuntimeError("on_alarm")


def _strict(**settings: Any) -> Loop:
    loop = plain(perceptron(), **settings)
    loop.strict = True
    return loop


def _without(file: str, at: int) -> Loop:
    """A part of the folder is removed while the training runs."""
    place = _place()

    def after(model: Any, optimizer: Any, number: int) -> None:
        target = place / file
        if number == at and target.exists():  # it is there only where it is watched
            shutil.rmtree(target) if target.is_dir() else target.unlink()

    return plain(perceptron(), after=after, out=place)


def _unwritable(at: int) -> Loop:
    """A file in the place of the folder."""
    place = _place()

    def after(model: Any, optimizer: Any, number: int) -> None:
        if number == at and place.exists():
            shutil.rmtree(place)
            place.write_text("not a folder")

    return plain(perceptron(), after=after, out=place)


RECIPES |= {
    "a folder": lambda: plain(perceptron(), out=_place()),
    "a folder, removed": lambda: _without("", 1),
    "a folder, removed at the end": lambda: _without("", 4),
    "a folder, manifest removed": lambda: _without("manifest.json", 2),
    "a folder, records removed": lambda: _without("records.sqlite", 2),
    "a folder, replaced by a file": lambda: _unwritable(3),
    "strict warnings": _strict,
    "strict warnings, everything raises": lambda: _strict(observe=[Raises()], sinks=[Raises()], alarms=[Raises()]),
    "strict warnings, a folder removed": lambda: (lambda loop: (setattr(loop, "strict", True), loop)[1])(
        _without("", 2)
    ),
    "a summary is printed": lambda: plain(perceptron(), quiet=False),
}


@recipe
def alarms_that_raise() -> Loop:
    loop = _strict(alarms=[_cry], on_alarm=_fail)
    loop.alarmed = True
    return loop


@recipe
def an_observer_that_changes_everything() -> Loop:
    """What it does to the snapshot's dictionary and to random generators stays there."""

    class Draws(eq.Spectrum):
        name = "draws"

        def observe(self, scene: Any, memory: Any, snapshot: Any) -> Any:
            import random

            import torch

            torch.randn(3)
            random.random()
            return super().observe(scene, memory, snapshot)

    return plain(perceptron(), observe=[Draws()])
