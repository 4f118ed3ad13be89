"""Events for tests of the audit store, and a way around its triggers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, create_engine, text

from toolguard.adapters.audit_store import AuditEvent
from toolguard.adapters.audit_store.database import parse_url

KEY = bytes(range(32))
START = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def decision(call_id: str, **changes: object) -> AuditEvent:
    """Return a decision as the middleware would record it."""
    facts = {
        "reason": "confident",
        "proposed": "allow",
        "arguments": "hmac-sha256:" + "0" * 64,
        "evidence": {"p_wrong": 0.125, "margins": {"logprob": 1.5}},
    }
    values = {"tool": "search", "action": "allow", "run_id": "run-1", "payload": facts}
    return AuditEvent(kind="decision", call_id=call_id, **{**values, **changes})


def started(call_id: str, tool: str = "search", run_id: str = "run-1") -> AuditEvent:
    return AuditEvent(kind="started", call_id=call_id, tool=tool, run_id=run_id)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)


def tamper(url: str, *statements: str | Callable[[Connection], object], **values: object) -> None:
    """Run statements on the database, with the triggers out of the way: it is ours to break."""
    engine = create_engine(parse_url(url))
    with engine.begin() as connection:
        sqlite = connection.dialect.name == "sqlite"
        if sqlite:
            names = connection.execute(text("SELECT name FROM sqlite_master WHERE type='trigger'"))
            for name in names.scalars().all():
                connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            for table in ("toolguard_events", "toolguard_chain"):
                connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER ALL"))
        for statement in statements:
            if callable(statement):
                statement(connection)
            else:
                connection.execute(text(statement), values)
    engine.dispose()
