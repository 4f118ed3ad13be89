"""The power of the drift test: rare false alarms, shifts noticed, and honest gaps."""

from __future__ import annotations

import numpy as np
import pytest

from toolguard.calibration.guarantee.drift_power import drift_power
from toolguard.guard.errors import CalibrationError


def margins(n, *, shift=0.0, seed=0):
    """Made-up margins of two signals."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=n) - shift for name in ("logprob", "activation")}


def test_power_grows_with_the_window_and_false_alarms_stay_rare():
    """Without a shift the test is silent; a moderate one is noticed sooner with more calls."""
    found = drift_power(
        margins(800), margins(400, shift=0.6, seed=1), windows=(50, 100, 300), repeats=100
    )
    rows = found["windows"]
    assert all(row["false_alarm"]["value"] <= 0.02 for row in rows)
    noticed = [row["detected"]["value"] for row in rows]
    assert noticed == sorted(noticed)
    assert noticed[0] < 0.9 < noticed[-1]
    assert (found["reference"], found["same"], found["shifted"]) == (400, 800, 400)
    assert all(row["detected"]["n"] == 100 for row in rows)


def test_no_call_is_compared_with_itself():
    """Reference and window never share a call: a window larger than the rest is undetermined."""
    found = drift_power(margins(120), None, windows=(60, 61), repeats=5)
    assert found["windows"][0]["false_alarm"]["n"] == 5
    assert found["windows"][1]["false_alarm"] == {"value": None, "low": None, "high": None, "n": 0}
    assert found["windows"][0]["detected"]["value"] is None
    assert found["shifted"] is None


def test_too_few_shifted_calls_are_said():
    """A window is not filled up by drawing a call twice."""
    found = drift_power(margins(400), margins(70, shift=3, seed=2), windows=(50, 100), repeats=10)
    assert found["windows"][0]["detected"]["value"] == 1.0
    assert found["windows"][1]["detected"]["n"] == 0


def test_the_same_seed_gives_the_same_rates():
    """The rates are a function of margins, options and seed."""
    args = (margins(200), margins(100, shift=0.5, seed=3))
    once = drift_power(*args, windows=(50,), repeats=20, seed=4)
    assert once == drift_power(*args, windows=(50,), repeats=20, seed=4)


@pytest.mark.parametrize(
    ("same", "shifted", "windows", "repeats"),
    [
        (margins(100), {"logprob": np.zeros(100)}, (50,), 5),
        (margins(100), None, (49,), 5),
        (margins(100), None, (), 5),
        (margins(1), None, (50,), 5),
        ({}, None, (50,), 5),
        (margins(100), None, (50,), 0),
    ],
)
def test_what_cannot_be_measured_is_refused(same, shifted, windows, repeats):
    """Unlike signals, windows below what the test takes, and too few calls have a typed error."""
    with pytest.raises(CalibrationError):
        drift_power(same, shifted, windows=windows, repeats=repeats)
