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

from toolguard.calibration.fit_calibrator import fit_calibrator
from toolguard.calibration.fit_input import (
    CollectedCalls,
    FitOptions,
    ToolDefinition,
    check_calls,
)
from toolguard.calibration.labelled_calls import Floats, LabelledCall, places_of, wrong_of
from toolguard.calibration.profile_metrics import profile_metrics
from toolguard.calibration.readout_fit import FittedReadout, fit_readout
from toolguard.calibration.risk import RiskThreshold, choose_threshold
from toolguard.calibration.splits import SPLITS
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

STANDING_TARGETS = (0.01, 0.02, 0.05, 0.1, 0.2)
SIGNALS = ("logprob", "activation")


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
    calibrators = _fit_calibrators(fitted, calls)
    probability = calibrators["combined"].probabilities(fitted.margins(calls))
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
            signals=SIGNALS,
            single_calibrators={name: calibrators[name].to_dict() for name in SIGNALS},
            risk=tuple(_risk_entry(entry) for entry in thresholds),
            requested_risk=RequestedRisk(target=options.max_risk, confidence=options.confidence),
            gap_low_quartile=float(np.quantile(gaps, 0.25)) if len(gaps) else None,
            dataset_hash=collected.dataset_hash,
            seed=options.seed,
            splits=SplitCounts(**{split: len(places_of(calls, split)) for split in SPLITS}),
            metrics=profile_metrics(collected, fitted, probability, thresholds, options),
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


def _fit_calibrators(fitted: FittedReadout, calls: Sequence[LabelledCall]) -> dict[str, Calibrator]:
    """Return calibrators on both signals together and on each alone, from held-out readings."""
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
    singles = {name: fit_calibrator({name: margins[name]}, wrong) for name in SIGNALS}
    return {"combined": fit_calibrator(margins, wrong), **singles}


def _thresholds(
    probability: Floats,
    fitted: FittedReadout,
    calls: Sequence[LabelledCall],
    options: FitOptions,
) -> list[RiskThreshold]:
    """Return a threshold for each target; calls of uncalibrated tools are not allowed by any."""
    select = fitted.trusted_places(calls, "select")
    wrong = wrong_of(calls[place] for place in select)
    targets = sorted({*STANDING_TARGETS, options.max_risk})
    return [
        choose_threshold(probability[select], wrong, target=target, confidence=options.confidence)
        for target in targets
    ]


def _risk_entry(found: RiskThreshold) -> RiskEntry:
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
