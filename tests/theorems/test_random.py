"""A sample of `benchmarks/certificates.py`: certificates of random networks, however trained, in 34 digits."""

import mpmath
import pytest

import certificates


@pytest.mark.parametrize(
    "seed", [5, 6, pytest.param(8, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.slow)]
)
def test_verified_claims_hold_in_34_digits_and_no_honest_run_is_refused(seed):
    with mpmath.workdps(certificates.DIGITS):
        found = certificates.verdict_of(certificates.case_of(seed))
    assert found.problems == []
    assert found.checked.total() > 0
