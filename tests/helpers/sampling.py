"""A sample of the cases in every run, all of them in the slow one."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def sampled(cases: Iterable[Any], left_out: Sequence[Any]) -> list[Any]:
    """The cases as parameters of a test, marked as slow where they are among those `left_out`."""
    cases = list(cases)
    assert set(left_out) <= set(cases), "every case that is left out is one"
    values = lambda case: case if isinstance(case, tuple) else (case,)  # noqa: E731
    return [pytest.param(*values(case), marks=pytest.mark.slow) if case in left_out else case for case in cases]
