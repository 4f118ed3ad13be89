"""A share with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from toolguard.guard.errors import CalibrationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """An estimate with its interval; all three are None if the input does not determine them.

    Args:
        value: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of calls behind it.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Return `{value, low, high, n}` as plain JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def undetermined(n: int) -> Rate:
    """Return the rate that says the input does not determine a value."""
    return Rate(value=None, low=None, high=None, n=n)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Rate:
    """Return successes / n with Wilson's score interval; undetermined if n is 0.

    Raises:
        CalibrationError: unless 0 <= successes <= n and 0 < confidence < 1.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    if not 0 <= successes <= n or not 0 < confidence < 1:
        raise CalibrationError(f"no rate from {successes} of {n} at confidence {confidence}")
    if n == 0:
        return undetermined(0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    value = successes / n
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    # At the ends the closed form meets 0 and 1 only up to rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Rate(value=value, low=low, high=high, n=n)
