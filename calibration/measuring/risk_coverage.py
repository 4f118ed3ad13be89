"""The error rate among the calls that may run, for every share of calls that may."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from toolguard.calibration.measuring.metrics import checked_outcomes

POINTS = 101  # kept at most; every per cent


@dataclass(frozen=True, slots=True, kw_only=True)
class CoveragePoint:
    """Of the safest `coverage` of the calls, the share `risk` is wrong; both in [0, 1]."""

    coverage: float
    risk: float


def risk_coverage(
    risk: ArrayLike, wrong: ArrayLike, points: int = POINTS
) -> tuple[CoveragePoint, ...]:
    """Return the risk-coverage curve, rising in coverage and ending at 1; empty without a call.

    Calls of equal risk are accepted in random order, and each value is the mean over those orders.

    Args:
        risk: (calls,) larger where a call is more likely wrong.
        wrong: (calls,) outcomes.
        points: most points kept, evenly spread over the calls.

    Raises:
        ShapeError: if the inputs are not of one length.
        CalibrationError: if a risk is NaN, or a label is neither true nor false.

    Source: El-Yaniv & Wiener (2010), "On the foundations of noise-free selective classification".
    """
    scores, labels = checked_outcomes(risk, wrong)
    n = len(scores)
    if not n:
        return ()
    order = np.argsort(scores, kind="stable")
    _, group, sizes = np.unique(scores[order], return_inverse=True, return_counts=True)
    share = np.bincount(group, weights=labels[order].astype(np.float64)) / sizes
    errors = np.cumsum(share[group])  # (calls,) expected among the first 1, 2, ...
    counts = np.unique(np.linspace(1, n, min(points, n)).round().astype(int))
    return tuple(
        CoveragePoint(coverage=int(count) / n, risk=float(errors[count - 1]) / int(count))
        for count in counts
    )
