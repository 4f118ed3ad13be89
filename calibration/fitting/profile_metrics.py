"""What a profile reaches on calls that nothing in it has seen, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolguard.calibration.datasets.splits import SPLITS
from toolguard.calibration.fitting.fit_input import CollectedCalls, FitOptions
from toolguard.calibration.fitting.readout_fit import FittedReadout
from toolguard.calibration.guarantee.risk import RiskThreshold, measure_risk
from toolguard.calibration.labels.labelled_calls import Booleans, Floats, places_of, wrong_of
from toolguard.calibration.measuring.metrics import (
    RANKING_METRICS,
    aurc,
    auroc,
    brier,
    calibration_error,
    paired_difference,
    quartile_errors,
)
from toolguard.guard.distribution import Distribution
from toolguard.guard.rate import Rate, undetermined, wilson
from toolguard.guard.signals import ALWAYS_READ, LOGPROB

_RESAMPLES = 500


def signal_metrics(risks: Mapping[str, Floats], wrong: Booleans, seed: int) -> dict[str, Any]:
    """Return AUROC, AURC and the errors by quartile of each signal.

    Args:
        risks: signal -> (calls,) larger where a call is more likely wrong.
        wrong: (calls,) outcomes.
        seed: of the bootstrap.
    """
    found = {}
    for name, risk in risks.items():
        quartiles = quartile_errors(-risk, wrong)
        found[name] = {
            "auroc": auroc(risk, wrong).to_dict(),
            "aurc": aurc(risk, wrong, seed=seed).to_dict(),
            "error_low_quartile": quartiles.low.to_dict(),
            "error_high_quartile": quartiles.high.to_dict(),
            "error_ratio": quartiles.ratio.to_dict(),
        }
    return found


def probability_metrics(probability: Floats, wrong: Booleans, seed: int) -> dict[str, Any]:
    """Return calibration error and Brier score of P(wrong), with bootstrap intervals."""
    return {
        "ece": _bootstrap(calibration_error, probability, wrong, seed).to_dict(),
        "brier": _bootstrap(brier, probability, wrong, seed).to_dict(),
        "mean": float(probability.mean()) if len(probability) else None,
        "error_rate": wilson(int(wrong.sum()), len(wrong)).to_dict(),
    }


def _bootstrap(
    measure: Callable[[Floats, Booleans], float | None],
    probability: Floats,
    wrong: Booleans,
    seed: int,
) -> Rate:
    value = measure(probability, wrong)
    if value is None:
        return undetermined(0)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(_RESAMPLES):
        rows = rng.integers(0, len(wrong), len(wrong))
        drawn.append(measure(probability[rows], wrong[rows]) or 0.0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Rate(value=value, low=float(low), high=float(high), n=len(wrong))


def risk_metrics(
    thresholds: Sequence[RiskThreshold], probability: Floats, wrong: Booleans
) -> list[dict[str, Any]]:
    """Return coverage and realised risk of each threshold on fresh calls."""
    rows = []
    for entry in thresholds:
        measured = measure_risk(probability, wrong, entry.threshold)
        rows.append(
            {
                "target": entry.target,
                "confidence": entry.confidence,
                "threshold": entry.threshold,
                "coverage": measured.coverage.to_dict(),
                "realised": measured.realised.to_dict(),
            }
        )
    return rows


def activation_gain(both: Floats, logprob: Floats, wrong: Booleans, seed: int) -> dict[str, Any]:
    """Return AURC(both) - AURC(logprob), paired on the same calls, and what it means in words.

    Args:
        both: (calls,) P(wrong) from log-prob and activation.
        logprob: (calls,) risk by log-probability alone.
        wrong: (calls,) outcomes.
        seed: of the bootstrap.
    """
    difference = paired_difference("aurc", both, logprob, wrong, seed=seed)
    return {"aurc_difference": difference.to_dict(), "words": _gain_in_words(difference)}


def _gain_in_words(difference: Rate) -> str:
    if difference.value is None or difference.low is None or difference.high is None:
        return "cannot be told: without both right and wrong calls there is nothing to rank"
    if difference.high < 0:
        return "the activation helps: with it, wrong calls rank higher than by log-prob alone"
    if difference.low > 0:
        return "log-prob alone is better: the activation makes the ranking worse"
    return "log-prob suffices: adding the activation makes no difference that these calls show"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProfileRisks:
    """What the calibrators of a profile say of all calls; arrays (calls,).

    Args:
        wrong: P(wrong) from the profile's own signals.
        both: P(wrong) from log-prob and activation, whatever the profile uses.
        signals: the profile's own.
    """

    wrong: Floats
    both: Floats
    signals: tuple[str, ...]

    def read(self, margins: Mapping[str, Floats]) -> dict[str, Floats]:
        """Return the signals that the guard reads at run time: always read, or used."""
        return {name: margins[name] for name in dict.fromkeys((*ALWAYS_READ, *self.signals))}


def profile_metrics(
    collected: CollectedCalls,
    fitted: FittedReadout,
    risks: ProfileRisks,
    thresholds: Sequence[RiskThreshold],
    options: FitOptions,
) -> dict[str, Any]:
    """Return all that is measured while a profile is made, JSON-ready.

    Args:
        collected: what was fitted to.
        fitted: the readout.
        risks: what the calibrators say.
        thresholds: one a target.
        options: what the user chose.
    """
    calls, probability = collected.calls, risks.wrong
    margins = risks.read(fitted.margins(calls))
    test = places_of(calls, "test")
    wrong = wrong_of(calls)
    select = fitted.trusted_places(calls, "select")
    return {
        "collection": dict(collected.notes),
        "choice": {**fitted.choice, "shrinkage": fitted.built.shrinkage},
        "errors": {split: int(wrong[places_of(calls, split)].sum()) for split in SPLITS},
        "select": activation_gain(
            risks.both[select], -margins[LOGPROB][select], wrong[select], options.seed
        ),
        "test": {
            "accuracy": {
                "model": _share(~wrong[test]),
                "readout": _share(fitted.readings.right[test]),
            },
            "signals": signal_metrics(
                {
                    **{name: -values[test] for name, values in margins.items()},
                    "combined": probability[test],
                },
                wrong[test],
                options.seed,
            ),
            "against_logprob": {
                metric: paired_difference(
                    metric,
                    probability[test],
                    -margins[LOGPROB][test],
                    wrong[test],
                    seed=options.seed,
                ).to_dict()
                for metric in RANKING_METRICS
            },
            **_guarded_metrics(collected, fitted, probability, thresholds, options),
            "distributions": _distributions(
                {**margins, "p_wrong": probability}, fitted.trusted_places(calls, "test")
            ),
        },
        "warnings": _warnings(collected, fitted, thresholds, options),
    }


def _distributions(readings: Mapping[str, Floats], places: Sequence[int]) -> dict[str, Any]:
    """Return what later readings are compared with: margins and P(wrong) of trusted calls."""
    return {name: Distribution.of(values[places]).to_dict() for name, values in readings.items()}


def _guarded_metrics(
    collected: CollectedCalls,
    fitted: FittedReadout,
    probability: Floats,
    thresholds: Sequence[RiskThreshold],
    options: FitOptions,
) -> dict[str, Any]:
    """Return what P(wrong) is worth where the guard uses it, and what is allowed of all calls."""
    calls = collected.calls
    trusted = fitted.trusted_places(calls, "test")
    test = places_of(calls, "test")
    # Calls of uncalibrated tools are not allowed at any threshold, not even at 1.
    allowed = np.full(len(calls), np.inf)
    allowed[trusted] = probability[trusted]
    return {
        "p_wrong": probability_metrics(
            probability[trusted], wrong_of(calls[place] for place in trusted), options.seed
        ),
        "risk": risk_metrics(thresholds, allowed[test], wrong_of(calls[place] for place in test)),
    }


def _share(flags: Booleans) -> dict[str, float | int | None]:
    return wilson(int(flags.sum()), len(flags)).to_dict()


def _warnings(
    collected: CollectedCalls,
    fitted: FittedReadout,
    thresholds: Sequence[RiskThreshold],
    options: FitOptions,
) -> list[str]:
    calls = collected.calls
    found = []
    errors = int(wrong_of(call for call in calls if call.split == "fit").sum())
    if errors == 0:
        found.append(
            "the model made no error in the fit split: P(wrong) is the same for every call, "
            "so it cannot tell one call from another; add harder records"
        )
    asked = next(entry for entry in thresholds if entry.target == options.max_risk)
    if asked.threshold is None:
        found.append(
            f"no threshold can be shown to keep the error rate at {options.max_risk:g} with "
            f"confidence {options.confidence:g}: no call is allowed by it "
            f"({asked.coverage.n} calls in the select split)"
        )
    missing = int((~fitted.built.means.calibrated).sum())
    if missing:
        found.append(
            f"{missing} of {len(collected.tools)} tools have fewer than {options.min_examples} "
            "right calls and are uncalibrated"
        )
    return found
