"""One call's whole story: every event about it, in order, ready to be shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from toolguard.adapters.audit_store.event import EventKind, StoredEvent
from toolguard.adapters.audit_store.store import AuditStore
from toolguard.adapters.dashboard.decision_rows import (
    DecisionRow,
    base_id,
    decision_row,
    evidence_of,
    mapping,
    number,
)

_TIMES = 1000  # a call was begun or handed over, looked for at most


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalReading:
    """What one signal said of a call.

    Args:
        name: of the signal.
        margin: of the chosen tool over its best rival; None without a rival.
        gap: between the best two tools.
        candidates: best tools with their scores, best first.
    """

    name: str
    margin: float | None
    gap: float | None
    candidates: tuple[tuple[str, float | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One event of a story.

    Args:
        event: as stored.
        seconds: since the step before it; None for the first.
        facts: what its payload says besides, names to texts.
    """

    event: StoredEvent
    seconds: float | None
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStory:
    """All that is known of a call.

    Args:
        call_id: the call.
        steps: its events, oldest first.
        row: its decision in short; None if none is on record.
        signals: the evidence.
        facts: of the decision, names to texts.
        arguments: as written, if the policy keeps them plain; None otherwise.
    """

    call_id: str
    steps: tuple[Step, ...]
    row: DecisionRow | None
    signals: tuple[SignalReading, ...]
    facts: Mapping[str, str]
    arguments: Any

    @property
    def tool(self) -> str | None:
        """The tool's name, if it was on the menu."""
        return self.steps[0].event.tool

    @property
    def request(self) -> StoredEvent | None:
        """The request for a person's answer, if there was one."""
        return self._first("approval_request")

    @property
    def answered(self) -> bool:
        """Whether a person has answered."""
        return self._first("approval") is not None

    def _first(self, kind: str) -> StoredEvent | None:
        return next((step.event for step in self.steps if step.event.kind == kind), None)


def read_story(store: AuditStore, call_id: str) -> CallStory | None:
    """Return the story of a call, or None if nothing is on record.

    Raises:
        AuditError: if the store cannot be read.
    """
    if store.get(call_id, "decision") is None:
        call_id = base_id(call_id)
    events = _events(store, call_id)
    if not events:
        return None
    decision = next((event for event in events if event.kind == "decision"), None)
    later: dict[EventKind, StoredEvent] = {event.kind: event for event in events}
    return CallStory(
        call_id=call_id,
        steps=tuple(
            Step(event=event, seconds=_seconds(before, event), facts=_facts(event))
            for before, event in zip([None, *events], events, strict=False)
        ),
        row=decision_row(decision, later) if decision else None,
        signals=_signals(evidence_of(decision)) if decision else (),
        facts=_decision_facts(decision) if decision else {},
        arguments=decision.payload.get("arguments_plain") if decision else None,
    )


def _events(store: AuditStore, call_id: str) -> list[StoredEvent]:
    """Return the events of a call: of its attempts, and of the times it was handed over again."""
    events: list[StoredEvent] = []
    for attempt in _numbered(store, call_id, "#"):
        for event in _numbered(store, attempt[0].call_id, "~"):
            events += event
    return sorted(events, key=lambda event: event.seq)


def _numbered(store: AuditStore, call_id: str, sign: str) -> Iterator[list[StoredEvent]]:
    """Return the events of an id, of the same with 2 after it, and so on while there are any."""
    for key in chain([call_id], (f"{call_id}{sign}{times}" for times in range(2, _TIMES))):
        found = list(store.events(call_id=key))
        if not found:
            return
        yield found


def _seconds(before: StoredEvent | None, event: StoredEvent) -> float | None:
    return None if before is None else (event.created_at - before.created_at).total_seconds()


def _signals(evidence: Mapping[str, Any]) -> tuple[SignalReading, ...]:
    margins, gaps = mapping(evidence.get("margins")), mapping(evidence.get("gaps"))
    candidates = mapping(evidence.get("candidates"))
    return tuple(
        SignalReading(
            name=str(name),
            margin=number(margins.get(name)),
            gap=number(gaps.get(name)),
            candidates=_candidates(candidates.get(name)),
        )
        for name in dict.fromkeys((*margins, *gaps, *candidates))
    )


def _candidates(stored: object) -> tuple[tuple[str, float | None], ...]:
    rows = stored if isinstance(stored, list) else []
    return tuple(
        (str(row.get("tool")), number(row.get("score"))) for row in rows if isinstance(row, Mapping)
    )


def _decision_facts(event: StoredEvent) -> dict[str, str]:
    payload, evidence = event.payload, evidence_of(event)
    latency, recorded = number(evidence.get("latency_us")), mapping(payload.get("recorded"))
    facts = {
        "why": payload.get("detail"),
        "arguments concerned": ", ".join(map(str, payload.get("fields") or ())),
        "action": payload.get("action"),
        "would be": payload.get("proposed"),
        "before that": " ".join(
            str(recorded.get(name, "")) for name in ("action", "reason")
        ).strip(),
        "redirected to": payload.get("target"),
        "policy mode": payload.get("mode"),
        "fault": evidence.get("fault"),
        "time to judge": None if latency is None else f"{latency / 1000:.2f} ms",
        "arguments": payload.get("arguments"),
        "policy": payload.get("policy"),
    }
    if facts["would be"] == facts["action"]:
        del facts["would be"]
    return {name: str(value) for name, value in facts.items() if value}


def _facts(event: StoredEvent) -> dict[str, str]:
    """Return the entries of a payload as text; a decision's are shown in a part of their own."""
    if event.kind == "decision":
        return {}
    return {
        str(name): value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in event.payload.items()
        if value not in (None, "", [], {})
    }
