import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from equipoise.decomposition import sign_changes
from equipoise.losses import Exponential


@dataclass(frozen=True)
class Finished:
    """A run whose second weight turns negative, whose third only approaches zero, at a rate of two."""

    model: nn.Module = field(default_factory=lambda: nn.Linear(3, 1, bias=False))
    data: tuple = ()
    loss: object = Exponential()
    log_loss: float = 0.0
    defects: dict = field(default_factory=dict)
    example_weights: None = None
    missed: float = 0.0

    def at(self, s):
        turning = torch.tensor([[1.0, 1.0 - 1.2 * s, math.exp(-2 * s)]], dtype=torch.float64)
        return {"weight": math.exp(s) * torch.nn.functional.normalize(turning)}

    def last(self, observer, quantity, place=""):
        return 0.83 if (observer, quantity, place) == ("signs", "last_sign_change", "weight") else None

    @property
    def initial(self):
        return self.at(0.0)

    @property
    def final(self):
        return self.at(2.0)

    @property
    def saved(self):
        return {f"growth={s}": self.at(s) for s in (0.5, 1.0, 1.25, 1.5, 1.75)}


def test_the_last_change_is_the_first_saved_point_after_it():
    (row,) = sign_changes(Finished()).to_dict("records")
    assert row["weights"] == 3
    assert row["last_change"] == pytest.approx(1.0)  # at s = 0.83
    assert row["recorded"] == 0.83
    assert row["changing"] == 0
    assert row["undecided"] == 1
