"""How well a signal tells wrong calls from right ones, with intervals.

Everywhere `risk` is larger where a call is more likely wrong (pass `-margin` for a margin), and
`wrong` is true where it was. What cannot be computed from the input (no call, or calls of one kind
only) is None, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from toolguard.guard.errors import CalibrationError, ShapeError
from toolguard.guard.rate import Rate, undetermined, wilson

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
RankingMetric = Literal["auroc", "aurc"]
RANKING_METRICS: tuple[RankingMetric, ...] = ("auroc", "aurc")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuartileErrors:
    """Error rates of the calls with the smallest and the largest margins, and their ratio."""

    low: Rate
    high: Rate
    ratio: Rate


def checked_outcomes(values: ArrayLike, wrong: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Return both inputs as arrays (rows,).

    Raises:
        ShapeError: if they are not one-dimensional and of one length.
        CalibrationError: if a value is NaN, or a label is neither true nor false.
    """
    numbers, labels = np.asarray(values, dtype=np.float64), np.asarray(wrong)
    if numbers.ndim != 1 or numbers.shape != labels.shape:
        raise ShapeError(f"expected two arrays (rows,), found {numbers.shape} and {labels.shape}")
    if np.isnan(numbers).any():
        raise CalibrationError(f"{int(np.isnan(numbers).sum())} of {len(numbers)} values are NaN")
    if not np.isin(labels, (0, 1)).all():
        raise CalibrationError("labels must be true or false")
    return numbers, labels.astype(bool)


def auroc(risk: ArrayLike, wrong: ArrayLike, confidence: float = 0.95) -> Rate:
    """Return the chance that a wrong call has a larger risk than a right one; a tie is one half.

    The interval is DeLong's on the log-odds scale. Where its variance is zero (every pair ordered
    alike) or unknown (a class of one call), it is Wilson's for as many trials as the rarer class
    has calls. Undetermined unless both classes occur.

    Source: DeLong, DeLong & Clarke-Pearson (1988); midranks, Sun & Xu (2014); logit interval, Pepe
        (2003), section 5.2.
    """
    scores, labels = checked_outcomes(risk, wrong)
    bad, good = scores[labels], scores[~labels]
    if not len(bad) or not len(good):
        return undetermined(len(scores))
    ranks = rankdata(np.concatenate([bad, good]))
    above_good = (ranks[: len(bad)] - rankdata(bad)) / len(
        good
    )  # each wrong call: share of right calls below it
    below_bad = 1 - (ranks[len(bad) :] - rankdata(good)) / len(
        bad
    )  # each right call: share of wrong calls above it
    value = float(above_good.mean())
    variance = _mean_variance(above_good) + _mean_variance(below_bad)
    rarer = min(len(bad), len(good))
    if rarer == 1 or variance <= 0 or not 0 < value < 1:
        edge = wilson(round(value * rarer), rarer, confidence)
        return Rate(value=value, low=edge.low, high=edge.high, n=len(scores))
    log_odds = math.log(value / (1 - value))
    half = _z(confidence) * math.sqrt(variance) / (value * (1 - value))
    return Rate(
        value=value, low=_logistic(log_odds - half), high=_logistic(log_odds + half), n=len(scores)
    )


def aurc(
    risk: ArrayLike,
    wrong: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Rate:
    """Return the mean error rate over all coverages, least risk first; lower is better.

    Calls of equal risk are accepted in random order, and the value is the mean over those orders.
    The interval is a percentile bootstrap. Undetermined unless both classes occur, for then the
    order cannot matter.

    Source: Geifman & El-Yaniv (2017), "Selective classification for deep neural networks"; area,
        Geifman, Uziel & El-Yaniv (2019).
    """
    scores, labels = checked_outcomes(risk, wrong)
    if not labels.any() or labels.all():
        return undetermined(len(scores))
    ranking = _Ranking.of(scores, labels)
    rng = np.random.default_rng(seed)
    drawn = [_aurc(ranking, _resample(len(scores), rng)) for _ in range(resamples)]
    value = _aurc(ranking, np.ones(len(scores), dtype=np.int64))
    return _percentiles(value, drawn, confidence, len(scores))


def paired_difference(
    metric: RankingMetric,
    risk_a: ArrayLike,
    risk_b: ArrayLike,
    wrong: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Rate:
    """Return metric(a) - metric(b) on the same calls, with a paired bootstrap interval.

    Wrong and right calls are resampled apart, so that every resample has both. Undetermined unless
    both classes occur.

    Source: Efron & Tibshirani (1993), "An introduction to the bootstrap", chapters 8 and 13.
    """
    first, labels = checked_outcomes(risk_a, wrong)
    second, _ = checked_outcomes(risk_b, wrong)
    if not labels.any() or labels.all():
        return undetermined(len(labels))
    measure: Callable[[_Ranking, Integers], float] = {"auroc": _auroc, "aurc": _aurc}[metric]
    a, b = _Ranking.of(first, labels), _Ranking.of(second, labels)
    rng = np.random.default_rng(seed)

    def difference(times: Integers) -> float:
        return measure(a, times) - measure(b, times)

    drawn = [difference(_stratified_resample(labels, rng)) for _ in range(resamples)]
    return _percentiles(
        difference(np.ones(len(labels), dtype=np.int64)), drawn, confidence, len(labels)
    )


def quartile_errors(
    margin: ArrayLike, wrong: ArrayLike, confidence: float = 0.95
) -> QuartileErrors:
    """Return the error rates of the quarters with the smallest and largest margins, and low / high.

    A quarter takes in every call that ties with its last one, so it may hold more than a fourth. If
    one of the quarters has no error, the ratio is that of the rates with half an error and half a
    right call added to both (Haldane-Anscombe); with no error in either, or fewer than four calls,
    it is undetermined.

    Source: interval of the ratio, Katz, Baptista, Azen & Pike (1978); added halves, Haldane (1956),
        Anscombe (1956).
    """
    values, labels = checked_outcomes(margin, wrong)
    quarter = len(values) // 4
    if quarter == 0:
        return QuartileErrors(
            low=undetermined(0), high=undetermined(0), ratio=undetermined(len(values))
        )
    ordered = np.sort(values)
    low, high = labels[values <= ordered[quarter - 1]], labels[values >= ordered[-quarter]]
    return QuartileErrors(
        low=wilson(int(low.sum()), len(low), confidence),
        high=wilson(int(high.sum()), len(high), confidence),
        ratio=_rate_ratio(int(low.sum()), len(low), int(high.sum()), len(high), confidence),
    )


def calibration_error(probability: ArrayLike, wrong: ArrayLike, bins: int = 10) -> float | None:
    """Return the expected calibration error over equal-mass bins, in [0, 1]; None without a call.

    Calls of equal probability share a bin, so with many ties there are fewer bins.

    Source: Naeini, Cooper & Hauskrecht (2015), with equal-mass bins as in Nixon et al. (2019).
    """
    values, labels = checked_outcomes(probability, wrong)
    if not len(values):
        return None
    gaps = np.bincount(equal_mass_groups(values, bins), weights=values - labels, minlength=bins)
    return float(np.abs(gaps).sum() / len(values))


def equal_mass_groups(values: Floats, bins: int) -> Integers:
    """Return (rows,) the bin of each value, of about equally many each; equal values share one.

    Args:
        values: (rows,) not empty.
        bins: most bins, numbered from 0 by rising value; with many ties some are empty.
    """
    edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="lower")
    return np.searchsorted(edges, values, side="left").astype(np.int64)


def brier(probability: ArrayLike, wrong: ArrayLike) -> float | None:
    """Return the mean squared error of the probability, in [0, 1]; None without a call.

    Source: Brier (1950), "Verification of forecasts expressed in terms of probability".
    """
    values, labels = checked_outcomes(probability, wrong)
    return float(np.mean((values - labels) ** 2)) if len(values) else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ranking:
    """Calls sorted by risk once, so that every resample is scored in linear time."""

    order: Integers  # (rows,) positions of the calls by rising risk
    group: Integers  # (rows,) number of each sorted call's group of equal risk
    wrong: Floats  # (rows,) outcome of each sorted call, 0 or 1

    @classmethod
    def of(cls, risk: Floats, wrong: NDArray[np.bool_]) -> _Ranking:
        order = np.argsort(risk, kind="stable").astype(np.int64)
        steps = risk[order][1:] != risk[order][:-1]
        group = np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)
        return cls(order=order, group=group, wrong=wrong[order].astype(np.float64))


def _auroc(ranking: _Ranking, times: Integers) -> float:
    """Return the AUROC when call i counts times[i]; both classes must occur."""
    weight = times[ranking.order].astype(np.float64)
    bad = np.bincount(ranking.group, weights=weight * ranking.wrong)
    good = np.bincount(ranking.group, weights=weight * (1 - ranking.wrong))
    below = np.cumsum(good) - good / 2
    return float(bad @ below / (bad.sum() * good.sum()))


def _aurc(ranking: _Ranking, times: Integers) -> float:
    """Return the AURC when call i counts times[i]."""
    weight = times[ranking.order]
    size = np.bincount(ranking.group, weights=weight)
    errors = np.bincount(ranking.group, weights=weight * ranking.wrong)
    share = np.divide(errors, size, out=np.zeros_like(errors), where=size > 0)
    expected = np.cumsum(np.repeat(share, size.astype(np.int64)))  # errors among the first i
    return float(np.mean(expected / np.arange(1, len(expected) + 1)))


def _resample(n: int, rng: np.random.Generator) -> Integers:
    return np.bincount(rng.integers(0, n, n), minlength=n).astype(np.int64)


def _stratified_resample(labels: NDArray[np.bool_], rng: np.random.Generator) -> Integers:
    times = np.zeros(len(labels), dtype=np.int64)
    for members in (np.flatnonzero(labels), np.flatnonzero(~labels)):
        times[members] = _resample(len(members), rng)
    return times


def _percentiles(value: float, drawn: list[float], confidence: float, n: int) -> Rate:
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Rate(value=value, low=float(low), high=float(high), n=n)


def _rate_ratio(errors_a: int, n_a: int, errors_b: int, n_b: int, confidence: float) -> Rate:
    if errors_a == errors_b == 0:
        return undetermined(n_a + n_b)
    half, one = (0.0, 0.0) if errors_a and errors_b else (0.5, 1.0)
    k_a, k_b, m_a, m_b = errors_a + half, errors_b + half, n_a + one, n_b + one
    value = (k_a / m_a) / (k_b / m_b)
    width = _z(confidence) * math.sqrt(max(0.0, 1 / k_a - 1 / m_a + 1 / k_b - 1 / m_b))
    return Rate(
        value=value, low=value * math.exp(-width), high=value * math.exp(width), n=n_a + n_b
    )


def _mean_variance(values: Floats) -> float:
    """Return the variance of the mean; 0 for a single value."""
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


def _z(confidence: float) -> float:
    return float(norm.ppf(0.5 + confidence / 2))


def _logistic(log_odds: float) -> float:
    return 0.5 * (1 + math.tanh(log_odds / 2))
