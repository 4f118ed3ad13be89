"""The threshold on P(wrong) below which calls may run, with a finite-sample guarantee.

docs/decisions/0004-risk-control.md says what is guaranteed, under which assumption, and why the
sequence looks as it does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, binom

from toolguard.calibration.measuring.metrics import checked_outcomes
from toolguard.guard.errors import CalibrationError
from toolguard.guard.rate import Rate, undetermined, wilson

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

GROWTH = 10  # each step accepts one part in this many more calls than the one before
MOST_STARTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskThreshold:
    """What risk control found on the held-out calls.

    Args:
        target: highest error rate allowed among accepted calls, in (0, 1).
        confidence: chance, over held-out samples, that the true error rate below the threshold is
            at most the target.
        threshold: calls with P(wrong) <= threshold may run; None if no threshold could be shown
            safe, then none may.
        coverage: share of the held-out calls accepted (none: 0 of n), with a Wilson interval.
        realised: error rate of the accepted held-out calls, with a Wilson interval. It was used to
            choose the threshold; report `measure_risk` on fresh calls beside it.
        upper_bound: one-sided Clopper-Pearson bound on that error rate at `confidence`; None if
            nothing is accepted.
        steps: number of thresholds in the sequence.
    """

    target: float
    confidence: float
    threshold: float | None
    coverage: Rate
    realised: Rate
    upper_bound: float | None
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRisk:
    """Coverage and error rate of a fixed threshold on a set of calls."""

    coverage: Rate
    realised: Rate


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Step:
    """The hypothesis "accepted calls are wrong more often than the target", and its evidence."""

    threshold: float
    accepted: int
    wrong: int


def choose_threshold(
    probability: ArrayLike,
    wrong: ArrayLike,
    *,
    target: float = 0.05,
    confidence: float = 0.95,
    thresholds: Sequence[float] | None = None,
) -> RiskThreshold:
    """Return the most permissive threshold that the held-out calls show to be safe.

    Thresholds are tested from strict to permissive with exact binomial p-values. A few of them hold
    a share of the error budget 1 - confidence; each rejection hands its whole level on to the next
    threshold, a failure loses it. Labels enter through the tests alone: the sequence and the shares
    depend on the scores and on n only.

    Args:
        probability: (rows,) P(wrong) of calls that no part of the calibration has seen, independent
            draws of what the guard will meet.
        wrong: (rows,) true where the call was wrong.
        target: highest error rate allowed among accepted calls.
        confidence: chance with which that must hold, at least 0.5.
        thresholds: a sequence fixed before looking at these calls; None takes it from the scores.

    Returns: The threshold, or None in it where nothing can be shown safe (too few calls, or too
        many errors).

    Raises:
        CalibrationError: if a score is not in [0, 1], a label is neither true nor false, or target
            or confidence cannot be used.
        ShapeError: if the inputs do not fit each other.

    Source: Angelopoulos, Bates, Candes, Jordan & Lei (2021), "Learn then test"; passing on of
        levels, Wiens & Dmitrienko (2005), "The fallback procedure for evaluating a single family of
        hypotheses".
    """
    if not 0 < target < 1 or not 0.5 <= confidence < 1:
        raise CalibrationError(
            f"target must lie in (0, 1) and confidence in [0.5, 1), found {target}, {confidence}"
        )
    scores, labels = checked_outcomes(probability, wrong)
    if len(scores) and (scores.min() < 0 or scores.max() > 1):
        raise CalibrationError("P(wrong) must lie in [0, 1]")
    budget = 1 - confidence
    starts = _start_count(len(scores), target, budget)
    if thresholds is None:
        sequence = label_free_thresholds(scores, smallest_testable(target, budget / starts))
    else:
        sequence = sorted({float(threshold) for threshold in thresholds})
    steps = _count(sequence, scores, labels)
    best = last_rejected(_p_values(steps, target), _budget_shares(len(steps), starts) * budget)
    return _result(
        None if best is None else steps[best], len(scores), len(steps), target, confidence
    )


def measure_risk(probability: ArrayLike, wrong: ArrayLike, threshold: float | None) -> MeasuredRisk:
    """Return coverage and error rate of the calls with P(wrong) <= threshold.

    The error rate is undetermined if nothing is accepted (always so for the threshold None).
    """
    scores, labels = checked_outcomes(probability, wrong)
    accepted = scores <= (-math.inf if threshold is None else threshold)
    count = int(accepted.sum())
    return MeasuredRisk(
        coverage=wilson(count, len(scores)), realised=wilson(int(labels[accepted].sum()), count)
    )


def smallest_testable(target: float, level: float) -> int:
    """Return the fewest accepted calls that, all right, show less than `target` at `level`."""
    return math.ceil(math.log(level) / math.log1p(-target))


def label_free_thresholds(scores: Floats, fewest: int) -> list[float]:
    """Return rising thresholds that accept about `fewest` calls, a tenth more each time, then all.

    Each is the last number below an order statistic of the scores, so that the calls it accepts
    are, given the threshold, independent draws from all calls it would accept; the order statistic
    itself would not be.

    Args:
        scores: (rows,) P(wrong) in [0, 1].
        fewest: accepted calls at the strictest threshold; with fewer rows than this the list is
            empty.
    """
    n = len(scores)
    if n < fewest or not n:
        return []
    ordered = np.sort(scores)
    found: list[float] = []
    accepted = fewest
    while accepted < n:
        found.append(float(np.nextafter(ordered[accepted], -math.inf)))
        accepted += math.ceil(accepted / GROWTH)
    # Below a large tie at the safe end lie too few calls for any test to pass.
    testable = {t for t in found if np.searchsorted(ordered, t, side="right") >= fewest}
    return sorted({*testable, 1.0})


def last_rejected(p_values: Floats, shares: Floats) -> int | None:
    """Return the position of the last hypothesis that the fallback procedure rejects, or None.

    The chance of rejecting any true one is at most the sum of the shares.

    Args:
        p_values: (steps,) in testing order.
        shares: (steps,) level each hypothesis has of its own; the one after a rejection has that
            level on top.

    Source: Wiens & Dmitrienko (2005).
    """
    carried, best = 0.0, None
    for position, (p_value, share) in enumerate(
        zip(p_values.tolist(), shares.tolist(), strict=True)
    ):
        level = carried + share
        rejected = level > 0 and p_value <= level
        carried = level if rejected else 0.0
        best = position if rejected else best
    return best


def _start_count(n: int, target: float, budget: float) -> int:
    """Return how many thresholds share the budget: one for small samples, four for large ones."""
    ratio = n / smallest_testable(target, budget)
    return min(MOST_STARTS, max(1, round(math.log2(ratio)))) if ratio > 1 else 1


def _budget_shares(steps: int, starts: int) -> Floats:
    """Return equal shares for `starts` thresholds spread evenly over the sequence."""
    shares = np.zeros(steps)
    if steps:
        places = (
            np.unique(np.round(np.linspace(0, steps - 1, starts)).astype(int))
            if starts > 1
            else [0]
        )
        shares[places] = 1 / len(places)
    return shares


def _count(sequence: Sequence[float], scores: Floats, labels: NDArray[np.bool_]) -> list[_Step]:
    order = np.argsort(scores, kind="stable")
    errors = np.concatenate([[0], np.cumsum(labels[order])])
    accepted = np.searchsorted(scores[order], np.asarray(sequence, dtype=np.float64), side="right")
    return [
        _Step(threshold=threshold, accepted=int(count), wrong=int(errors[count]))
        for threshold, count in zip(sequence, accepted, strict=True)
    ]


def _p_values(steps: Sequence[_Step], target: float) -> Floats:
    """Return each step's chance of so few errors at an error rate of `target`; 1 without a call."""
    accepted = np.array([step.accepted for step in steps])
    chance = binom.cdf([step.wrong for step in steps], accepted, target)
    return np.where(accepted > 0, chance, 1.0)


def _result(
    best: _Step | None, n: int, steps: int, target: float, confidence: float
) -> RiskThreshold:
    accepted, wrong = (best.accepted, best.wrong) if best else (0, 0)
    upper = float(beta.ppf(confidence, wrong + 1, accepted - wrong)) if wrong < accepted else None
    return RiskThreshold(
        target=target,
        confidence=confidence,
        threshold=best.threshold if best else None,
        coverage=wilson(accepted, n),
        realised=wilson(wrong, accepted) if accepted else undetermined(0),
        upper_bound=upper,
        steps=steps,
    )
