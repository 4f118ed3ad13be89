"""Fit the map from margins to P(wrong) on labelled calls."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from toolguard.guard.calibrator import Calibrator, scaled_margin
from toolguard.guard.errors import CalibrationError, ShapeError

_TAILS = (10.0, 90.0)
_NORMAL_TAIL_WIDTH = 2.5631  # distance between these two percentiles of a standard normal


def fit_calibrator(
    margins: Mapping[str, ArrayLike], wrong: ArrayLike, *, l2: float = 1.0, clip: float = 6.0
) -> Calibrator:
    """Return the calibrator fitted by penalised logistic regression with no weight above 0.

    The labels are softened as Platt proposed (a wrong call counts as (k+1)/(k+2), a right one as
    1/(m+2), for k wrong and m right calls), which is a uniform prior on the two rates: without any
    error the result is the flat probability 1/(m+2), and separable data give finite weights.

    Args:
        margins: feature -> (rows,) margins, larger is safer; infinite values are clipped, NaN is
            refused.
        wrong: (rows,) true where the call was wrong.
        l2: strength of the penalty l2/2 * sum of squared weights, on scaled margins; > 0.
        clip: largest scaled distance from a margin's centre that counts.

    Raises:
        CalibrationError: if there is no row or no feature, a margin is NaN or never finite, or the
            fit fails.
        ShapeError: if lengths differ.

    Source: Platt (1999), "Probabilistic outputs for support vector machines"; bounds by L-BFGS-B,
        Byrd, Lu, Nocedal & Zhu (1995).
    """
    labels = np.asarray(wrong, dtype=np.float64)
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in margins.items()}
    _check(columns, labels)
    places = [_place(name, values) for name, values in columns.items()]
    design = np.stack(
        [scaled_margin(v, c, s, clip) for v, (c, s) in zip(columns.values(), places, strict=True)],
        axis=1,
    )  # (rows, features)
    intercept, weights = _fit(design, _softened(labels), l2)
    return Calibrator(
        features=tuple(columns),
        weights=tuple(float(weight) for weight in weights),
        intercept=intercept,
        centres=tuple(centre for centre, _ in places),
        scales=tuple(scale for _, scale in places),
        clip=clip,
    )


def _check(columns: Mapping[str, NDArray[np.float64]], labels: NDArray[np.float64]) -> None:
    if not columns or labels.ndim != 1 or not len(labels):
        raise CalibrationError(
            "a calibrator needs at least one labelled call and one margin",
            hint="give more labelled records",
        )
    if not np.isin(labels, (0.0, 1.0)).all():
        raise CalibrationError("the labels of a calibrator must be true or false")
    for name, values in columns.items():
        if values.shape != labels.shape:
            raise ShapeError(f"margin {name!r} has shape {values.shape}, the labels {labels.shape}")
        if np.isnan(values).any():
            raise CalibrationError(
                f"margin {name!r} holds {int(np.isnan(values).sum())} NaN", feature=name
            )


def _place(name: str, values: NDArray[np.float64]) -> tuple[float, float]:
    """Return a margin's median and tail width, which a few huge margins do not move."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise CalibrationError(
            f"margin {name!r} is never finite",
            hint="menus of one tool have no rival to compare with",
            feature=name,
        )
    low, high = np.percentile(finite, _TAILS)
    scale = float(high - low) / _NORMAL_TAIL_WIDTH or float(finite.std()) or 1.0
    return float(np.median(finite)), scale


def _softened(labels: NDArray[np.float64]) -> NDArray[np.float64]:
    wrong = labels.sum()
    right = len(labels) - wrong
    targets: NDArray[np.float64] = np.where(labels > 0, (wrong + 1) / (wrong + 2), 1 / (right + 2))
    return targets


def _fit(
    design: NDArray[np.float64], targets: NDArray[np.float64], l2: float
) -> tuple[float, NDArray[np.float64]]:
    """Return the intercept and the weights that minimise the penalised log loss."""

    def loss(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_odds = point[0] + design @ point[1:]
        # log(1 + e^x) - t x is the cross-entropy with a soft target t.
        value = (
            np.sum(np.logaddexp(0.0, log_odds) - targets * log_odds)
            + 0.5 * l2 * point[1:] @ point[1:]
        )
        residual = 0.5 * (1.0 + np.tanh(0.5 * log_odds)) - targets
        slope = np.concatenate([[residual.sum()], design.T @ residual + l2 * point[1:]])
        return float(value), slope

    rate = float(targets.mean())
    start = np.array([math.log(rate / (1 - rate)), *np.zeros(design.shape[1])])
    bounds = [(None, None), *[(None, 0.0)] * design.shape[1]]
    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    point = np.asarray(found.x, dtype=np.float64)
    if not np.isfinite(point).all():
        raise CalibrationError(f"the calibrator could not be fitted: {found.message}")
    return float(point[0]), point[1:]
