"""Metrics on cases worked out by hand, against references, and on degenerate input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from toolguard.calibration.measuring.metrics import (
    aurc,
    auroc,
    brier,
    calibration_error,
    paired_difference,
    quartile_errors,
)
from toolguard.guard.errors import CalibrationError, ShapeError
from toolguard.guard.rate import Rate, wilson


def labelled(n: int, seed: int, signal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < 0.3
    return rng.normal(size=n) + signal * wrong, wrong


def undetermined(rate: Rate) -> bool:
    return rate.value is None and rate.low is None and rate.high is None


def test_wilson_by_hand() -> None:
    """The interval of 23 of 30 is the published one, and the ends of the scale are kept."""
    rate = wilson(23, 30)
    assert rate.value == pytest.approx(23 / 30)
    assert (rate.low, rate.high) == pytest.approx((0.591, 0.882), abs=5e-4)
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0
    assert wilson(0, 10).high == pytest.approx(0.2775, abs=1e-4)


def test_wilson_without_trials_is_undetermined() -> None:
    """No trial gives None in all three places, and more successes than trials raise."""
    assert wilson(0, 0).to_dict() == {"value": None, "low": None, "high": None, "n": 0}
    with pytest.raises(CalibrationError):
        wilson(2, 1)


def test_auroc_by_hand() -> None:
    """Of six pairs four are right and one is a tie, so the area is 4.5 / 6."""
    rate = auroc([0.9, 0.4, 0.5, 0.4, 0.1], [True, True, False, False, False])
    assert rate.value == pytest.approx(4.5 / 6)
    assert rate.n == 5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=40))
def test_auroc_equals_reference(pairs: list[tuple[int, bool]]) -> None:
    """With any ties the area equals scikit-learn's and lies in its interval's range."""
    risk, wrong = zip(*pairs, strict=True)
    rate = auroc(risk, wrong)
    if len(set(wrong)) < 2:
        assert undetermined(rate)
    else:
        assert rate.value == pytest.approx(roc_auc_score(wrong, risk))
        assert 0 <= rate.low <= rate.high <= 1


def test_auroc_interval_covers() -> None:
    """The 95 % interval holds the true area in about 95 % of repeated draws."""
    true = 0.5 * (1 + math.erf(1.0 / 2))  # two unit normals one apart
    rates = [auroc(*labelled(200, seed)) for seed in range(400)]
    covered = np.mean([rate.low <= true <= rate.high for rate in rates])
    assert 0.92 <= covered <= 0.98


def test_perfect_auroc_keeps_an_honest_interval() -> None:
    """Perfect order of a few calls gives the area 1 but an interval without certainty."""
    rate = auroc([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [1, 1, 1, 0, 0, 0])
    assert (rate.value, rate.high) == (1.0, 1.0)
    assert rate.low == pytest.approx(wilson(3, 3).low)


def test_aurc_by_hand() -> None:
    """The area is the mean of the error rates at coverages 1/4 to 4/4."""
    rate = aurc([0.1, 0.2, 0.3, 0.4], [False, True, False, True])
    assert rate.value == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)


def test_aurc_averages_ties() -> None:
    """Calls of equal risk count with their mean error, whatever order they come in."""
    risk = [0.1, 0.2, 0.2, 0.3]
    expected = (0 + 0.5 / 2 + 1 / 3 + 1 / 4) / 4
    assert aurc(risk, [False, True, False, False]).value == pytest.approx(expected)
    assert aurc(risk, [False, False, True, False]).value == pytest.approx(expected)


def test_useless_risk_has_the_error_rate_as_area() -> None:
    """If all risks are equal, every coverage has the overall error rate."""
    assert aurc([0.5] * 10, [True] * 3 + [False] * 7).value == pytest.approx(0.3)


def test_aurc_interval_is_seeded_and_holds_the_value() -> None:
    """The bootstrap is repeatable and its interval holds the estimate."""
    risk, wrong = labelled(150, 0)
    rate = aurc(risk, wrong, resamples=200, seed=1)
    assert rate == aurc(risk, wrong, resamples=200, seed=1)
    assert rate != aurc(risk, wrong, resamples=200, seed=2)
    assert rate.low < rate.value < rate.high


@pytest.mark.parametrize("wrong", [[], [False] * 5, [True] * 5])
def test_one_class_is_undetermined(wrong: list[bool]) -> None:
    """Without both classes the ranking metrics are None, not NaN."""
    risk = list(range(len(wrong)))
    assert undetermined(auroc(risk, wrong))
    assert undetermined(aurc(risk, wrong))
    assert undetermined(paired_difference("auroc", risk, risk, wrong))


@pytest.mark.parametrize(("metric", "sign"), [("auroc", 1), ("aurc", -1)])
def test_paired_difference_sees_the_better_signal(metric: str, sign: int) -> None:
    """A clearly better signal has a difference whose interval leaves out 0, on its better side."""
    better, wrong = labelled(400, 3, signal=2.0)
    worse = np.random.default_rng(4).normal(size=400)
    rate = paired_difference(metric, better, worse, wrong, resamples=200)
    measure = {"auroc": auroc, "aurc": aurc}[metric]
    assert rate.value == pytest.approx(measure(better, wrong).value - measure(worse, wrong).value)
    assert min(sign * rate.low, sign * rate.high) > 0


def test_paired_difference_of_equal_signals_is_zero() -> None:
    """A signal against a monotone copy of itself differs by exactly 0, resampled or not."""
    risk, wrong = labelled(100, 5)
    rate = paired_difference("auroc", risk, np.exp(risk), wrong, resamples=50)
    assert (rate.value, rate.low, rate.high) == (0.0, 0.0, 0.0)


def test_quartiles_by_hand() -> None:
    """Of twelve calls the lowest three hold two errors and the highest three one."""
    wrong = [True, True, False] + [False] * 6 + [False, True, False]
    found = quartile_errors(range(12), wrong)
    assert found.low.value == pytest.approx(2 / 3)
    assert found.high.value == pytest.approx(1 / 3)
    assert found.ratio.value == pytest.approx(2.0)
    width = 1.959964 * math.sqrt(1 / 2 - 1 / 3 + 1 - 1 / 3)
    assert found.ratio.low == pytest.approx(2 * math.exp(-width), rel=1e-4)


def test_zero_errors_on_top_give_the_half_count_ratio() -> None:
    """With no error in the top quarter both quarters get half an error and half a right call."""
    found = quartile_errors(range(40), [True] * 4 + [False] * 36)
    assert found.high.value == 0.0
    assert found.ratio.value == pytest.approx((4.5 / 11) / (0.5 / 11))
    assert 0 < found.ratio.low < found.ratio.value < found.ratio.high < math.inf


def test_quartiles_take_in_ties() -> None:
    """Calls that tie at a quarter's edge all belong to it, whatever the input's order."""
    margin = [0, 1, 1, 1, 2, 3, 4, 5]
    wrong = [False, True, False, False, False, False, False, True]
    found = quartile_errors(margin, wrong)
    assert (found.low.value, found.low.n) == (0.25, 4)
    assert quartile_errors(margin[::-1], wrong[::-1]) == found


@pytest.mark.parametrize("n", [0, 3, 8])
def test_quartiles_without_errors_have_no_ratio(n: int) -> None:
    """Without errors, or with fewer than four calls, the ratio is None."""
    assert undetermined(quartile_errors(range(n), [False] * n).ratio)


def test_calibration_error_by_hand() -> None:
    """Two bins off by 0.1 and 0.3 with equal mass give 0.2; a perfect forecast gives 0."""
    probability = [0.1] * 4 + [0.8] * 4
    wrong = [False] * 4 + [True, True, False, False]
    assert calibration_error(probability, wrong, bins=2) == pytest.approx(0.2)
    assert calibration_error([0.0, 1.0], [False, True]) == 0.0


def test_calibration_error_keeps_ties_in_one_bin() -> None:
    """One probability for all calls is one bin, however the labels are sorted."""
    assert calibration_error([0.5] * 10, [True] * 5 + [False] * 5) == pytest.approx(0.0)


def test_brier_by_hand() -> None:
    """The Brier score is the mean squared error of the probability."""
    assert brier([0.2, 0.6], [False, True]) == pytest.approx((0.04 + 0.16) / 2)


def test_no_calls_have_no_calibration() -> None:
    """Without a call the calibration measures are None."""
    assert calibration_error([], []) is None
    assert brier([], []) is None


def test_infinite_margins_rank_at_the_ends() -> None:
    """Infinite risks are ranked like any other number."""
    assert auroc([math.inf, 0.0, -math.inf], [True, False, False]).value == 1.0
    assert aurc([math.inf, 0.0, -math.inf], [True, False, False]).value == pytest.approx(1 / 9)


def test_bad_input_is_refused() -> None:
    """NaN, labels that are not binary, and lengths that differ raise."""
    with pytest.raises(CalibrationError):
        auroc([math.nan, 1.0], [True, False])
    with pytest.raises(CalibrationError):
        aurc([0.0, 1.0], [0, 2])
    with pytest.raises(ShapeError):
        brier([0.1], [True, False])
