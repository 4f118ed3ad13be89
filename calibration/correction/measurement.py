"""What each correction of the flagged calls fixes and breaks, on the same calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.correction.flagged import FlaggedCalls
from toolguard.calibration.correction.methods import (
    KEEP,
    METHODS,
    CorrectionMethod,
    Targets,
    targets_of,
)
from toolguard.calibration.correction.net_gain import net_gain
from toolguard.calibration.correction.written_calls import Target, written_outcomes
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.call_check import OUTCOMES, Outcome, check_name
from toolguard.calibration.labels.judged_calls import JudgedCall
from toolguard.calibration.reading.row_packs import BATCH_TOKENS
from toolguard.guard.errors import ToolguardError
from toolguard.guard.profile import Profile
from toolguard.guard.rate import wilson

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionOptions:
    """How much to measure.

    Args:
        most: flagged calls that are corrected; more are sampled.
        batch_tokens: most new tokens in one forward.
        new_tokens: most tokens behind a name; 0 writes no arguments and checks names alone.
        seed: of the sample.
    """

    most: int = 300
    batch_tokens: int = BATCH_TOKENS
    new_tokens: int = 96
    seed: int = 0


DEFAULT_OPTIONS = CorrectionOptions()


def measure_correction(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    flagged: FlaggedCalls,
    options: CorrectionOptions = DEFAULT_OPTIONS,
    methods: Sequence[CorrectionMethod] = METHODS,
) -> dict[str, Any]:
    """Return what each correction does to the flagged calls, as plain JSON values.

    "Right tool" compares names, "whole call" arguments too, both by `call_check`. Each is paired
    with the call as the model would have made it: `fixed` was wrong and is right now, `broken` the
    other way round, `net` is (fixed - broken) / n with its 95 % interval. A call that a correction
    cannot take on stays as it is and is counted in `left`. `helps` names the best one that is shown
    to help, see `best_correction`.

    Args:
        loaded: the profile's model.
        wire: the profile's format.
        profile: what flagged the calls.
        flagged: what to correct.
        options: how much.
        methods: what to compare.
    """
    calls = flagged.sample(options.most, options.seed).calls
    names_only = profile.meta.preset == "paper"
    found = {
        method.name: targets_of(
            method,
            calls,
            loaded,
            wire,
            names_only=names_only,
            batch_tokens=options.batch_tokens,
        )
        for method in methods
    }
    pairs = [(call.record, _end(call, targets)) for targets in found.values() for call in calls]
    written: Mapping[Target, Outcome] = {}
    if options.new_tokens and wire.writes_arguments:
        written = written_outcomes(
            loaded,
            wire,
            pairs,
            on_skip=_unwritten,
            names_only=names_only,
            batch_tokens=options.batch_tokens,
            new_tokens=options.new_tokens,
        )
    candidates = [method for method in methods if method is not KEEP]
    level = 1 - (1 - CONFIDENCE) / max(1, len(candidates))
    told = {
        method.name: _method(method, calls, found[method.name], written, level)
        for method in methods
    }
    return {
        **flagged.to_dict(),
        "n": len(calls),
        "methods": told,
        "clarify": _clarify(flagged),
        "helps": best_correction(told, candidates),
    }


def best_correction(told: Mapping[str, Any], candidates: Sequence[CorrectionMethod]) -> str | None:
    """Return the name of the correction that helps most, or None if none is shown to help.

    It must fix more wrong tools than it breaks right ones, with the lower end of its interval above
    0 although the best of several was looked for, and must not lose whole calls. Among these the
    one with the largest net gain counts, and among equals the one of fewest prompts.

    Source: the level is shared out among the candidates after Bonferroni; see `net_gain`.
    """
    helpful = [
        method
        for method in candidates
        if (told[method.name]["lower_of_all"] or 0.0) > 0
        and (told[method.name]["whole_call"]["net"]["value"] or 0.0) >= 0
    ]
    ranked = sorted(helpful, key=lambda m: (-told[m.name]["tool"]["net"]["value"], m.prompts))
    return ranked[0].name if ranked else None


def _unwritten(_record: Record, _error: ToolguardError) -> None:
    """Leave a call out whose prompt cannot be written; it was read before, so there is none."""


def _end(call: JudgedCall, targets: Targets) -> str:
    return targets.get(call.record.id, call.chosen)


def _method(
    method: CorrectionMethod,
    calls: Sequence[JudgedCall],
    targets: Targets,
    written: Mapping[Target, Outcome],
    level: float,
) -> dict[str, Any]:
    """Return one method's figures; level: confidence that all candidates hold together."""
    ends = [_end(call, targets) for call in calls]
    tool = [
        (not call.wrong, check_name(call.record, end) == "right")
        for call, end in zip(calls, ends, strict=True)
    ]
    whole = [
        (written[call.record.id, call.chosen], written[call.record.id, end])
        for call, end in zip(calls, ends, strict=True)
        if (call.record.id, call.chosen) in written
    ]
    outcomes = Counter(after for _, after in whole)
    fixed, broken = _crossings(tool)
    return {
        "words": method.words,
        "cost": method.cost(),
        "served": method.served,
        "left": sum(call.record.id not in targets for call in calls),
        "changed": sum(end != call.chosen for call, end in zip(calls, ends, strict=True)),
        "tool": _paired(tool),
        "whole_call": {
            **_paired([(before == "right", after == "right") for before, after in whole]),
            "outcomes": {outcome: outcomes[outcome] for outcome in OUTCOMES},
        },
        "lower_of_all": net_gain(fixed, broken, len(tool), level).low,
    }


def _paired(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    """Return how many calls are right after a correction, and how many crossed over."""
    fixed, broken = _crossings(pairs)
    return {
        "right": wilson(sum(after for _, after in pairs), len(pairs)).to_dict(),
        "fixed": fixed,
        "broken": broken,
        "net": net_gain(fixed, broken, len(pairs), CONFIDENCE).to_dict(),
    }


def _crossings(pairs: Sequence[tuple[bool, bool]]) -> tuple[int, int]:
    fixed = sum(after and not before for before, after in pairs)
    broken = sum(before and not after for before, after in pairs)
    return fixed, broken


def _clarify(flagged: FlaggedCalls) -> dict[str, Any]:
    """Return what it costs to ask the user about every flagged call instead."""
    n = len(flagged.calls)
    wrong = sum(call.wrong for call in flagged.calls)
    return {
        "words": "the user is asked; no flagged call runs",
        "cost": {"prompts": 0, "tokens": "none, but a turn of the user"},
        "coverage_lost": wilson(n, flagged.read).to_dict(),
        "wrong_stopped": wilson(wrong, n).to_dict(),
        "right_stopped": wilson(n - wrong, n).to_dict(),
    }
