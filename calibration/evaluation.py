"""What a profile is worth on labelled calls it never saw.

Accuracy of model and readout, how well each signal tells wrong calls, whether the risk target
holds, steering, and queries that call for no tool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.collect import Observation, collect
from toolguard.calibration.generation import continue_prompts
from toolguard.calibration.metrics import (
    Rate,
    aurc,
    auroc,
    calibration_error,
    paired_difference,
    quartile_errors,
    undetermined,
    wilson,
)
from toolguard.calibration.near_duplicates import query_fingerprint
from toolguard.calibration.prompts import PromptWriter
from toolguard.calibration.records import Record
from toolguard.calibration.risk import measure_risk
from toolguard.calibration.steering import METHODS, SteeringCase, measure_steering
from toolguard.guard.calibrator import Calibrator
from toolguard.guard.errors import DatasetError, ToolguardError
from toolguard.guard.profile import Profile
from toolguard.guard.readout import margin
from toolguard.guard.tools import Menu, Tool

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

    batch_tokens: int = 16_384
    steering: int = 300
    no_call: int = 300
    alpha: float = 1.0
    risk_target: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCall:
    """One labelled call as the guard would read it.

    Args:
        record: what was asked.
        chosen: the model's greedy whole-name choice.
        wrong: whether that is not a right tool.
        readout_right: whether the activation's best tool is a right one; None if no tool was read.
        margins: signal -> margin of the chosen tool; a signal that could not be read is missing.
        p_wrong: None if a signal is missing.
        trusted: whether the profile vouches for the chosen tool.
    """

    record: Record
    chosen: str
    wrong: bool
    readout_right: bool | None
    margins: dict[str, float]
    p_wrong: float | None
    trusted: bool


@dataclass(slots=True)
class _Intake:
    """Sorts the records of one pass and counts what is left out."""

    seen: frozenset[int]
    silent: list[Record] = field(default_factory=list)
    by_id: dict[str, Record] = field(default_factory=dict)
    leaked: int = 0
    toolless: int = 0

    def calls(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records that have a call and were not used in calibration; keep the others."""
        for record in records:
            if not record.tools:
                self.toolless += 1
            elif query_fingerprint(record.query) in self.seen:
                self.leaked += 1
            elif record.is_call:
                self.by_id[record.id] = record
                yield record
            else:
                self.silent.append(record)


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
    intake = _Intake(seen=profile.seen_queries)
    skipped: list[tuple[Record, ToolguardError]] = []
    judge = _Judge(profile)
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


class _Judge:
    """Turns observations into judged calls; views of menus are kept."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._calibrator = Calibrator.from_dict(profile.meta.calibrator)
        self._views: dict[str, Any] = {}

    def read(self, record: Record, observation: Observation) -> JudgedCall:
        menu = _told(record.menu, self._profile)
        key = menu.content_hash
        view = self._views.setdefault(key, self._profile.view(menu))
        scores = view.scores(observation.hidden[0])
        margins: dict[str, float] = {}
        for signal, values in (("logprob", observation.scores), ("activation", scores)):
            found = (
                margin(values, observation.chosen)
                if math.isfinite(values[observation.chosen])
                else math.nan
            )
            if not math.isnan(found):
                margins[signal] = found
        readable = all(signal in margins for signal in self._calibrator.features)
        chosen = view.names[observation.chosen]
        return JudgedCall(
            record=record,
            chosen=chosen,
            wrong=observation.chosen not in observation.right,
            readout_right=int(scores.argmax()) in observation.right
            if view.readout is not None
            else None,
            margins=margins,
            p_wrong=self._calibrator.probability({s: margins[s] for s in self._calibrator.features})
            if readable
            else None,
            trusted=view.statuses[chosen] == "calibrated",
        )


def _told(menu: Menu, profile: Profile) -> Menu:
    if profile.meta.preset != "paper":
        return menu
    return Menu(tuple(Tool(name=name) for name in menu.names))


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
    cases = _steering_cases(loaded, wire, profile, calls, options) if options.steering else []
    if not cases:
        empty = {
            "n": 0,
            "switched": undetermined(0).to_dict(),
            "schema_valid": undetermined(0).to_dict(),
        }
        return dict.fromkeys(METHODS, empty)
    results = measure_steering(
        loaded,
        wire,
        profile,
        cases,
        alpha=options.alpha,
        batch_tokens=options.batch_tokens,
        seed=options.seed,
    )
    return {method: result.to_dict() for method, result in results.items()}


def _steering_cases(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    calls: list[JudgedCall],
    options: EvaluationOptions,
) -> list[SteeringCase]:
    """Return prompts with a target from the same menu; few records are used again."""
    rng = Random(options.seed)
    calibrated = {tool.name for tool in profile.meta.tools if tool.status == "calibrated"}
    usable = [
        call
        for call in calls
        if call.chosen in calibrated and len(calibrated & set(call.record.menu.names)) > 1
    ]
    if not usable:
        return []
    rng.shuffle(usable)
    writer = PromptWriter(loaded, wire, names_only=profile.meta.preset == "paper")
    cases: list[SteeringCase] = []
    for index in range(options.steering):
        call = usable[index % len(usable)]
        target = rng.choice(
            [n for n in call.record.menu.names if n in calibrated and n != call.chosen]
        )
        cases.append(_case(writer, wire, call, target))
    return cases


def _case(writer: PromptWriter, wire: WireFormat, call: JudgedCall, target: str) -> SteeringCase:
    prompt = writer.write([call.record], _refuse).prompts[0]
    return SteeringCase(
        prompt=tuple(prompt.suffix.tolist()),
        turn=wire.prefix(),
        trie=prompt.trie,
        menu=call.record.menu,
        source=call.chosen,
        target=target,
    )


def _refuse(_record: Record, error: ToolguardError) -> None:
    raise error


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
    turns = continue_prompts(loaded, prompts, new_tokens=64, batch_tokens=options.batch_tokens)
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
