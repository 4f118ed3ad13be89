"""Logistic probes for a wrong call: on the late block's state, and on the lens of every block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from toolguard.calibration.labels.labelled_calls import Booleans, Floats
from toolguard.calibration.votes.cross_fitting import Fit, Scorer
from toolguard.calibration.votes.evidence import CallEvidence, Indices
from toolguard.guard.errors import CalibrationError

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse strengths tried
_STEPS = 1000

Table = NDArray[np.float64]  # (calls, features)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Logistic:
    """Log-odds of a wrong call, were half of them wrong, as a linear function of the features."""

    centres: Floats
    scales: Floats
    weights: Floats
    bias: float

    def log_odds(self, features: Table) -> Floats:
        """Return (calls,) log-odds."""
        scaled = (features - self.centres) / self.scales
        found: Floats = scaled @ self.weights + self.bias
        return found


def fit_logistic(features: Table, wrong: Booleans, penalty: float) -> Logistic:
    """Return the L2-regularised logistic regression on standardised features.

    Right and wrong calls weigh the same in all. Else the intercept would tell the error rate of the
    calls fitted to, which is lower where those left out hold more errors: scores of several folds
    together would then rank worse than by chance.

    Args:
        features: (calls, features); one that never varies gets no weight.
        wrong: (calls,) outcomes.
        penalty: inverse strength of the penalty.

    Raises:
        CalibrationError: unless both outcomes occur.
    """
    from sklearn.linear_model import LogisticRegression

    if not wrong.any() or wrong.all():
        raise CalibrationError("a probe needs both right and wrong calls to fit to")
    centres, spread = features.mean(axis=0), features.std(axis=0)
    scales = np.where(spread > 0, spread, 1.0)
    model = LogisticRegression(C=penalty, max_iter=_STEPS, class_weight="balanced")
    model.fit((features - centres) / scales, wrong)
    return Logistic(
        centres=centres, scales=scales, weights=model.coef_[0], bias=float(model.intercept_[0])
    )


def choose_penalty(features: Table, wrong: Booleans, folds: Indices) -> float:
    """Return the penalty with the least log-loss on folds that the fit did not see.

    Right and wrong calls weigh the same in each. Folds that leave calls of one kind only to fit to
    are passed over; without any other, it is the strongest penalty.
    """
    losses = dict.fromkeys(PENALTIES, 0.0)
    for fold in np.unique(folds):
        own = folds == fold
        for penalty in PENALTIES:
            try:
                fitted = fit_logistic(features[~own], wrong[~own], penalty)
            except CalibrationError:
                break
            losses[penalty] += _log_loss(fitted.log_odds(features[own]), wrong[own])
    return min(losses, key=lambda penalty: losses[penalty])


def _log_loss(log_odds: Floats, wrong: Booleans) -> float:
    """Return the mean negative log-likelihood of right and of wrong calls, added, in nats."""
    losses = np.logaddexp(0.0, np.where(wrong, -log_odds, log_odds))
    return sum(float(losses[kind].mean()) for kind in (wrong, ~wrong) if kind.any())


def probe_fit(features_of: Callable[[CallEvidence], Tensor | None]) -> Fit:
    """Return what fits a probe to one part of the evidence; calls without it are not read."""

    def fit(calls: Sequence[CallEvidence], folds: Indices) -> Scorer:
        features, read = _table(calls, features_of)
        if not len(read):
            raise CalibrationError("no call to fit a probe to has the features")
        wrong = np.array([calls[place].judged.wrong for place in read], dtype=bool)
        penalty = choose_penalty(features, wrong, folds[read])
        fitted = fit_logistic(features, wrong, penalty)
        return lambda others: _scores(fitted, others, features_of)

    return fit


def _scores(
    fitted: Logistic,
    calls: Sequence[CallEvidence],
    features_of: Callable[[CallEvidence], Tensor | None],
) -> list[float | None]:
    features, read = _table(calls, features_of)
    told: list[float | None] = [None] * len(calls)
    if len(read):
        for place, value in zip(read, fitted.log_odds(features).tolist(), strict=True):
            told[place] = value
    return told


def _table(
    calls: Sequence[CallEvidence], features_of: Callable[[CallEvidence], Tensor | None]
) -> tuple[Table, list[int]]:
    """Return (read, features) float64 and which calls they are of."""
    found = [(place, features_of(call)) for place, call in enumerate(calls)]
    rows = [(place, row) for place, row in found if row is not None]
    features = np.array([row.double().numpy() for _, row in rows], dtype=np.float64)
    return features, [place for place, _ in rows]
