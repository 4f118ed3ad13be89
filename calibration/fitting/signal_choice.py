"""Which signals P(wrong) uses: a signal is kept only if it lowers the risk at equal coverage.

Nested cross-validation inside the fit split: outer folds measure, inner folds choose the penalty.
docs/decisions/0008-signals.md says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolguard.calibration.fitting.fit_calibrator import fit_calibrator
from toolguard.calibration.fitting.layer_choice import FEWEST_ERRORS
from toolguard.calibration.labels.labelled_calls import Booleans, Floats
from toolguard.calibration.measuring.metrics import RANKING_METRICS, paired_difference
from toolguard.guard.calibrator import Calibrator
from toolguard.guard.errors import CalibrationError
from toolguard.guard.rate import Rate
from toolguard.guard.signals import LOGPROB, SIGNALS

PENALTIES = (100.0, 10.0, 1.0)
"""Tried for a calibrator, strongest first: it wins where they are equal."""

LEVEL = 0.05  # shared by the intervals of a step; half of it lies above them
_ROUNDING = 1e-9

Columns = Mapping[str, Floats]
"""Signal -> (calls,), larger is safer."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldedCalls:
    """The calls that the choice is made on.

    Args:
        wrong: (calls,) outcomes.
        folds: (calls,) int, 0 or more; near duplicates share one.
        without: fold -> the signals of all these calls, from layer and readout chosen without the
            calls of that fold.

    Raises:
        CalibrationError: if a call has no outcome or fold, or a fold no signals.
    """

    wrong: Booleans
    folds: NDArray[np.int64]
    without: Mapping[int, Columns]

    def __post_init__(self) -> None:
        if self.wrong.shape != self.folds.shape or set(self.folds.tolist()) != set(self.without):
            raise CalibrationError("every call needs an outcome and a fold, every fold its signals")

    @property
    def errors(self) -> int:
        """Number of wrong calls."""
        return int(self.wrong.sum())

    @property
    def comparable(self) -> bool:
        """Whether signals can be told apart: enough calls of both kinds, in two folds or more."""
        rarer = min(self.errors, len(self.wrong) - self.errors)
        return len(self.without) > 1 and rarer >= FEWEST_ERRORS


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedSignal:
    """What adding one signal to those kept so far does, measured on the outer folds.

    Args:
        name: of the signal.
        beside: signals kept before it.
        aurc_difference: AURC with it minus AURC without it, paired; below 0 it lowers the risk.
        auroc_difference: the same of AUROC, at 95 %; above 0 it ranks better. Decides nothing.
        confidence: of the AURC's interval, widened for the number of signals tried in this step.
        kept: whether the upper end of the AURC difference lies below 0, and no other is better.
    """

    name: str
    beside: tuple[str, ...]
    aurc_difference: Rate
    auroc_difference: Rate
    confidence: float
    kept: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "signal": self.name,
            "beside": list(self.beside),
            "aurc_difference": self.aurc_difference.to_dict(),
            "auroc_difference": self.auroc_difference.to_dict(),
            "confidence": self.confidence,
            "kept": self.kept,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalChoice:
    """The signals of P(wrong), and what was measured of each.

    Args:
        signals: used, `logprob` first where it is.
        by: whether the measurement chose them, or the user (or the preset) fixed them.
        tried: every signal in every step; empty if there are too few errors to compare.
        against_logprob: AURC and AUROC of the calibrator of `signals` minus those of log-prob, on
            the outer folds, at 95 %; None if the two are the same, or nothing can be compared.
        n: calls measured on.
        errors: wrong ones among them.
    """

    signals: tuple[str, ...]
    by: Literal["measurement", "user", "preset"]
    tried: tuple[TriedSignal, ...]
    against_logprob: Mapping[str, Any] | None
    n: int
    errors: int

    @property
    def uses(self) -> str:
        """What P(wrong) uses, and who decided so, in words."""
        used = f"P(wrong) uses {_listed(self.signals)}"
        if self.by == "measurement":
            return used
        return f"{used}, fixed by {'--signals' if self.by == 'user' else 'the preset'}"

    @property
    def words(self) -> str:
        """What was measured, in words; they end with "log-prob suffices" where that is so."""
        helpful = [tried.name for tried in self.tried if tried.kept]
        counts = f"{self.n:,} calls with {self.errors:,} errors"
        if not self.tried:
            return f"{counts} cannot tell signals apart; log-prob suffices"
        if not helpful:
            return (
                f"on {counts} nothing else is shown to lower the risk at equal coverage; "
                "log-prob suffices"
            )
        verb = "lowers" if len(helpful) == 1 else "lower"
        return f"on {counts} {_listed(helpful)} {verb} the risk at equal coverage"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "signals": list(self.signals),
            "by": self.by,
            "uses": self.uses,
            "words": self.words,
            "tried": [tried.to_dict() for tried in self.tried],
            "against_logprob": None if self.against_logprob is None else dict(self.against_logprob),
            "n": self.n,
            "errors": self.errors,
        }


def choose_signals(
    calls: FoldedCalls,
    *,
    seed: int,
    fixed: Sequence[str] = (),
    by_preset: bool = False,
) -> SignalChoice:
    """Return the signals that P(wrong) uses.

    Forward selection from `logprob`. In each step every signal not yet kept is added by itself; the
    one with the smallest AURC is kept if the upper end of its paired difference lies below 0, at a
    confidence of 1 - 5 % / signals tried in this step, and the next step tries the rest. The upper
    tails of the step add up to 2.5 %: so rarely is a signal kept that does not help, whatever the
    number of candidates.

    Args:
        calls: of the fit split, with held-out readings.
        seed: of the bootstrap.
        fixed: signals to use whatever is measured; empty lets the measurement decide.
        by_preset: whether a preset fixed them, and not the user.

    Raises:
        CalibrationError: if a signal is NaN.

    Source: step-down with shrinking families, Holm (1979), "A simple sequentially rejective
        multiple test procedure"; stacking on held-out predictions, Wolpert (1992).
    """
    kept, tried = _forward(calls, seed) if calls.comparable else ((LOGPROB,), ())
    signals = tuple(fixed) or kept
    return SignalChoice(
        signals=signals,
        by="measurement" if not fixed else "preset" if by_preset else "user",
        tried=tried,
        against_logprob=_against_logprob(calls, signals, seed) if calls.comparable else None,
        n=len(calls.wrong),
        errors=calls.errors,
    )


def _forward(calls: FoldedCalls, seed: int) -> tuple[tuple[str, ...], tuple[TriedSignal, ...]]:
    """Return the signals kept and all that were tried, step by step."""
    kept: tuple[str, ...] = (LOGPROB,)
    tried: list[TriedSignal] = []
    risk = out_of_fold_risk(calls, kept)
    while rest := [name for name in SIGNALS if name not in kept]:
        risks = {name: out_of_fold_risk(calls, (*kept, name)) for name in rest}
        confidence = 1 - LEVEL / len(rest)
        step = [
            TriedSignal(
                name=name,
                beside=kept,
                aurc_difference=paired_difference(
                    "aurc",
                    found,
                    risk,
                    calls.wrong,
                    confidence=confidence,
                    seed=seed,
                ),
                auroc_difference=paired_difference(
                    "auroc", found, risk, calls.wrong, resamples=500, seed=seed
                ),
                confidence=confidence,
            )
            for name, found in risks.items()
        ]
        best = _helpful(step)
        tried += [replace(own, kept=True) if own is best else own for own in step]
        if best is None:
            break
        kept, risk = (*kept, best.name), risks[best.name]
    return kept, tuple(tried)


def _helpful(step: Sequence[TriedSignal]) -> TriedSignal | None:
    """Return the signal whose AURC is smallest if it is shown to help, else None."""
    known = [tried for tried in step if tried.aurc_difference.value is not None]
    best = min(known, key=lambda tried: tried.aurc_difference.value or 0.0, default=None)
    high = best.aurc_difference.high if best else None
    return best if high is not None and high < 0 else None


def out_of_fold_risk(calls: FoldedCalls, signals: Sequence[str]) -> Floats:
    """Return (calls,) P(wrong), each by a calibrator and penalty chosen without the call's fold.

    Raises:
        CalibrationError: if a signal is NaN, or never finite.
    """
    found = np.empty(len(calls.wrong))
    for fold, columns in calls.without.items():
        own = calls.folds == fold
        rest = {name: columns[name][~own] for name in signals}
        penalty = best_penalty(rest, calls.wrong[~own], calls.folds[~own])
        fitted = fit_calibrator(rest, calls.wrong[~own], l2=penalty)
        found[own] = fitted.probabilities({name: columns[name][own] for name in signals})
    return found


def best_penalty(columns: Columns, wrong: Booleans, folds: NDArray[np.int64]) -> float:
    """Return the penalty with the smallest log loss on held-out folds; the strongest among equals.

    With calls in one fold only there is nothing to hold out, and the strongest is returned.
    """
    parts = list(_fold_masks(folds))
    if len(parts) < 2:
        return PENALTIES[0]
    losses = [sum(_held_out_loss(columns, wrong, own, l2) for own in parts) for l2 in PENALTIES]
    least = min(losses) + _ROUNDING
    return next(l2 for l2, loss in zip(PENALTIES, losses, strict=True) if loss <= least)


def _fold_masks(folds: NDArray[np.int64]) -> Iterator[Booleans]:
    for fold in np.unique(folds):
        yield folds == fold


def _held_out_loss(columns: Columns, wrong: Booleans, own: Booleans, l2: float) -> float:
    """Return the summed log loss in `own` of a calibrator fitted to all others."""
    fitted = fit_calibrator({name: v[~own] for name, v in columns.items()}, wrong[~own], l2=l2)
    return _log_loss(fitted, {name: v[own] for name, v in columns.items()}, wrong[own])


def _log_loss(fitted: Calibrator, columns: Columns, wrong: Booleans) -> float:
    chance = np.clip(fitted.probabilities(columns), 1e-12, 1 - 1e-12)
    return float(-np.log(np.where(wrong, chance, 1 - chance)).sum())


def _against_logprob(
    calls: FoldedCalls, signals: tuple[str, ...], seed: int
) -> dict[str, Any] | None:
    if signals == (LOGPROB,):
        return None
    risk, baseline = out_of_fold_risk(calls, signals), out_of_fold_risk(calls, [LOGPROB])
    return {
        metric: paired_difference(metric, risk, baseline, calls.wrong, seed=seed).to_dict()
        for metric in RANKING_METRICS
    }


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
