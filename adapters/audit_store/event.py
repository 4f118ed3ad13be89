"""One event of the audit store, and how it becomes a row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from toolguard.guard.errors import AuditError
from toolguard.guard.tools import sha256_text

EventKind = Literal["decision", "approval_request", "approval", "started", "outcome"]
"""What happened to a call; a call has at most one event of each kind."""

KINDS: tuple[EventKind, ...] = get_args(EventKind)
TEXT_LIMIT = 256  # characters of an id, a name or an action
PAYLOAD_LIMIT = 1 << 20  # bytes of JSON; holds arguments of the largest size the guard lets pass
_HASHED = "sha256:"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """Something that happened to a call.

    The store keeps what it is given: whoever must not store a value passes its digest.

    Args:
        kind: what happened.
        call_id: the call's id, not empty.
        run_id: the thread or run the call belongs to; empty if unknown.
        tool: the tool's name; None if it is not on the menu (free text of the model).
        action: one word: an action for a decision, the answer's type for an approval, and `done`,
            `failed`, `paused`, `blocked`, `answered` or `rejected` for an outcome.
        payload: more facts, JSON-ready.
    """

    kind: EventKind
    call_id: str
    run_id: str = ""
    tool: str | None = None
    action: str = ""
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent(AuditEvent):
    """An event with its place in the chain.

    Args:
        seq: place, from 1 without gaps.
        created_at: when it was written, UTC.
        hash: SHA-256 of the row and of all before it, 64 hex digits.
    """

    seq: int
    created_at: datetime
    hash: str


def event_row(event: AuditEvent, now: datetime) -> dict[str, Any]:
    """Return the event as column values, without its place in the chain.

    Raises:
        AuditError: if the event cannot be stored: an unknown kind, no call id, or a payload that is
            too large or no JSON.
    """
    if event.kind not in KINDS:
        raise AuditError(f"an audit event is one of {', '.join(KINDS)}, found {event.kind!r:.40}")
    if not event.call_id:
        raise AuditError(f"the {event.kind} event has no call id")
    reason, p_wrong = derived_columns(event.payload)
    return {
        "kind": event.kind,
        "call_id": stored_text(event.call_id),
        "run_id": stored_text(event.run_id),
        "tool": None if event.tool is None else stored_text(event.tool),
        "action": stored_text(event.action),
        "reason": reason,
        "p_wrong": p_wrong,
        "payload": _payload_text(event),
        "created_at": timestamp(now),
    }


def stored_event(row: Mapping[str, Any]) -> StoredEvent:
    """Return the event that a row holds.

    Raises:
        AuditError: if the row was damaged so that it holds none.
    """
    try:
        payload = json.loads(row["payload"])
        created_at = datetime.fromisoformat(row["created_at"])
    except (TypeError, ValueError, RecursionError) as error:
        raise AuditError(
            f"row {row['seq']} of the audit store is damaged ({type(error).__name__})",
            hint="run `toolguard audit verify`",
            seq=row["seq"],
        ) from None
    return StoredEvent(
        kind=row["kind"],
        call_id=row["call_id"],
        run_id=row["run_id"],
        tool=row["tool"],
        action=row["action"],
        payload=payload if isinstance(payload, dict) else {"value": payload},
        seq=row["seq"],
        created_at=created_at,
        hash=row["hash"],
    )


def stored_text(text: str) -> str:
    """Return `text` as it stands in a column: itself, or its hash if no database takes it whole.

    Ids and names can be chosen by a model or forged: too long, with NUL or with half a surrogate
    pair. A text that looks like such a hash is hashed too, so that two texts never become one.
    """
    plain = len(text) <= TEXT_LIMIT and "\0" not in text and not text.startswith(_HASHED)
    if plain and not any("\ud800" <= letter <= "\udfff" for letter in text):
        return text
    return _HASHED + sha256_text(json.dumps(text))


def timestamp(moment: datetime) -> str:
    """Return the moment in UTC with microseconds; later moments sort later as text."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def derived_columns(payload: object) -> tuple[str | None, float | None]:
    """Return reason and P(wrong) of a payload, which stand in columns of their own for counting."""
    if not isinstance(payload, Mapping):
        return None, None
    evidence = payload.get("evidence", payload)
    reason = payload.get("reason")
    p_wrong = evidence.get("p_wrong") if isinstance(evidence, Mapping) else None
    known = isinstance(p_wrong, (int, float)) and 0 <= p_wrong <= 1
    return (
        stored_text(reason) if isinstance(reason, str) else None,
        float(p_wrong) if known and p_wrong is not None else None,
    )


def _payload_text(event: AuditEvent) -> str:
    # ASCII alone: escaped, NUL and lone surrogates pass any database's text column.
    try:
        text = json.dumps(
            dict(event.payload), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise AuditError(
            f"the payload of the {event.kind} event is no JSON ({type(error).__name__})"
        ) from None
    if len(text) > PAYLOAD_LIMIT:
        raise AuditError(
            f"the payload of the {event.kind} event has {len(text):,} bytes,"
            f" more than {PAYLOAD_LIMIT:,}"
        )
    return text
