"""What a profile is worth on labelled calls it never saw.

Accuracy of model and readout, how well each vote tells wrong calls, whether the risk target holds,
steering, and queries that call for no tool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.answering.survey import SurveyOptions, survey_call_or_answer
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.guarantee.risk import measure_risk
from toolguard.calibration.labels.fresh_calls import read_fresh
from toolguard.calibration.labels.judged_calls import Intake, JudgedCall
from toolguard.calibration.labels.turn_outcomes import measure_turns, write_turns
from toolguard.calibration.measuring.metrics import calibration_error
from toolguard.calibration.steering_lab.pairs import Choice
from toolguard.calibration.steering_lab.section import steering_section
from toolguard.calibration.votes.catalogue import SAMPLES
from toolguard.calibration.votes.evidence import CallEvidence
from toolguard.calibration.votes.gathering import Gatherer, GatherOptions, OnStep
from toolguard.calibration.votes.measurement import measure_votes
from toolguard.calibration.votes.vote_plan import VotePlan, plan_votes
from toolguard.calibration.votes.written_calls import Sampling
from toolguard.guard.errors import DatasetError, ToolguardError
from toolguard.guard.profile import Profile
from toolguard.guard.rate import Rate, undetermined, wilson

# Generation pads its prompts, so that one batch may hold more tokens than one packed reading.
GENERATION_FACTOR = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """What to measure and how much of it.

    Args:
        batch_tokens: bound on one batch, in tokens.
        steering: cases for the steering comparison; 0 leaves it out.
        turns: queries with a right call on which the whole turn is written freely; 0 leaves it out.
        no_call: queries without a right call that are generated freely, and of each source those
            on which it is measured whether to call; 0 leaves both out.
        alpha: strength of the steering vectors.
        risk_target: risk whose threshold is checked; None is the one requested at calibration.
        votes: which to measure, as `catalogue.choose_votes` takes it.
        samples: sampled calls that self-consistency looks at.
        temperature: at which they are sampled; above 0.
        embedding_model: sentence encoder of the vote `embedding`, see `similarity.load_encoder`.
        seed: of samples, folds and random vectors.
    """

    batch_tokens: int = 4096
    steering: int = 300
    turns: int = 200
    no_call: int = 300
    alpha: float = 1.0
    risk_target: float | None = None
    votes: str = "free"
    samples: int = SAMPLES
    temperature: float = 1.0
    embedding_model: str | None = None
    seed: int = 0


def evaluate_profile(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    records: Iterable[Record],
    options: EvaluationOptions,
    *,
    on_done: Callable[[int], object] | None = None,
    on_step: OnStep = lambda _step: None,
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
        on_step: told what is done after that.

    Raises:
        DatasetError: if no record with a call is left.
        ConfigError: if a vote does not exist, or what it needs is not installed.
        UnsupportedModel: if a vote cannot be had from this model.
    """
    plan = plan_votes(
        loaded, options.votes, samples=options.samples, embedding_model=options.embedding_model
    )
    gatherer = Gatherer(loaded, wire, profile.meta.layer, _gathering(plan, profile, options))
    intake = Intake(seen=profile.seen_queries)
    skipped: list[ToolguardError] = []
    read: list[CallEvidence] = []
    stream = read_fresh(
        loaded,
        wire,
        profile,
        intake,
        records,
        layers=gatherer.layers,
        batch_tokens=options.batch_tokens,
        on_skip=lambda _record, error: skipped.append(error),
    )
    for judged, observation in stream:
        read.append(gatherer.take(judged, observation))
        if on_done is not None:
            on_done(1)
    if not read:
        raise DatasetError(
            f"no record is left to evaluate: {intake.leaked} took part in calibration, "
            f"{len(skipped)} were skipped",
            hint="pass data that calibration did not see",
        )
    calls = [call.judged for call in read]
    evidence = gatherer.gather(read, on_step)
    on_step("measuring votes")
    return {
        **_accuracy(calls),
        **measure_votes(plan.votes, evidence),
        "votes_left_out": dict(plan.left_out),
        **_risk(calls, profile, options.risk_target),
        "steering": _steering(loaded, wire, profile, calls, options),
        "turns": _turns(loaded, wire, profile, calls, options),
        "no_call": _no_call(loaded, wire, profile, intake.silent, options),
        "call_or_answer": _call_or_answer(loaded, wire, profile, intake, options),
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


def _gathering(plan: VotePlan, profile: Profile, options: EvaluationOptions) -> GatherOptions:
    """Return how the evidence of the votes is gathered."""
    return GatherOptions(
        needs=plan.needs,
        names_only=profile.meta.preset == "paper",
        batch_tokens=options.batch_tokens,
        sampling=Sampling(
            calls=options.samples, temperature=options.temperature, seed=options.seed
        ),
        seed=options.seed,
        encode=plan.encode,
    )


def _accuracy(calls: list[JudgedCall]) -> dict[str, Any]:
    """Return how often model and readout are right, and how far P(wrong) is off."""
    right = [call.readout_right for call in calls if call.readout_right is not None]
    n_wrong = sum(call.wrong for call in calls)
    told = [(call.p_wrong, call.wrong) for call in calls if call.p_wrong is not None]
    return {
        "n": len(calls),
        "n_wrong": n_wrong,
        "accuracy": {
            "model": wilson(len(calls) - n_wrong, len(calls)).to_dict(),
            "readout": (wilson(sum(right), len(right)) if right else undetermined(0)).to_dict(),
        },
        "calibration": {
            "ece": calibration_error(*np.array(told, dtype=float).T) if told else None,
            "n": len(told),
        },
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
    return steering_section(
        loaded,
        wire,
        profile,
        [Choice(record=call.record, chosen=call.chosen) for call in calls],
        most=options.steering,
        alpha=options.alpha,
        batch_tokens=options.batch_tokens,
        seed=options.seed,
    )


def _turns(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    calls: list[JudgedCall],
    options: EvaluationOptions,
) -> dict[str, Any]:
    """Return what whole turns are where a call is right: each kind of fault apart."""
    return measure_turns(
        loaded,
        wire,
        [call.record for call in calls],
        most=options.turns,
        seed=options.seed,
        names_only=profile.meta.preset == "paper",
        batch_tokens=GENERATION_FACTOR * options.batch_tokens,
    )


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
    written = write_turns(
        loaded,
        wire,
        sample,
        names_only=profile.meta.preset == "paper",
        new_tokens=64,
        batch_tokens=GENERATION_FACTOR * options.batch_tokens,
    )
    turns = [text for text in written if text is not None]
    called = sum(wire.find_name(text) is not None for text in turns)
    return {"n": len(turns), "called": wilson(called, len(turns)).to_dict()}


def _call_or_answer(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    intake: Intake,
    options: EvaluationOptions,
) -> dict[str, Any] | None:
    """Return how well needless calls are told; None if that is left out or every record calls."""
    if not options.no_call or not intake.silent:
        return None
    chosen = SurveyOptions(
        most=options.no_call,
        target=options.risk_target,
        batch_tokens=options.batch_tokens,
        names_only=profile.meta.preset == "paper",
        seed=options.seed,
    )
    records = [*intake.by_id.values(), *intake.silent]
    return survey_call_or_answer(loaded, wire, records, chosen, profile=profile)


def _by_source(calls: list[JudgedCall]) -> dict[str, dict[str, Any]]:
    """Return the model's accuracy in each source."""
    sources: dict[str, list[bool]] = {}
    for call in calls:
        sources.setdefault(call.record.source, []).append(not call.wrong)
    rates: dict[str, Rate] = {
        source: wilson(sum(right), len(right)) for source, right in sorted(sources.items())
    }
    return {source: rate.to_dict() for source, rate in rates.items()}
