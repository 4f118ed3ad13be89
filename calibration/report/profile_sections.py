"""The tables that a profile's own facts and metrics fill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from toolguard.calibration.answering.gate_table import WORDS
from toolguard.calibration.report.figures import signal_name, signal_style
from toolguard.calibration.report.stored_metrics import dug, rate_at, words_at
from toolguard.guard.profile_meta import ProfileMeta
from toolguard.guard.rate import Rate

_TURN_SIGNALS = {
    "logprob": "log-probability of a call",
    "activation": "hidden state",
    "combined": "both together",
    "distance": "distance from all tools",
    "prompt_size": "size of the prompt alone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRow:
    """One signal on the test split."""

    name: str
    css: str
    auroc: Rate | None
    aurc: Rate | None
    low_quarter: Rate | None
    high_quarter: Rate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedRow:
    """A signal that calibration tried beside others, and what it changed."""

    name: str
    beside: str
    aurc_difference: Rate | None
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRow:
    """A risk target: its threshold, and what that does on the test split."""

    target: float
    threshold: float | None
    asked: bool
    coverage: Rate | None
    realised: Rate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRow:
    """How well a signal tells turns that need no call.

    Args:
        group: kind of turn, with its source where there are several.
        signal: its name.
        auroc: how often such a turn looks riskier than one that needs its call.
        passed: share of such turns let through where 95 % of the right calls are.
    """

    group: str
    signal: str
    auroc: Rate | None
    passed: Rate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionRow:
    """A way to correct doubtful calls: what it fixed and broke, and whether a guard may use it."""

    name: str
    words: str
    fixed: int
    broken: int
    net: Rate | None
    offered: bool


def signal_rows(meta: ProfileMeta) -> tuple[SignalRow, ...]:
    """Return the signals on the test split, P(wrong) first; empty if nothing is kept."""
    found = dug(meta.metrics, "test", "signals") or {}
    names = sorted(found, key=lambda name: name != "combined")
    return tuple(
        SignalRow(
            name=signal_name(name),
            css=signal_style(name, names),
            auroc=rate_at(found, name, "auroc"),
            aurc=rate_at(found, name, "aurc"),
            low_quarter=rate_at(found, name, "error_low_quartile"),
            high_quarter=rate_at(found, name, "error_high_quartile"),
        )
        for name in names
    )


def tried_rows(meta: ProfileMeta) -> tuple[TriedRow, ...]:
    """Return what calibration tried beside log-prob; empty if nothing is kept."""
    rows = dug(meta.metrics, "signals", "tried") or ()
    return tuple(
        TriedRow(
            name=signal_name(row["signal"]),
            beside=" and ".join(signal_name(name) for name in row["beside"]),
            aurc_difference=rate_at(row, "aurc_difference"),
            kept=bool(row["kept"]),
        )
        for row in rows
    )


def target_rows(meta: ProfileMeta) -> tuple[TargetRow, ...]:
    """Return every risk target with what its threshold does."""
    measured = {row["target"]: row for row in dug(meta.metrics, "test", "risk") or ()}
    return tuple(
        TargetRow(
            target=entry.target,
            threshold=entry.threshold,
            asked=entry.target == meta.requested_risk.target,
            coverage=rate_at(measured.get(entry.target), "coverage"),
            realised=rate_at(measured.get(entry.target), "realised"),
        )
        for entry in meta.risk
    )


def turn_rows(kinds: object, *, source: str = "") -> Iterator[TurnRow]:
    """Yield what is known of turns that need no call.

    Args:
        kinds: kind -> signal -> rates, as JSON has it; with or without `signals` between.
        source: where the turns come from, if that is to be said.
    """
    for kind, found in kinds.items() if isinstance(kinds, Mapping) else ():
        group = ": ".join(filter(None, (source, WORDS.get(kind, kind))))
        signals = dug(found, "signals") or found
        for signal in signals if isinstance(signals, Mapping) else ():
            auroc = rate_at(signals, signal, "auroc")
            if auroc is not None:
                passed = rate_at(signals, signal, "passed_at_95_kept")
                name = _TURN_SIGNALS.get(signal, signal.replace("_", " "))
                yield TurnRow(group=group, signal=name, auroc=auroc, passed=passed)
                group = ""


def gate_rows(meta: ProfileMeta) -> tuple[TurnRow, ...]:
    """Return what the profile knows of turns that need no call; empty if it does not."""
    section = meta.call_or_answer
    return () if section is None else tuple(turn_rows(dug(section.metrics, "test")))


def correction_rows(meta: ProfileMeta) -> tuple[CorrectionRow, ...]:
    """Return the corrections that calibration compared, without keeping the call as it is."""
    methods = dug(meta.metrics, "correction", "methods") or {}
    return tuple(
        CorrectionRow(
            name=name.replace("_", " "),
            words=words_at(found, "words"),
            fixed=int(dug(found, "tool", "fixed") or 0),
            broken=int(dug(found, "tool", "broken") or 0),
            net=rate_at(found, "tool", "net"),
            offered=name == meta.correction,
        )
        for name, found in methods.items()
        if name != "keep"
    )


def facts(meta: ProfileMeta) -> tuple[tuple[str, str], ...]:
    """Return names and values of what the page rests on."""
    splits, counted = meta.splits, dug(meta.metrics, "collection") or {}
    return (
        ("calls", f"{splits.fit:,} fit, {splits.select:,} select, {splits.test:,} test"),
        ("left out", _left_out(counted)),
        ("leak check", str(counted.get("leak_check", "not recorded"))),
        ("decision token after", repr(meta.prefix_text) if meta.prefix_text else "the prompt"),
        ("data", meta.dataset_hash),
        ("weights", meta.model.fingerprint),
        ("tokenizer", meta.model.tokenizer_hash),
        ("chat template", meta.model.template_hash),
        ("seed", str(meta.seed)),
        ("recipe", meta.preset or "the project's own"),
        ("made with", f"toolguard {meta.toolguard_version}"),
    )


def _left_out(counted: Mapping[str, Any]) -> str:
    reasons = (
        ("no_call", "without a call"),
        ("call_not_offered", "calling a tool not offered"),
        ("beyond_limit", "beyond the limit"),
        ("skipped", "not readable"),
    )
    out = [f"{counted[key]:,} {words}" for key, words in reasons if counted.get(key)]
    return ", ".join(out) or "none"
