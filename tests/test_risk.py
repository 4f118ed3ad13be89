"""Risk control on counted cases, and its guarantee over repeated draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import beta, binom

from toolguard.calibration.guarantee.risk import (
    choose_threshold,
    label_free_thresholds,
    last_rejected,
    measure_risk,
    smallest_testable,
)
from toolguard.guard.errors import CalibrationError, ShapeError

TARGET, CONFIDENCE, REPEATS = 0.05, 0.95, 400

# Chance of an error at score s, and (below) the true error rate of calls with score <= t.
LOCAL_RISKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "steep": lambda s: 0.4 * s**2,
    "flat_just_above": lambda s: np.full_like(s, 0.0501),
    "not_monotone": lambda s: np.where((s > 0.2) & (s < 0.35), 0.12, 0.02 + 0.1 * s),
}
GRID = np.linspace(0, 1, 20001)


def draw(kind: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    scores = rng.random(n)
    return scores, rng.random(n) < LOCAL_RISKS[kind](scores)


def true_risk(kind: str, threshold: float | None) -> float:
    """Return the population's error rate below the threshold; 0 if nothing is accepted."""
    accepted = GRID[threshold >= GRID] if threshold is not None else GRID[:0]
    return float(LOCAL_RISKS[kind](accepted).mean()) if len(accepted) else 0.0


def violations(kind: str, n: int, choose: Callable[..., float | None]) -> float:
    rng = np.random.default_rng(11)
    chosen = [choose(*draw(kind, n, rng)) for _ in range(REPEATS)]
    return float(np.mean([true_risk(kind, threshold) > TARGET for threshold in chosen]))


def controlled(scores: np.ndarray, wrong: np.ndarray) -> float | None:
    return choose_threshold(scores, wrong, target=TARGET, confidence=CONFIDENCE).threshold


def best_empirical(scores: np.ndarray, wrong: np.ndarray) -> float | None:
    """Return the largest threshold whose observed error rate meets the target: no correction."""
    order = np.argsort(scores)
    rates = np.cumsum(wrong[order]) / np.arange(1, len(scores) + 1)
    good = np.flatnonzero(rates <= TARGET)
    return float(scores[order][good[-1]]) if len(good) else None


def best_pointwise(scores: np.ndarray, wrong: np.ndarray) -> float | None:
    """Return the largest threshold that one uncorrected exact test would pass."""
    order = np.argsort(scores)
    p_values = binom.cdf(np.cumsum(wrong[order]), np.arange(1, len(scores) + 1), TARGET)
    good = np.flatnonzero(p_values <= 1 - CONFIDENCE)
    return float(scores[order][good[-1]]) if len(good) else None


SLACK = 1 - CONFIDENCE + 3 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / REPEATS)


@pytest.mark.parametrize("n", [150, 400, 1500])
@pytest.mark.parametrize("kind", LOCAL_RISKS)
def test_guarantee_holds_over_repeated_draws(kind: str, n: int) -> None:
    """The true error rate exceeds the target in at most 5 % of draws, plus binomial slack."""
    assert violations(kind, n, controlled) <= SLACK


@pytest.mark.parametrize("choose", [best_empirical, best_pointwise])
def test_uncorrected_tuning_breaks_the_guarantee(choose: Callable[..., float | None]) -> None:
    """Picking the best threshold without correction violates the target far too often."""
    assert violations("flat_just_above", 400, choose) > 2 * SLACK


def test_guarantee_holds_for_a_foreign_sequence() -> None:
    """A sequence fixed beforehand keeps the guarantee where the error rate is not monotone."""
    grid = np.linspace(0.02, 1, 50).tolist()

    def choose(scores: np.ndarray, wrong: np.ndarray) -> float | None:
        return choose_threshold(scores, wrong, thresholds=grid).threshold

    assert violations("not_monotone", 400, choose) <= SLACK


def test_guarantee_holds_over_splits_with_ties() -> None:
    """Random splits of one finite population of rounded scores keep the target on the rest."""
    rng = np.random.default_rng(5)
    scores, wrong = draw("steep", 20000, rng)
    scores = np.round(scores, 1)
    missed = 0
    for _ in range(300):
        held_out = np.zeros(len(scores), dtype=bool)
        held_out[rng.choice(len(scores), 500, replace=False)] = True
        found = choose_threshold(scores[held_out], wrong[held_out])
        rest = measure_risk(scores[~held_out], wrong[~held_out], found.threshold)
        missed += rest.realised.value is not None and rest.realised.value > TARGET
    assert missed / 300 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_power_on_a_good_signal() -> None:
    """With 1,500 calls most of the coverage that a known population would allow is reached."""
    rng = np.random.default_rng(3)
    coverages = [choose_threshold(*draw("steep", 1500, rng)).coverage.value for _ in range(40)]
    ideal = max(t for t in np.linspace(0, 1, 101) if true_risk("steep", t) <= TARGET)
    assert np.mean(coverages) > 0.7 * ideal


def test_smallest_sample_by_hand() -> None:
    """59 right calls show an error rate below 5 % with 95 % confidence, 58 do not."""
    assert smallest_testable(0.05, 0.05) == 59
    right = np.zeros(59, dtype=bool)
    scores = np.linspace(0, 0.5, 59)
    assert choose_threshold(scores, right).threshold == 1.0
    assert choose_threshold(scores[:58], right[:58]).threshold is None


def test_result_is_counted_by_hand() -> None:
    """Coverage, realised risk and bound are those of the accepted calls."""
    scores = np.concatenate([np.linspace(0, 0.2, 400), np.linspace(0.8, 1, 100)])
    wrong = np.arange(500) >= 400
    wrong[[50, 150]] = True
    found = choose_threshold(scores, wrong)
    accepted = scores <= found.threshold
    assert 0.15 < found.threshold < 0.9
    assert found.coverage.value == pytest.approx(accepted.mean())
    assert found.realised.value == pytest.approx(wrong[accepted].mean())
    k, m = wrong[accepted].sum(), accepted.sum()
    assert found.upper_bound == pytest.approx(beta.ppf(0.95, k + 1, m - k))
    assert found.upper_bound <= TARGET


@pytest.mark.parametrize("n", [0, 10, 300])
def test_nothing_safe_gives_no_threshold(n: int) -> None:
    """Too few calls, or errors alone, allow nothing: no threshold, coverage 0, no error rate."""
    found = choose_threshold(np.linspace(0, 1, n), np.ones(n, dtype=bool))
    assert found.threshold is None
    assert found.upper_bound is None
    assert found.realised.value is None
    assert found.coverage.value == (0.0 if n else None)
    assert measure_risk([0.0], [False], found.threshold).coverage.value == 0.0


def test_sequence_ignores_labels() -> None:
    """The number of thresholds tested depends on the scores alone."""
    scores, wrong = draw("steep", 400, np.random.default_rng(0))
    assert choose_threshold(scores, wrong).steps == choose_threshold(scores, ~wrong).steps


def test_sequence_accepts_growing_counts() -> None:
    """Thresholds rise to 1, and each accepts the count it was made for."""
    scores = np.arange(100) / 100
    sequence = label_free_thresholds(scores, 50)
    counts = [int((scores <= threshold).sum()) for threshold in sequence]
    assert counts == [50, 55, 61, 68, 75, 83, 92, 100]
    assert sequence[-1] == 1.0
    assert label_free_thresholds(scores, 101) == []


def test_ties_are_taken_together() -> None:
    """Calls of one score are all accepted or all refused."""
    scores = np.repeat([0.1, 0.3, 0.6], 100)
    for threshold in label_free_thresholds(scores, 60):
        assert int((scores <= threshold).sum()) in {0, 100, 200, 300}


def test_levels_pass_on_by_hand() -> None:
    """A rejection adds its level to the next share; a failure loses what was carried."""
    shares = np.array([0.02, 0.0, 0.03, 0.0])
    assert last_rejected(np.array([0.02, 0.02, 0.05, 0.05]), shares) == 3
    assert last_rejected(np.array([0.03, 0.0, 0.04, 0.04]), shares) is None
    assert last_rejected(np.array([0.01, 0.03, 0.03, 0.04]), shares) == 2
    assert last_rejected(np.array([]), np.array([])) is None


def test_bad_input_is_refused() -> None:
    """Scores outside [0, 1], NaN, unusable targets and lengths that differ raise."""
    for arguments in (
        {"probability": [1.2], "wrong": [True]},
        {"probability": [float("nan")], "wrong": [True]},
        {"probability": [0.2], "wrong": [True], "target": 0.0},
        {"probability": [0.2], "wrong": [True], "confidence": 0.3},
    ):
        with pytest.raises(CalibrationError):
            choose_threshold(**arguments)
    with pytest.raises(ShapeError):
        choose_threshold([0.1], [True, False])
