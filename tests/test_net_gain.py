"""The gain of a correction: an interval whose sign is that of the exact test."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from toolguard.calibration.correction.net_gain import net_gain
from toolguard.guard.errors import CalibrationError


def test_the_sign_is_that_of_the_exact_test():
    """The interval leaves out 0 just where McNemar's exact test rejects at 5 %."""
    for fixed in range(16):
        for broken in range(16):
            found = net_gain(fixed, broken, 40)
            changed = fixed + broken
            rejects = bool(changed and binomtest(fixed, changed).pvalue < 0.05)
            assert (found.low > 0 or found.high < 0) is rejects
            assert -1 <= found.low <= found.value <= found.high <= 1


def test_fixed_and_broken_are_two_sides_of_one_thing():
    """To swap them mirrors the interval."""
    one, other = net_gain(9, 2, 50), net_gain(2, 9, 50)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


def test_calls_that_change_nothing_still_say_something():
    """No change in 100 calls bounds the gain more closely than none in 10, and both hold 0."""
    few, many = net_gain(0, 0, 10), net_gain(0, 0, 100)
    assert many.value == 0
    assert few.low < many.low < 0 < many.high < few.high


def test_even_all_of_few_calls_are_not_certain():
    """Three of three fixed is a value of 1 with a lower end that three calls allow."""
    found = net_gain(3, 0, 3)
    assert found.value == 1
    assert found.low < 0


def test_more_confidence_is_a_longer_interval():
    """Shared out among several candidates the level makes each interval longer."""
    assert net_gain(12, 2, 40, 0.99).low < net_gain(12, 2, 40, 0.95).low


def test_without_calls_there_is_no_gain():
    """Nothing in, nothing known."""
    assert net_gain(0, 0, 0).value is None


@pytest.mark.parametrize("counts", [(-1, 0, 5), (0, -1, 5), (3, 3, 5)])
def test_counts_that_do_not_fit_are_refused(counts):
    """More changes than calls, or fewer than none, are a mistake of the caller."""
    with pytest.raises(CalibrationError, match="no gain"):
        net_gain(*counts)
