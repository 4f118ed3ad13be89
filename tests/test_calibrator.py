"""Calibrator as a value, and its fit from labelled margins."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolguard.calibration.fitting.fit_calibrator import fit_calibrator
from toolguard.guard.calibrator import Calibrator
from toolguard.guard.errors import CalibrationError, ConfigError, ReadoutError, ShapeError

FIELDS = {
    "features": ("logprob", "activation"),
    "weights": (-2.0, -1.0),
    "intercept": -1.0,
    "centres": (1.0, 0.0),
    "scales": (2.0, 0.5),
    "clip": 3.0,
}
CALIBRATOR = Calibrator(**FIELDS)
EXTENDED = st.floats(allow_nan=False, allow_infinity=True)


def drawn(n: int, seed: int, slope: float = 1.5) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return margins of an informative and a useless feature, and labels."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(2.0, 2.0, n)
    wrong = rng.random(n) < 1 / (1 + np.exp(slope * margin))
    return {"logprob": margin, "noise": rng.normal(size=n)}, wrong


def test_probability_by_hand() -> None:
    """The probability is the sigmoid of intercept plus weighted scaled margins."""
    found = CALIBRATOR.probability({"logprob": 2.0, "activation": 0.25, "other": math.nan})
    assert found == pytest.approx(1 / (1 + math.exp(1 + 2 * 0.5 + 0.5)))


def test_infinite_margins_are_clipped() -> None:
    """An infinite margin counts as one at the clip, and the result stays inside [0, 1]."""
    safest = CALIBRATOR.probability({"logprob": math.inf, "activation": math.inf})
    assert safest == CALIBRATOR.probability({"logprob": 7.0, "activation": 1.5})
    assert 0 < safest < CALIBRATOR.probability({"logprob": -math.inf, "activation": -math.inf}) <= 1


@settings(max_examples=200, deadline=None)
@given(EXTENDED, EXTENDED, EXTENDED)
def test_larger_margin_is_never_riskier(first: float, second: float, other: float) -> None:
    """Raising one margin, however extreme, never raises the probability."""
    low, high = sorted((first, second))
    assert CALIBRATOR.probability({"logprob": high, "activation": other}) <= CALIBRATOR.probability(
        {"logprob": low, "activation": other}
    )


def test_many_equal_one_by_one() -> None:
    """The vectorised probabilities equal the single ones bit for bit."""
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=101) for name in ("logprob", "activation")}
    many = CALIBRATOR.probabilities(columns)
    rows = zip(columns["logprob"], columns["activation"], strict=True)
    assert many.tolist() == [
        CALIBRATOR.probability({"logprob": a, "activation": b}) for a, b in rows
    ]


def test_json_round_trip() -> None:
    """A calibrator survives plain JSON unchanged."""
    assert Calibrator.from_dict(json.loads(json.dumps(CALIBRATOR.to_dict()))) == CALIBRATOR


@pytest.mark.parametrize(
    "change",
    [
        {"weights": (0.1, -1.0)},
        {"weights": (-1.0,)},
        {"scales": (0.0, 1.0)},
        {"clip": 0.0},
        {"intercept": math.nan},
        {"features": ("a", "a")},
        {"features": (), "weights": (), "centres": (), "scales": ()},
        {"centres": ("x", 0.0)},
        {"features": "ab"},
        {"extra": 1},
    ],
)
def test_unusable_fields_are_refused(change: dict) -> None:
    """Positive weights, lengths that differ, numbers that are none, and unknown keys raise."""
    with pytest.raises(ConfigError):
        Calibrator.from_dict({**CALIBRATOR.to_dict(), **change})


def test_missing_or_nan_margin_is_refused() -> None:
    """A margin that is absent or NaN, or columns of different length, raise instead of passing."""
    with pytest.raises(ReadoutError, match="activation"):
        CALIBRATOR.probability({"logprob": 1.0})
    with pytest.raises(ReadoutError, match="NaN"):
        CALIBRATOR.probability({"logprob": math.nan, "activation": 1.0})
    with pytest.raises(ShapeError):
        CALIBRATOR.probabilities({"logprob": [1.0, 2.0], "activation": [1.0]})


def test_fit_recovers_known_probabilities() -> None:
    """On fresh draws the fitted probabilities are close to the true ones."""
    calibrator = fit_calibrator(*drawn(5000, seed=1))
    fresh, _ = drawn(2000, seed=2)
    true = 1 / (1 + np.exp(1.5 * fresh["logprob"]))
    assert np.abs(calibrator.probabilities(fresh) - true).mean() < 0.01


def test_fit_keeps_the_sign() -> None:
    """A margin that points the wrong way gets the weight 0, not a positive one."""
    margins, wrong = drawn(1000, seed=3)
    calibrator = fit_calibrator({"backwards": -margins["logprob"]}, wrong)
    assert calibrator.weights == (0.0,)
    assert calibrator.probability({"backwards": 0.0}) == pytest.approx(wrong.mean(), abs=0.01)


def test_fit_without_errors_is_flat_and_small() -> None:
    """Without any error the probability is 1 / (n + 2) everywhere."""
    calibrator = fit_calibrator({"m": np.arange(8.0)}, np.zeros(8))
    assert calibrator.weights == (0.0,)
    assert calibrator.probability({"m": -50.0}) == pytest.approx(0.1)


def test_fit_of_errors_alone_is_flat_and_large() -> None:
    """With errors alone the probability is (n + 1) / (n + 2) everywhere."""
    calibrator = fit_calibrator({"m": np.arange(8.0)}, np.ones(8))
    assert calibrator.probability({"m": 3.0}) == pytest.approx(0.9)


def test_fit_of_separable_data_is_finite() -> None:
    """Perfectly separated labels give finite weights and no certainty."""
    margins = np.concatenate([np.linspace(-2, -1, 20), np.linspace(1, 2, 20)])
    calibrator = fit_calibrator({"m": margins}, margins < 0, l2=1e-6)
    assert 0 < calibrator.probability({"m": 2.0}) < 0.06
    assert 0.94 < calibrator.probability({"m": -2.0}) < 1


def test_fit_takes_infinite_and_constant_margins() -> None:
    """Infinite margins and a margin that never varies do not break the fit."""
    calibrator = fit_calibrator(
        {"m": [math.inf, 1.0, 2.0, -math.inf], "same": [1.0] * 4}, [False, False, False, True]
    )
    assert calibrator.weights[0] < 0
    assert all(math.isfinite(value) for value in (*calibrator.centres, *calibrator.scales))


def test_fit_is_deterministic() -> None:
    """The same data give the same calibrator."""
    assert fit_calibrator(*drawn(300, seed=4)) == fit_calibrator(*drawn(300, seed=4))


def test_fit_refuses_what_it_cannot_use() -> None:
    """No rows, no features, NaN, never finite margins, and unequal lengths raise."""
    for margins, wrong in (
        ({"m": []}, []),
        ({}, [True]),
        ({"m": [math.nan, 1.0]}, [True, False]),
        ({"m": [math.inf, math.inf]}, [True, False]),
        ({"m": [1.0, 2.0]}, [0, 2]),
    ):
        with pytest.raises(CalibrationError):
            fit_calibrator(margins, wrong)
    with pytest.raises(ShapeError):
        fit_calibrator({"m": [1.0]}, [True, False])
