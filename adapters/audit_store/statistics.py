"""Counts over the audit store, made by the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, select

from toolguard.adapters.audit_store.tables import EVENTS

BINS = 20  # of P(wrong), each 0.05 wide


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionCount:
    """How often a tool was decided on in one way.

    Args:
        tool: its name; None for names that are not on the menu.
        action: what was decided.
        reason: why, as one word; None if the event named none.
        count: number of decisions.
    """

    tool: str | None
    action: str
    reason: str | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCount:
    """How often executions of a tool ended in one way.

    Args:
        tool: its name.
        action: how they ended, `ok` or `error`.
        count: number of executions.
    """

    tool: str | None
    action: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditStatistics:
    """What happened in a span of time.

    Args:
        kinds: kind of event -> how many there are.
        decisions: by tool, action and reason, most frequent first.
        outcomes: by tool and action, most frequent first.
        p_wrong: decisions by P(wrong), in twenty equal parts of [0, 1].
        p_wrong_unknown: decisions without a P(wrong).
        first: time of the first event, ISO 8601 in UTC; None if there is none.
        last: time of the last event.
    """

    kinds: Mapping[str, int]
    decisions: tuple[DecisionCount, ...]
    outcomes: tuple[OutcomeCount, ...]
    p_wrong: tuple[int, ...]
    p_wrong_unknown: int
    first: str | None
    last: str | None


def read_statistics(connection: Connection, since: str | None) -> AuditStatistics:
    """Return the counts over events written at `since`, a stored time, or later."""
    where = [] if since is None else [EVENTS.c.created_at >= since]
    ends = select(func.min(EVENTS.c.created_at), func.max(EVENTS.c.created_at)).where(*where)
    first, last = connection.execute(ends).one()
    kinds = _counts(connection, where, "kind")
    decisions = _counts(connection, [*where, _of("decision")], "tool", "action", "reason")
    outcomes = _counts(connection, [*where, _of("outcome")], "tool", "action")
    bins, unknown = _histogram(connection, [*where, _of("decision")])
    return AuditStatistics(
        kinds={row["kind"]: row["count"] for row in kinds},
        decisions=tuple(DecisionCount(**row) for row in decisions),
        outcomes=tuple(OutcomeCount(**row) for row in outcomes),
        p_wrong=bins,
        p_wrong_unknown=unknown,
        first=first,
        last=last,
    )


def _of(kind: str) -> ColumnElement[bool]:
    return EVENTS.c.kind == kind


def _counts(
    connection: Connection, where: list[ColumnElement[bool]], *names: str
) -> list[dict[str, Any]]:
    columns = [EVENTS.c[name] for name in names]
    count = func.count().label("count")
    query = select(*columns, count).where(*where).group_by(*columns)
    rows = connection.execute(query.order_by(count.desc(), *columns)).mappings()
    return [dict(row) for row in rows]


def _histogram(
    connection: Connection, where: list[ColumnElement[bool]]
) -> tuple[tuple[int, ...], int]:
    # Rounding to a bin is not the same function in both databases; comparing is.
    p_wrong = EVENTS.c.p_wrong
    inside = [
        (p_wrong >= at / BINS) & (p_wrong < (at + 1) / BINS if at + 1 < BINS else p_wrong <= 1)
        for at in range(BINS)
    ]
    parts = [func.coalesce(func.sum(case((part, 1), else_=0)), 0) for part in inside]
    known, total = func.count(p_wrong), func.count()
    row = connection.execute(select(*parts, total - known).where(*where)).one()
    return tuple(int(n) for n in row[:-1]), int(row[-1])
