"""What a profile knows of when not to call, as lines that a person can read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from toolguard.calibration.measuring.rate_text import rate_text
from toolguard.guard.profile_meta import CallOrAnswer

WORDS = {"answer": "should be an answer", "ask": "should be a question"}
"""What stands in place of a call that is unneeded, by the kind of the turn."""
COLUMNS = f"  {'turn':<22}{'signal':<13}{'AUROC':<24}let through where 95 % of the calls are"


def gate_lines(section: CallOrAnswer | None) -> list[str]:
    """Return the lines of a profile's table on when not to call; none if it does not know."""
    if section is None:
        return []
    turns = section.metrics["turns"]["test"]
    told = ", ".join(f"{turns.get(step, 0):,} {step}" for step in ("call", *section.kinds))
    where = f"read at layer {section.layer} where a call could start"
    return [
        f"call or answer, {where}; test turns: {told}",
        COLUMNS,
        *(
            line
            for kind, found in section.metrics["test"].items()
            for line in kind_lines(kind, found)
        ),
        "",
    ]


def kind_lines(kind: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is known of one kind of turn, as `gate_calibration.gate_metrics` measured it."""
    yield from signal_lines(WORDS[kind], found["signals"])
    threshold, target = found["threshold"], found["target"]
    if threshold is None:
        yield f"    no threshold is shown to keep {target:g}: every call is doubtful by it"
        return
    stopped, passed = rate_text(found["right_stopped"]), rate_text(found["unneeded_passed"])
    yield f"    P <= {threshold:.4f} for {target:g}: of the calls that the model starts it stops"
    yield f"    {stopped} of the right ones and lets {passed} of the others through"


def survey_table(result: Mapping[str, Any]) -> list[str]:
    """Return a survey as lines: every source and kind, then the profile's gate."""
    lines = ["call or answer, cross-fitted within each source", COLUMNS]
    for source, found in result["sources"].items():
        turns = ", ".join(f"{n:,} {step}" for step, n in found["n"].items())
        begun = ", ".join(f"{step} {rate_text(rate)}" for step, rate in found["starts"].items())
        lines += [f"{source}: {turns}; the model starts a call: {begun}"]
        for kind, signals in found["kinds"].items():
            if "left_out" in signals:
                lines.append(f"  {WORDS[kind]:<22}{signals['left_out']}")
            else:
                lines += signal_lines(WORDS[kind], signals)
    if not result["sources"]:
        lines.append("  no record tells whether to call")
    if result["gate"]:
        lines.append("the profile's own, all sources together")
        lines += [
            line for kind, found in result["gate"].items() for line in kind_lines(kind, found)
        ]
    return lines


def signal_lines(label: str, signals: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line a signal: AUROC, and what gets through at 95 % kept."""
    for signal, rates in signals.items():
        yield (
            f"  {label:<22}{signal:<13}{rate_text(rates['auroc']):<24}"
            f"{rate_text(rates['passed_at_95_kept'])}"
        )
        label = ""
