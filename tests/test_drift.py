"""The drift alarm and what it is made of: distributions, the two-sample test, histograms."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from toolguard.adapters.dashboard.charts import HEIGHT, WIDTH, histogram
from toolguard.guard.distribution import Distribution
from toolguard.guard.drift import ks_distance, ks_p_value, measure_drift
from toolguard.guard.errors import ConfigError


def test_the_test_is_the_two_sample_test_of_smirnov():
    """With all values kept, distance and p agree with SciPy's asymptotic two-sample test."""
    rng = np.random.default_rng(0)
    live, kept = rng.normal(0.3, 1, 150), rng.normal(0, 1, 180)
    reference = Distribution.of(kept, points=1000)
    known = ks_2samp(np.round(live, 6), np.round(kept, 6), method="asymp")
    distance = ks_distance([round(x, 6) for x in live], reference)
    # SciPy also looks at the live values; ours may miss one step of the live function.
    assert known.statistic - 1 / 150 <= distance <= known.statistic
    assert ks_p_value(known.statistic, 150, 180) == pytest.approx(known.pvalue)


def test_a_shift_raises_the_alarm_and_chance_does_not():
    """Margins from elsewhere alarm with p and n; margins of the same kind do not."""
    rng = np.random.default_rng(1)
    reference = {
        "logprob": Distribution.of(rng.normal(size=600)),
        "activation": Distribution.of(rng.normal(size=600)),
        "p_wrong": Distribution.of(rng.uniform(size=600)),
    }
    same = measure_drift(
        {"logprob": rng.normal(size=300), "activation": rng.normal(size=300)}, reference
    )
    assert same.state == "calm"
    moved = measure_drift(
        {"logprob": rng.normal(size=300), "activation": rng.normal(0.6, 1, size=300)}, reference
    )
    assert moved.state == "alarm"
    first = moved.signals[0]
    assert (first.signal, first.live, first.reference) == ("activation", 300, 600)
    assert first.p < 0.001 < moved.signals[1].p
    assert first.median_live > first.median_reference


def test_false_alarms_are_as_rare_as_said():
    """Of two hundred looks at margins without drift, none or one alarms at 0.001."""
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(200):
        reference = {"logprob": Distribution.of(rng.normal(size=400))}
        alarms += measure_drift({"logprob": rng.normal(size=200)}, reference).state == "alarm"
    assert alarms <= 1


@pytest.mark.parametrize(
    ("live", "kept", "state"),
    [(0, 0, "no_reference"), (49, 100, "too_few"), (0, 100, "too_few"), (50, 100, "calm")],
)
def test_the_alarm_says_when_it_cannot_tell(live, kept, state):
    """Without a reference, or with few readings, nothing is claimed."""
    rng = np.random.default_rng(3)
    reference = {"logprob": Distribution.of(rng.normal(size=kept))}
    assert measure_drift({"logprob": rng.normal(size=live)}, reference).state == state


@given(st.lists(st.floats(-1e6, 1e6), max_size=60), st.integers(1, 30))
def test_a_distribution_is_exact_where_it_is_kept(numbers, points):
    """Every kept share is the sample's own, the last is 1, and it survives the file."""
    found = Distribution.of(numbers, points=points)
    sample = [round(x, 6) for x in numbers]
    assert found.n == len(sample)
    assert len(found.values) <= points
    for value, share in zip(found.values, found.shares, strict=True):
        assert share == sum(x <= value for x in sample) / len(sample)
        assert found.share_at(value) == share
    assert Distribution.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_infinite_margins_have_no_place_in_a_distribution():
    """A menu of one tool has an infinite margin; it is left out, as in the records."""
    assert Distribution.of([1.0, float("inf"), float("nan")]).n == 1
    with pytest.raises(ConfigError, match="no quantile"):
        Distribution.of([]).quantile(0.5)


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"n": 1, "values": [1.0], "shares": [0.5]},
        {"n": 2, "values": [2.0, 1.0], "shares": [0.5, 1.0]},
        {"n": 1, "values": ["x"], "shares": [1.0]},
        {"n": 0, "values": [1.0], "shares": [1.0]},
        {"n": 1, "values": [float("nan")], "shares": [1.0]},
    ],
)
def test_a_distribution_that_is_none_is_refused(data):
    """Only rising values with shares that rise to 1 are a distribution."""
    with pytest.raises(ConfigError):
        Distribution.from_dict(data)


@given(
    st.lists(st.floats(-1e3, 1e3), max_size=40),
    st.lists(st.floats(-1e3, 1e3), max_size=40),
)
def test_a_histogram_stays_within_its_frame(live, kept):
    """All bars together hold all live numbers, and none stands out of the drawing."""
    drawn = histogram("x", live, Distribution.of(kept))
    if drawn is None:
        assert not live
        assert not kept
        return
    total = sum(bar.height for bar in drawn.bars) / HEIGHT * drawn.top
    assert total == pytest.approx(1.0 if live else 0.0, abs=0.02)
    assert all(bar.y >= -0.01 and bar.x + bar.width <= WIDTH for bar in drawn.bars)
