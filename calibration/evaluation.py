"""What a profile is worth on labelled calls it never saw.

Accuracy of model and readout, how well each signal tells wrong calls, whether the risk target
holds, steering, and queries that call for no tool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.collect import collect
from toolguard.calibration.generation import continue_prompts
from toolguard.calibration.judged_calls import CallJudge, Intake, JudgedCall
from toolguard.calibration.metrics import (
    aurc,
    auroc,
    calibration_error,
    paired_difference,
    quartile_errors,
)
from toolguard.calibration.prompts import PromptWriter
from toolguard.calibration.records import Record
from toolguard.calibration.risk import measure_risk
from toolguard.calibration.steering import METHODS, measure_steering
from toolguard.calibration.steering_cases import draw_cases
from toolguard.guard.errors import DatasetError, ToolguardError
from toolguard.guard.profile import Profile
from toolguard.guard.rate import Rate, undetermined, wilson

# Generation pads its prompts, so that one batch may hold more tokens than one packed reading.
GENERATION_FACTOR = 4
SIGNALS = ("logprob", "activation", "combined")
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """What to measure and how much of it.

    Args:
        batch_tokens: bound on one batch, in tokens.
        steering: cases for the steering comparison; 0 leaves it out.
        no_call: queries without a right call that are generated freely; 0 leaves them out.
        alpha: strength of the steering vectors.
        risk_target: risk whose threshold is checked; None is the one requested at calibration.
        seed: of samples and random vectors.
    """

    batch_tokens: int = 4096
    steering: int = 300
    no_call: int = 300
    alpha: float = 1.0
    risk_target: float | None = None
    seed: int = 0


def evaluate_profile(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    records: Iterable[Record],
    options: EvaluationOptions,
    *,
    on_done: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Return the evaluation as plain JSON values; a rate is `{value, low, high, n}` at 95 %.

    "Wrong" is the model's greedy whole-name choice at the decision token against the record's right
    names. Records that took part in fitting or selecting are left out and counted in `leaked`.

    Args:
        loaded: the profile's model.
        wire: the profile's format.
        profile: what is judged.
        records: labelled records.
        options: what to measure.
        on_done: told of each record that was read.

    Raises:
        DatasetError: if no record with a call is left.
    """
    intake = Intake(seen=profile.seen_queries)
    skipped: list[tuple[Record, ToolguardError]] = []
    judge = CallJudge(profile)
    calls: list[JudgedCall] = []
    stream = collect(
        loaded,
        wire,
        intake.calls(records),
        layers=[profile.meta.layer],
        batch_tokens=options.batch_tokens,
        names_only=profile.meta.preset == "paper",
        on_skip=lambda record, error: skipped.append((record, error)),
    )
    for observation in stream:
        calls.append(judge.read(intake.by_id[observation.record_id], observation))
        if on_done is not None:
            on_done(1)
    if not calls:
        raise DatasetError(
            f"no record is left to evaluate: {intake.leaked} took part in calibration, "
            f"{len(skipped)} were skipped",
            hint="pass data that calibration did not see",
        )
    return {
        **_signals(calls),
        **_risk(calls, profile, options.risk_target),
        "steering": _steering(loaded, wire, profile, calls, options),
        "no_call": _no_call(loaded, wire, profile, intake.silent, options),
        "leaked": intake.leaked,
        "without_tools": intake.toolless,
        "skipped": len(skipped),
        "by_source": _by_source(calls),
        "profile": {
            "layer": profile.meta.layer,
            "readout": profile.meta.readout,
            "signals": list(profile.meta.signals),
            "model": profile.meta.model.name,
        },
    }


def _signals(calls: list[JudgedCall]) -> dict[str, Any]:
    read = [call for call in calls if call.p_wrong is not None and "activation" in call.margins]
    wrong = np.array([call.wrong for call in read], dtype=bool)
    risks: dict[str, Floats] = {
        "logprob": np.array([-call.margins["logprob"] for call in read]),
        "activation": np.array([-call.margins["activation"] for call in read]),
        "combined": np.array([call.p_wrong for call in read], dtype=float),
    }
    right = [call.readout_right for call in calls if call.readout_right is not None]
    n_wrong = sum(call.wrong for call in calls)
    return {
        "n": len(calls),
        "n_wrong": n_wrong,
        "accuracy": {
            "model": wilson(len(calls) - n_wrong, len(calls)).to_dict(),
            "readout": (wilson(sum(right), len(right)) if right else undetermined(0)).to_dict(),
        },
        "signals": {signal: _signal(risks[signal], wrong) for signal in SIGNALS},
        "against_logprob": {
            signal: _against(risks[signal], risks["logprob"], wrong) for signal in SIGNALS[1:]
        },
        "calibration": {
            "ece": calibration_error(risks["combined"], wrong) if read else None,
            "n": len(read),
        },
    }


def _signal(risk: Floats, wrong: NDArray[np.bool_]) -> dict[str, Any]:
    quartiles = quartile_errors(-risk, wrong)
    return {
        "auroc": auroc(risk, wrong).to_dict(),
        "aurc": aurc(risk, wrong).to_dict(),
        "error_low_quartile": quartiles.low.to_dict(),
        "error_high_quartile": quartiles.high.to_dict(),
        "error_ratio": quartiles.ratio.to_dict(),
    }


def _against(risk: Floats, baseline: Floats, wrong: NDArray[np.bool_]) -> dict[str, Any]:
    """Return paired differences to the log-prob margin; AUROC above 0, AURC below 0 are better."""
    return {
        metric: paired_difference(metric, risk, baseline, wrong).to_dict()
        for metric in ("auroc", "aurc")
    }


def _risk(calls: list[JudgedCall], profile: Profile, target: float | None) -> dict[str, Any]:
    threshold = profile.threshold(target)
    # What the guard cannot vouch for it does not allow: it counts as refused.
    p_wrong = [call.p_wrong if call.trusted and call.p_wrong is not None else 1.1 for call in calls]
    measured = measure_risk(p_wrong, [call.wrong for call in calls], threshold)
    requested = profile.meta.requested_risk
    return {
        "risk": {
            "target": requested.target if target is None else target,
            "confidence": requested.confidence,
            "threshold": threshold,
            "coverage": measured.coverage.to_dict(),
            "realised": measured.realised.to_dict(),
        }
    }


def _steering(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    calls: list[JudgedCall],
    options: EvaluationOptions,
) -> dict[str, Any]:
    cases = draw_cases(loaded, wire, profile, calls, most=options.steering, seed=options.seed)
    if not cases:
        unknown = undetermined(0).to_dict()
        return {key: {"n": 0, "switched": unknown, "schema_valid": unknown} for key in METHODS}
    results = measure_steering(
        loaded,
        wire,
        profile,
        cases,
        alpha=options.alpha,
        batch_tokens=GENERATION_FACTOR * options.batch_tokens,
        seed=options.seed,
    )
    return {method: result.to_dict() for method, result in results.items()}


def _no_call(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    silent: list[Record],
    options: EvaluationOptions,
) -> dict[str, Any]:
    """Return how often the model calls a tool where none is right, generating freely."""
    rng = Random(options.seed)
    sample = rng.sample(silent, min(len(silent), options.no_call))
    if not sample:
        return {"n": 0, "called": undetermined(0).to_dict()}
    writer = PromptWriter(loaded, wire, names_only=profile.meta.preset == "paper")
    prompts = [
        loaded.tokenizer(writer.text(record), add_special_tokens=False)["input_ids"]
        for record in sample
    ]
    turns = continue_prompts(
        loaded, prompts, new_tokens=64, batch_tokens=GENERATION_FACTOR * options.batch_tokens
    )
    called = sum(_calls(loaded, wire, tokens) for tokens in turns)
    return {"n": len(sample), "called": wilson(called, len(sample)).to_dict()}


def _calls(loaded: LoadedModel, wire: WireFormat, tokens: list[int]) -> bool:
    text = str(
        loaded.tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    )
    return wire.find_name(text, 0) is not None


def _by_source(calls: list[JudgedCall]) -> dict[str, dict[str, Any]]:
    """Return the model's accuracy in each source."""
    sources: dict[str, list[bool]] = {}
    for call in calls:
        sources.setdefault(call.record.source, []).append(not call.wrong)
    rates: dict[str, Rate] = {
        source: wilson(sum(right), len(right)) for source, right in sorted(sources.items())
    }
    return {source: rate.to_dict() for source, rate in rates.items()}
