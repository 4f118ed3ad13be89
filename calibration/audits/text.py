"""Audit events, statistics and chain reports as text that a terminal can safely show."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from toolguard.adapters.audit_store import (
    AuditStatistics,
    ChainReport,
    StoredEvent,
)

_BAR = 40  # characters of the longest bar
_SEALS = {
    "holds": "its signature holds",
    "broken": "its signature does not hold",
    "unchecked": "its signature was not checked, for want of the key",
    "unkeyed": "it was never signed",
}


def shown(text: str | None) -> str:
    """Return the text with what is not printable escaped; `-` for none.

    Ids can be forged: an escape sequence in one must not reach the terminal.
    """
    if not text:
        return "-"
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def event_json(event: StoredEvent) -> dict[str, Any]:
    """Return the event as JSON-ready fields."""
    return {
        "seq": event.seq,
        "created_at": event.created_at.isoformat(),
        "kind": event.kind,
        "call_id": event.call_id,
        "run_id": event.run_id,
        "tool": event.tool,
        "action": event.action,
        "payload": dict(event.payload),
        "hash": event.hash,
    }


def event_table(events: Iterable[StoredEvent]) -> list[str]:
    """Return one line an event under a heading."""
    heading = ("seq", "time (UTC)", "kind", "tool", "action", "reason", "P(wrong)", "call")
    rows = [_event_row(event) for event in events]
    return _columns([heading, *rows])


def event_lines(event: StoredEvent) -> list[str]:
    """Return the event with its payload, a fact a line."""
    head = f"{event.kind} {shown(event.action)}, row {event.seq}, {_time(event)} UTC"
    facts = {
        "tool": shown(event.tool),
        "call": shown(event.call_id),
        "run": shown(event.run_id),
        **{shown(str(name)): _value(value) for name, value in event.payload.items()},
        "hash": event.hash,
    }
    width = max(map(len, facts))
    return [head, *(f"  {name:<{width}}  {value}" for name, value in facts.items())]


def statistics_lines(statistics: AuditStatistics) -> list[str]:
    """Return counts of events, decisions and outcomes, and the distribution of P(wrong)."""
    if not statistics.kinds:
        return ["no events"]
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in statistics.kinds.items())
    lines = [f"{kinds}; from {statistics.first} to {statistics.last}"]
    if statistics.decisions:
        rows = [
            (shown(row.tool), shown(row.action), shown(row.reason), f"{row.count:,}")
            for row in statistics.decisions
        ]
        lines += ["", *_columns([("tool", "decision", "reason", "count"), *rows])]
    if statistics.outcomes:
        rows_out = [
            (shown(row.tool), shown(row.action), f"{row.count:,}") for row in statistics.outcomes
        ]
        lines += ["", *_columns([("tool", "outcome", "count"), *rows_out])]
    return [*lines, *_histogram(statistics)]


def report_lines(report: ChainReport) -> list[str]:
    """Return what a walk over the chain found; the head as `--anchor` takes it."""
    state = "the chain is whole" if report.ok else f"{report.found:,} problems"
    lines = [f"{report.checked:,} rows checked: {state}"]
    lines += [f"  {problem.kind}: {problem.detail}" for problem in report.problems]
    if report.found > len(report.problems):
        lines.append(f"  and {report.found - len(report.problems):,} more")
    if report.hash:
        lines.append(f"head {report.seq}:{shown(report.hash)}; {_SEALS[report.seal]}")
    return lines


def _event_row(event: StoredEvent) -> tuple[str, ...]:
    evidence = event.payload.get("evidence", event.payload)
    p_wrong = evidence.get("p_wrong") if isinstance(evidence, dict) else None
    reason = event.payload.get("reason")
    return (
        str(event.seq),
        _time(event),
        event.kind,
        shown(event.tool),
        shown(event.action),
        shown(reason) if isinstance(reason, str) else "-",
        f"{p_wrong:.4f}" if isinstance(p_wrong, float) else "-",
        shown(event.call_id),
    )


def _time(event: StoredEvent) -> str:
    return event.created_at.strftime("%Y-%m-%d %H:%M:%S")


def _value(value: Any) -> str:
    if isinstance(value, str):
        return shown(value)
    return shown(json.dumps(value, ensure_ascii=False))


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _histogram(statistics: AuditStatistics) -> list[str]:
    bins, most = statistics.p_wrong, max(statistics.p_wrong)
    if not most:
        return []
    lines = ["", "P(wrong)"]
    for at, count in enumerate(bins):
        bar = "#" * -(-_BAR * count // most)
        span = f"{at / len(bins):.2f}-{(at + 1) / len(bins):.2f}"
        lines.append(f"  {span}  {count:>8,}  {bar}".rstrip())
    return [*lines, f"  unknown    {statistics.p_wrong_unknown:>8,}"]
