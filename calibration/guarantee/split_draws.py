"""Whether a risk threshold keeps its promise: chosen on one part of real calls, met on the other.

Beside it stands conformal risk control, which promises less: an expectation, over all calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolguard.calibration.guarantee.risk import MeasuredRisk, choose_threshold, measure_risk
from toolguard.calibration.measuring.metrics import checked_outcomes
from toolguard.guard.errors import CalibrationError, ShapeError
from toolguard.guard.rate import Rate, undetermined, wilson

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

SPLITS = 500
CHOSEN_ON = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplitCalls:
    """Calls that random splits are made of.

    Args:
        probability: (calls,) P(wrong) in [0, 1].
        wrong: (calls,) outcomes.
        groups: (calls,) int; near duplicates share one, and stay on one side of every split.

    Raises:
        CalibrationError: if there are fewer than two groups, or a value cannot be used.
        ShapeError: if the lengths differ.
    """

    probability: Floats
    wrong: Booleans
    groups: NDArray[np.int64]

    @classmethod
    def of(cls, probability: ArrayLike, wrong: ArrayLike, groups: Sequence[int]) -> SplitCalls:
        """Return the calls, checked."""
        scores, labels = checked_outcomes(probability, wrong)
        numbers = np.asarray(groups, dtype=np.int64)
        if numbers.shape != scores.shape:
            raise ShapeError(f"{len(numbers)} groups do not fit {len(scores)} calls")
        if len(np.unique(numbers)) < 2:
            raise CalibrationError(
                f"{len(scores)} calls cannot be split: their queries are near duplicates",
                hint="give more records",
            )
        return cls(probability=scores, wrong=labels, groups=numbers)

    def only(self, wanted: Booleans) -> SplitCalls:
        """Return some of the calls.

        Raises:
            CalibrationError: if fewer than two groups are left.
        """
        return SplitCalls.of(
            self.probability[wanted], self.wrong[wanted], self.groups[wanted].tolist()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitOutcome:
    """What one split gave on its other part: by the tested threshold, and by the conformal one.

    Args:
        tested: None if no threshold could be shown safe; nothing is allowed then.
        conformal: by conformal risk control.
        harm: share of all calls that are wrong and allowed by the conformal threshold; None
            without a call.
    """

    tested: MeasuredRisk | None
    conformal: MeasuredRisk
    harm: float | None


def verify_guarantee(
    calls: SplitCalls,
    *,
    target: float,
    confidence: float = 0.95,
    splits: int = SPLITS,
    chosen_on: float = CHOSEN_ON,
    seed: int = 0,
    measured: Booleans | None = None,
) -> dict[str, Any]:
    """Return how often a threshold chosen on one part breaks its target, JSON-ready.

    `exceeded`: the error rate of the other part lies above the target. That part is a sample too,
    and whatever luck the first part had it lacks, so this happens where the true rate is below.
    `exceeded_known` is the promise itself: thresholds are chosen on as many calls, drawn with
    replacement, of a population whose every error rate is known, these calls; it is kept where that
    happens in at most 1 - confidence of the draws. Both intervals, Wilson's, say how well so many
    splits tell the share, and not how another data set would do.

    Args:
        calls: that no part of the calibration has seen.
        target: highest error rate allowed among accepted calls.
        confidence: chance with which it must hold.
        splits: number of random splits.
        chosen_on: share of the groups that the threshold is chosen on.
        seed: of the splits.
        measured: (calls,) those whose error rate counts, as a tier's own among all; None for all.

    Raises:
        CalibrationError: if a number lies outside its range.
    """
    counts = np.ones(len(calls.wrong), dtype=bool) if measured is None else measured
    if splits < 1 or not 0 < chosen_on < 1:
        raise CalibrationError(
            f"splits must be at least 1 and chosen_on in (0, 1), found {splits} and {chosen_on}"
        )
    outcomes = [
        _outcome(calls, first, counts, target, confidence)
        for first in random_parts(calls.groups, splits, chosen_on, seed)
    ]
    tested = [outcome.tested for outcome in outcomes if outcome.tested is not None]
    rng = np.random.default_rng(seed)
    drawn = max(1, round(chosen_on * len(calls.wrong)))
    above = [_exceeds_in_draw(calls, counts, target, confidence, drawn, rng) for _ in range(splits)]
    known = wilson(sum(above), splits)
    return {
        "target": target,
        "confidence": confidence,
        "splits": splits,
        "calls": int(counts.sum()),
        "found": wilson(len(tested), splits).to_dict(),
        "exceeded": wilson(sum(_above(found, target) for found in tested), splits).to_dict(),
        "exceeded_known": known.to_dict(),
        "kept": known.value is not None and known.value <= 1 - confidence,
        "coverage": spread([found.coverage.value for found in tested]).to_dict(),
        "realised": spread([found.realised.value for found in tested]).to_dict(),
        "conformal": _conformal(outcomes, target),
    }


def _exceeds_in_draw(
    calls: SplitCalls,
    counts: Booleans,
    target: float,
    confidence: float,
    drawn: int,
    rng: np.random.Generator,
) -> bool:
    """Return whether the threshold of one draw has a true error rate above the target.

    Source: Efron & Tibshirani (1993), "An introduction to the bootstrap", chapter 6.
    """
    rows = rng.integers(0, len(calls.wrong), drawn)
    found = choose_threshold(
        calls.probability[rows], calls.wrong[rows], target=target, confidence=confidence
    )
    true = measure_risk(calls.probability[counts], calls.wrong[counts], found.threshold)
    return _above(true, target)


def _conformal(outcomes: Sequence[SplitOutcome], target: float) -> dict[str, Any]:
    found = [outcome.conformal for outcome in outcomes]
    return {
        "harm": spread([outcome.harm for outcome in outcomes]).to_dict(),
        "exceeded": wilson(sum(_above(one, target) for one in found), len(found)).to_dict(),
        "coverage": spread([one.coverage.value for one in found]).to_dict(),
        "realised": spread([one.realised.value for one in found]).to_dict(),
    }


def random_parts(
    groups: NDArray[np.int64], splits: int, share: float, seed: int
) -> Iterator[Booleans]:
    """Yield for each split (calls,) whether a call lies in the first part; groups stay whole."""
    numbers, of = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    first = min(max(1, round(share * len(numbers))), len(numbers) - 1)
    for _ in range(splits):
        chosen = np.zeros(len(numbers), dtype=bool)
        chosen[rng.permutation(len(numbers))[:first]] = True
        yield chosen[of]


def _outcome(
    calls: SplitCalls, first: Booleans, counts: Booleans, target: float, confidence: float
) -> SplitOutcome:
    scores, wrong = calls.probability, calls.wrong
    found = choose_threshold(scores[first], wrong[first], target=target, confidence=confidence)
    conformal = conformal_threshold(scores[first], wrong[first], target=target)
    rest, labels = scores[~first & counts], wrong[~first & counts]
    allowed = rest <= (-np.inf if conformal is None else conformal)
    return SplitOutcome(
        tested=None
        if found.threshold is None
        else measure_risk(rest, labels, threshold=found.threshold),
        conformal=measure_risk(rest, labels, conformal),
        harm=float((allowed & labels).mean()) if len(labels) else None,
    )


def conformal_threshold(probability: ArrayLike, wrong: ArrayLike, *, target: float) -> float | None:
    """Return the largest threshold at which, on average, at most `target` of all calls go wrong.

    The loss is 1 where a call is wrong and allowed. What is bounded is its expectation for the next
    call, over calibration samples: not the error rate among allowed calls, and not with confidence.

    Args:
        probability: (calls,) P(wrong) of held-out calls.
        wrong: (calls,) outcomes.
        target: highest expected loss.

    Returns: the threshold; None if even the strictest allows too much.

    Source: Angelopoulos, Bates, Fisch, Lei & Schuster (2024), "Conformal risk control".
    """
    scores, labels = checked_outcomes(probability, wrong)
    # (n R + 1) / (n + 1) <= target, for the largest loss 1: at most this many wrong calls.
    most = target * (len(scores) + 1) - 1
    if most < 0:
        return None
    errors = np.sort(scores[labels])
    if len(errors) <= most:
        return 1.0
    # The last number below the first wrong call that is one too many; ties with it stay out.
    return float(np.nextafter(errors[int(np.floor(most))], -np.inf))


def spread(values: Sequence[float | None]) -> Rate:
    """Return the mean over splits, with the 2.5th and 97.5th percentile in place of an interval."""
    known = [value for value in values if value is not None]
    if not known:
        return undetermined(0)
    low, high = np.quantile(known, [0.025, 0.975])
    return Rate(value=float(np.mean(known)), low=float(low), high=float(high), n=len(known))


def _above(found: MeasuredRisk, target: float) -> bool:
    return found.realised.value is not None and found.realised.value > target
