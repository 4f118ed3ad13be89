"""What a correction gains: calls it made right less calls it made wrong, with an exact interval."""

from __future__ import annotations

from scipy.stats import beta

from toolguard.guard.errors import CalibrationError
from toolguard.guard.rate import Rate, undetermined, wilson


def net_gain(fixed: int, broken: int, n: int, confidence: float = 0.95) -> Rate:
    """Return (fixed - broken) / n, in [-1, 1], paired on the same n calls.

    Its sign is exact: of the calls that changed sides the fixed ones are binomial, and the lower
    end is above 0 just where the exact McNemar test rejects. Its size takes the share of calls that
    changed sides at the end of Wilson's interval that makes the interval longer. Undetermined if n
    is 0.

    Args:
        fixed: calls that were wrong and are right now.
        broken: calls that were right and are wrong now.
        n: calls in all.
        confidence: of the two-sided interval.

    Raises:
        CalibrationError: if the counts do not fit each other.

    Source: McNemar (1947), "Note on the sampling error of the difference between correlated
        proportions"; interval of the fixed share, Clopper & Pearson (1934).
    """
    changed = fixed + broken
    if min(fixed, broken) < 0 or changed > n or not 0 < confidence < 1:
        raise CalibrationError(f"no gain from {fixed} fixed and {broken} broken of {n} calls")
    if n == 0:
        return undetermined(0)
    tail = (1 - confidence) / 2
    least = 2 * float(beta.ppf(tail, fixed, broken + 1)) - 1 if fixed else -1.0
    most = 2 * float(beta.ppf(1 - tail, fixed + 1, broken)) - 1 if broken else 1.0
    share = wilson(changed, n, confidence)
    few, many = share.low or 0.0, share.high or 0.0
    return Rate(
        value=(fixed - broken) / n,
        low=least * (few if least > 0 else many),
        high=most * (many if most > 0 else few),
        n=n,
    )
