"""The audit store: what was decided, asked, approved, started and what came of it, in a database.

Append-only and hash-chained, on SQLite or PostgreSQL. Importing this package imports SQLAlchemy;
importing `toolguard.adapters` does not.
"""

if __name__ != "toolguard.adapters.audit_store":
    raise ImportError(
        f"import this package as toolguard.adapters.audit_store, not as {__name__}; "
        "see CONTRIBUTING.md"
    )

from toolguard.adapters.audit_store.chain import Anchor, ChainProblem, ChainReport
from toolguard.adapters.audit_store.event import AuditEvent, EventKind, StoredEvent
from toolguard.adapters.audit_store.queries import StartLimit
from toolguard.adapters.audit_store.statistics import AuditStatistics
from toolguard.adapters.audit_store.store import AuditStore, StartOutcome
from toolguard.adapters.audit_store.telemetry import Telemetry

__all__ = [
    "Anchor",
    "AuditEvent",
    "AuditStatistics",
    "AuditStore",
    "ChainProblem",
    "ChainReport",
    "EventKind",
    "StartLimit",
    "StartOutcome",
    "StoredEvent",
    "Telemetry",
]
