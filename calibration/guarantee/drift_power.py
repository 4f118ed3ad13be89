"""How often the drift test alarms without a shift, and how often it notices one, by resampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolguard.guard.distribution import Distribution
from toolguard.guard.drift import FEWEST, LEVEL, TEST, measure_drift
from toolguard.guard.errors import CalibrationError
from toolguard.guard.rate import wilson

Floats = NDArray[np.float64]
Columns = Mapping[str, Floats]
"""Signal -> (calls,) finite margins."""

WINDOWS = (50, 100, 200, 500)
REPEATS = 500


def drift_power(
    same: Columns,
    shifted: Columns | None,
    *,
    windows: Sequence[int] = WINDOWS,
    repeats: int = REPEATS,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the rates of alarm by window size, without and with a shift, JSON-ready.

    In each repeat a random half of `same` is the reference and the rest stands for what is met
    later, so no call is compared with itself. Windows are drawn without replacement; a size that
    there are too few calls for is undetermined.

    Args:
        same: margins of calls like those calibrated on, which calibration did not fit to.
        shifted: margins of calls from elsewhere; None measures false alarms alone.
        windows: numbers of live calls.
        repeats: draws a window size.
        seed: of the draws.

    Raises:
        CalibrationError: if signals differ, a window is smaller than the test takes, or `same` has
            fewer than two calls.
    """
    if shifted is not None and set(shifted) != set(same):
        raise CalibrationError("same and shifted calls must have the same signals")
    if not windows or min(windows) < FEWEST:
        raise CalibrationError(f"a window must hold at least {FEWEST} calls, found {windows}")
    if _count(same) < 2 or repeats < 1:
        raise CalibrationError("a reference and a window need calls, and one repeat at least")
    rng = np.random.default_rng(seed)
    return {
        "test": TEST,
        "level": LEVEL,
        "signals": sorted(same),
        "reference": _count(same) // 2,
        "same": _count(same),
        "shifted": None if shifted is None else _count(shifted),
        "windows": [_alarm_rates(same, shifted, window, repeats, rng) for window in windows],
    }


def _alarm_rates(
    same: Columns, shifted: Columns | None, window: int, repeats: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Return the rates of alarm at one window size."""
    half = _count(same) // 2
    false: list[bool] = []
    found: list[bool] = []
    for _ in range(repeats):
        order = rng.permutation(_count(same))
        reference = {name: Distribution.of(values[order[:half]]) for name, values in same.items()}
        if window <= len(order) - half:
            false.append(_alarms(same, order[half : half + window], reference))
        if shifted is not None and window <= _count(shifted):
            drawn = rng.permutation(_count(shifted))[:window]
            found.append(_alarms(shifted, drawn, reference))
    return {
        "window": window,
        "false_alarm": wilson(sum(false), len(false)).to_dict(),
        "detected": wilson(sum(found), len(found)).to_dict(),
    }


def _count(columns: Columns) -> int:
    return min((len(values) for values in columns.values()), default=0)


def _alarms(
    columns: Columns, rows: NDArray[np.int64], reference: Mapping[str, Distribution]
) -> bool:
    live = {name: values[rows].tolist() for name, values in columns.items()}
    return measure_drift(live, reference).state == "alarm"
