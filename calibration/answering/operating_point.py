"""How many turns that should not be calls get through where 95 % of the right calls do."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolguard.calibration.measuring.metrics import checked_outcomes
from toolguard.guard.errors import CalibrationError
from toolguard.guard.rate import Rate, undetermined, wilson

KEPT = 0.95  # of the right calls, as in "false positive rate at 95 % true positive rate"
_RESAMPLES = 500

Floats = NDArray[np.float64]


def passed_at_kept(
    risk: ArrayLike,
    unneeded: ArrayLike,
    *,
    kept: float = KEPT,
    confidence: float = 0.95,
    seed: int = 0,
) -> Rate:
    """Return the share of unneeded calls let through where at least `kept` of the right ones are.

    This is the false positive rate at 95 % true positive rate of work on out-of-distribution
    inputs, a right call being what should be accepted. The threshold is the smallest that keeps so
    many of these calls, so the interval is a bootstrap that draws both kinds anew and chooses it
    again; it is never narrower than Wilson's, which takes the threshold as given.

    Args:
        risk: (turns,) larger where a call is more likely unneeded.
        unneeded: (turns,) true where no call was right.
        kept: share of the right calls to keep, in (0, 1].
        confidence: of the interval.
        seed: of the bootstrap.

    Returns: the rate, n being the unneeded calls; undetermined unless both kinds occur.

    Raises:
        CalibrationError: if `kept` cannot be used, or a risk is NaN.
        ShapeError: if the inputs do not fit each other.

    Source: Liang, Li & Srikant (2018), "Enhancing the reliability of out-of-distribution image
        detection in neural networks", section 4.2.
    """
    if not 0 < kept <= 1:
        raise CalibrationError(f"the share to keep must lie in (0, 1], found {kept}")
    scores, labels = checked_outcomes(risk, unneeded)
    right, other = scores[~labels], scores[labels]
    if not len(right) or not len(other):
        return undetermined(len(other))
    value = _passed(right, other, kept)
    rng = np.random.default_rng(seed)
    drawn = [
        _passed(rng.choice(right, len(right)), rng.choice(other, len(other)), kept)
        for _ in range(_RESAMPLES)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    fixed = wilson(round(value * len(other)), len(other), confidence)
    return Rate(
        value=value,
        low=min(float(low), fixed.low or 0.0),
        high=max(float(high), fixed.high or 0.0),
        n=len(other),
    )


def _passed(right: Floats, other: Floats, kept: float) -> float:
    threshold = np.quantile(right, kept, method="inverted_cdf")
    return float(np.mean(other <= threshold))
