"""Decisions as rows: each call's decision with what has come of it since."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from toolguard.adapters.audit_store.event import EventKind, StoredEvent
from toolguard.adapters.audit_store.store import AuditStore

Verdict = Literal["run", "ask", "block"]
"""What the boundary does with a call, or would do."""

VERDICTS: Mapping[str, Verdict] = {
    "allow": "run",
    "steer": "run",
    "redirect": "run",
    "confirm": "ask",
    "veto": "block",
    "clarify": "block",
}
"""An action -> what it means for the call."""

SCAN = 10_000  # events looked at, at most
# Of a call whose tool paused, or that was handed over again; see agent_middleware.ledger.
_REPEATED = re.compile(r"(#\d{1,4})?(~\d{1,4})?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRow:
    """One call as the list shows it.

    Args:
        seq: of the decision event.
        at: when it was decided.
        call_id: the call.
        run_id: its thread; empty if unknown.
        tool: None if the name was not on the menu.
        verdict: what the policy says.
        opened: whether it ran all the same, in monitor mode.
        reason: why, as one word; empty if nobody said.
        p_wrong: None if unknown.
        threshold: None if none allows anything.
        margins: signal -> margin; None where there is no rival.
        status: how far the profile knew the tool.
        state: what has come of it, as one word.
    """

    seq: int
    at: datetime
    call_id: str
    run_id: str
    tool: str | None
    verdict: Verdict
    opened: bool
    reason: str
    p_wrong: float | None
    threshold: float | None
    margins: Mapping[str, float | None]
    status: str
    state: str


def recent_rows(
    store: AuditStore,
    *,
    limit: int,
    tool: str | None = None,
    run_id: str | None = None,
    verdict: str | None = None,
    since: datetime | None = None,
) -> list[DecisionRow]:
    """Return the newest decisions that fit all filters, newest first.

    Raises:
        AuditError: if the store cannot be read.
    """
    events = store.events(tool=tool, run_id=run_id, since=since, newest_first=True, limit=SCAN)
    found: list[DecisionRow] = []
    for row in _rows(events):
        if verdict is None or row.verdict == verdict:
            found.append(row)
            if len(found) == limit:
                break
    return found


def _rows(newest_first: Iterator[StoredEvent]) -> Iterator[DecisionRow]:
    # A call's later events come first here, so at its decision all of them are known.
    later: dict[str, dict[EventKind, StoredEvent]] = {}
    for event in newest_first:
        known = later.setdefault(base_id(event.call_id), {})
        if event.kind == "decision":
            yield decision_row(event, later.pop(base_id(event.call_id)))
        else:
            known.setdefault(event.kind, event)


def decision_row(event: StoredEvent, later: Mapping[EventKind, StoredEvent]) -> DecisionRow:
    """Return the row of a decision and the newest event of every other kind of its call."""
    facts, evidence = event.payload, evidence_of(event)
    verdict = VERDICTS.get(str(facts.get("proposed") or event.action), "block")
    done = VERDICTS.get(str(facts.get("action") or event.action))
    return DecisionRow(
        seq=event.seq,
        at=event.created_at,
        call_id=event.call_id,
        run_id=event.run_id,
        tool=event.tool,
        verdict=verdict,
        opened=verdict != "run" and done == "run",
        reason=str(facts.get("reason") or ""),
        p_wrong=number(evidence.get("p_wrong")),
        threshold=number(evidence.get("threshold")),
        margins={
            str(signal): number(value) for signal, value in mapping(evidence.get("margins")).items()
        },
        status=str(evidence.get("status") or ""),
        state=_state(later),
    )


def _state(later: Mapping[EventKind, StoredEvent]) -> str:
    """Return the last word on a call: how it ended, else how far it has come."""
    if outcome := later.get("outcome"):
        return str(outcome.payload.get("status") or outcome.action)
    if "started" in later:
        return "running"
    if answer := later.get("approval"):
        return f"answered: {answer.payload.get('type') or answer.action}"
    return "waiting" if "approval_request" in later else ""


def evidence_of(event: StoredEvent) -> Mapping[str, Any]:
    """Return P(wrong), margins and the like of a decision; they stand in a part of its record."""
    return mapping(event.payload.get("evidence", event.payload))


def base_id(call_id: str) -> str:
    """Return the call's id without the numbers of attempts."""
    return _REPEATED.sub("", call_id)


def mapping(value: object) -> Mapping[str, Any]:
    """Return `value` if it is a mapping, else an empty one; payloads may hold anything."""
    return value if isinstance(value, Mapping) else {}


def number(value: object) -> float | None:
    """Return `value` as a float if it is a number."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if known else None  # type: ignore[arg-type]
