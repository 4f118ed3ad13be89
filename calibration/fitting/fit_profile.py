"""From labelled calls with their hidden states to a profile.

Fit, select and test splits each serve one purpose: means, readout and calibrator come from `fit`,
thresholds from `select`, and `test` is only reported on. docs/decisions/0005-fitting.md says how.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from toolguard.calibration.datasets.splits import SPLITS
from toolguard.calibration.fitting.fit_calibrator import fit_calibrator
from toolguard.calibration.fitting.fit_input import (
    CollectedCalls,
    FitOptions,
    ToolDefinition,
    check_calls,
)
from toolguard.calibration.fitting.profile_metrics import ProfileRisks, profile_metrics
from toolguard.calibration.fitting.readout_fit import FittedReadout, fit_readout
from toolguard.calibration.fitting.signal_choice import (
    FoldedCalls,
    SignalChoice,
    best_penalty,
    choose_signals,
)
from toolguard.calibration.guarantee.risk import RiskThreshold, choose_threshold
from toolguard.calibration.labels.labelled_calls import Floats, LabelledCall, places_of, wrong_of
from toolguard.guard.calibrator import Calibrator
from toolguard.guard.errors import CalibrationError
from toolguard.guard.profile import Profile
from toolguard.guard.profile_meta import (
    ProfileMeta,
    ProfileTool,
    RequestedRisk,
    RiskEntry,
    SplitCounts,
)
from toolguard.guard.signals import ALWAYS_READ

STANDING_TARGETS = (0.01, 0.02, 0.05, 0.1, 0.2)


def fit_profile(
    collected: CollectedCalls,
    options: FitOptions,
    *,
    on_layer: Callable[[int], None] = lambda _layer: None,
) -> Profile:
    """Return the profile of a model from its labelled calls.

    Args:
        collected: calls and hidden states.
        options: what the user chose.
        on_layer: told of each layer that cross-validation has done.

    Raises:
        CalibrationError: if there are too few calls, the model gets none right, or no readout can
            be fitted.
        ConfigError: if a layer cannot be read.
    """
    calls = collected.calls
    check_calls(collected)
    fitted = fit_readout(collected, options, on_layer)
    choice, calibrators = _fit_calibrators(fitted, calls, options)
    margins = fitted.margins(calls)
    probability = calibrators["combined"].probabilities(margins)
    thresholds = _thresholds(probability, fitted, calls, options)
    select = places_of(calls, "select")
    gaps = fitted.readings.gap[select]
    gaps = gaps[np.isfinite(gaps)]
    return Profile(
        meta=ProfileMeta(
            toolguard_version=version("toolguard-margin"),
            model=collected.model,
            wire_format=collected.wire_format,
            prefix_text=collected.prefix_text,
            prefix_ids=collected.prefix_ids,
            layer=fitted.layer,
            readout=fitted.variant.kind,
            covariance_target=fitted.variant.target,
            tools=_profile_tools(collected.tools, fitted),
            calibrator=calibrators["combined"].to_dict(),
            signals=choice.signals,
            single_calibrators={name: calibrators[name].to_dict() for name in ALWAYS_READ},
            risk=tuple(risk_entry(entry) for entry in thresholds),
            requested_risk=RequestedRisk(target=options.max_risk, confidence=options.confidence),
            gap_low_quartile=float(np.quantile(gaps, 0.25)) if len(gaps) else None,
            dataset_hash=collected.dataset_hash,
            seed=options.seed,
            splits=SplitCounts(**{split: len(places_of(calls, split)) for split in SPLITS}),
            metrics={
                **profile_metrics(
                    collected,
                    fitted,
                    ProfileRisks(
                        wrong=probability,
                        both=calibrators["both"].probabilities(margins),
                        signals=choice.signals,
                    ),
                    thresholds,
                    options,
                ),
                "signals": choice.to_dict(),
            },
            preset=options.preset,
        ),
        readout=fitted.built.readout,
        means=fitted.built.means.means.to(torch.float32),
        centre=fitted.built.means.centre.to(torch.float32),
        covariance=fitted.built.covariance,
        seen=signed_fingerprints(collected.seen),
    )


def signed_fingerprints(fingerprints: frozenset[int]) -> Tensor:
    """Return unsigned 64-bit fingerprints as (queries,) int64 of the same bits, sorted."""
    ordered = np.array(sorted(fingerprints), dtype=np.uint64)
    return torch.from_numpy(ordered.view(np.int64))


def _fit_calibrators(
    fitted: FittedReadout, calls: Sequence[LabelledCall], options: FitOptions
) -> tuple[SignalChoice, dict[str, Calibrator]]:
    """Return the choice of signals and the calibrators, all from held-out readings of `fit`.

    `combined` uses the chosen signals, `both` what is always read, the others one signal alone.
    """
    places = [
        place
        for place in fitted.trusted_places(calls, "fit")
        if not np.isnan(fitted.readings.margin[place])
    ]
    if not places:
        raise CalibrationError(
            "no call of a calibrated tool is left for the calibrator",
            hint="give more records than the means take",
        )
    margins = {name: values[places] for name, values in fitted.margins(calls).items()}
    wrong = wrong_of(calls[place] for place in places)
    folds = np.array([calls[place].fold for place in places])
    choice = choose_signals(
        FoldedCalls(
            wrong=wrong,
            folds=folds,
            without={
                fold: {n: v[places] for n, v in fitted.nested_margins(calls, fold).items()}
                for fold in sorted(set(folds.tolist()))
            },
        ),
        seed=options.seed,
        fixed=options.fixed_signals,
        by_preset=not options.signals,
    )

    def fit(signals: Sequence[str]) -> Calibrator:
        own = {name: margins[name] for name in signals}
        return fit_calibrator(own, wrong, l2=best_penalty(own, wrong, folds))

    singles = {name: fit_calibrator({name: margins[name]}, wrong) for name in ALWAYS_READ}
    return choice, {"combined": fit(choice.signals), "both": fit(ALWAYS_READ), **singles}


def _thresholds(
    probability: Floats,
    fitted: FittedReadout,
    calls: Sequence[LabelledCall],
    options: FitOptions,
) -> list[RiskThreshold]:
    """Return a threshold for each target; calls of uncalibrated tools are not allowed by any."""
    select = fitted.trusted_places(calls, "select")
    wrong = wrong_of(calls[place] for place in select)
    targets = sorted({*STANDING_TARGETS, options.max_risk, *options.targets})
    return [
        choose_threshold(probability[select], wrong, target=target, confidence=options.confidence)
        for target in targets
    ]


def risk_entry(found: RiskThreshold) -> RiskEntry:
    """Return what a profile keeps of a threshold."""
    return RiskEntry(
        target=found.target,
        confidence=found.confidence,
        threshold=found.threshold,
        n=found.coverage.n,
        coverage=found.coverage.value,
        realised=found.realised.value,
        upper_bound=found.upper_bound,
    )


def _profile_tools(
    tools: Sequence[ToolDefinition], fitted: FittedReadout
) -> tuple[ProfileTool, ...]:
    calibrated = fitted.built.means.calibrated.tolist()
    return tuple(
        ProfileTool(
            name=tool.name,
            content_hashes=tool.content_hashes,
            n=count if known else 0,
            status="calibrated" if known else "uncalibrated",
        )
        for tool, count, known in zip(tools, fitted.counts.tolist(), calibrated, strict=True)
    )
