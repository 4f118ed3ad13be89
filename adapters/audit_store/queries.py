"""Questions to the table of events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from toolguard.adapters.audit_store.event import EventKind, stored_text, timestamp
from toolguard.adapters.audit_store.tables import EVENTS

PAGE = 500  # rows a query brings at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class StartLimit:
    """How many calls of a tool may be started.

    Args:
        most: starts allowed.
        seconds: within this time back from now; None for any time.
        run_id: in this run alone; None for all runs.
    """

    most: int
    seconds: float | None = None
    run_id: str | None = None


def find_row(connection: Connection, call_id: str, kind: EventKind) -> dict[str, Any] | None:
    """Return the row of this kind of a call, or None; `call_id` as it is stored."""
    query = select(EVENTS).where(EVENTS.c.call_id == call_id, EVENTS.c.kind == kind)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else dict(row)


def count_starts(connection: Connection, tool: str | None, now: datetime, limit: StartLimit) -> int:
    """Return how many calls of `tool`, as it is stored, were started within the limit's bounds."""
    query = select(func.count()).where(EVENTS.c.tool == tool, EVENTS.c.kind == "started")
    if limit.seconds is not None:
        earliest = timestamp(now - timedelta(seconds=limit.seconds))
        query = query.where(EVENTS.c.created_at > earliest)
    if limit.run_id is not None:
        query = query.where(EVENTS.c.run_id == stored_text(limit.run_id))
    return connection.execute(query).scalar_one()


def all_rows(connection: Connection) -> Iterator[dict[str, Any]]:
    """Return every row by its number, few of them in memory at a time."""
    query = select(EVENTS).order_by(EVENTS.c.seq).execution_options(yield_per=PAGE)
    return (dict(row) for row in connection.execute(query).mappings())


def last_seq(connection: Connection) -> int:
    """Return the number of the last row, 0 if there is none."""
    return connection.execute(select(func.max(EVENTS.c.seq))).scalar_one() or 0


def conditions(since: datetime | None, **wanted: str | None) -> list[ColumnElement[bool]]:
    """Return the conditions of a filter: columns that must equal a value, None for any."""
    where = [
        EVENTS.c[name] == stored_text(value) for name, value in wanted.items() if value is not None
    ]
    return where if since is None else [*where, EVENTS.c.created_at >= timestamp(since)]


def unanswered() -> list[ColumnElement[bool]]:
    """Return the conditions of an approval request without an approval."""
    answer = EVENTS.alias()
    answers = select(answer.c.seq).where(
        answer.c.call_id == EVENTS.c.call_id, answer.c.kind == "approval"
    )
    return [EVENTS.c.kind == "approval_request", ~answers.exists()]
