"""What was written to the audit store, told on: a JSON line each, and OpenTelemetry where it is.

Tells names, numbers, reasons and digests. Arguments and results that a policy lets into the store
stay there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from toolguard.adapters.audit_store.event import AuditEvent
from toolguard.guard.guardrail_names import COMPONENT, OPERATION, guardrail_attributes

LOG_EVENT = "tool_audit"

_DECISION_FIELDS = (
    "proposed",
    "target",
    "reason",
    "detail",
    "mode",
    "policy",
    "p_wrong",
    "threshold",
    "status",
    "latency_us",
)
_DIGEST = "hmac-sha256:"


def event_record(event: AuditEvent) -> dict[str, Any]:
    """Return what may be told of an event, JSON-ready: our fields, and those with another name.

    Of the payload only a decision's known fields and the arguments' digest are taken.
    """
    record: dict[str, Any] = {
        "kind": event.kind,
        "call_id": event.call_id,
        "run_id": event.run_id or None,
        "tool": event.tool,
        "action": event.action,
    }
    if event.kind == "decision":
        evidence = event.payload.get("evidence")
        facts = {**event.payload, **(evidence if isinstance(evidence, Mapping) else {})}
        record |= {name: facts[name] for name in _DECISION_FIELDS if name in facts}
    digest = event.payload.get("arguments")
    if isinstance(digest, str) and digest.startswith(_DIGEST):
        record["arguments"] = digest
    return record | guardrail_attributes(record)


def default_tracer() -> Any | None:
    """Return OpenTelemetry's tracer for toolguard, or None if its API is not installed."""
    try:
        from opentelemetry import trace
    except ModuleNotFoundError:
        return None
    return trace.get_tracer(COMPONENT)


class Telemetry:
    """Tells the log and the tracer of each event.

    The database holds the event already, so a log or tracer that fails changes nothing but
    `failures`. Threads may share it.

    Args:
        logger: a structlog logger; by default as structlog is configured, else JSON on stderr.
        tracer: of OpenTelemetry; None for no spans, see `default_tracer`.
    """

    def __init__(self, *, logger: Any | None = None, tracer: Any | None = None) -> None:
        if logger is None:
            # It comes with torch, which reading a store does not need.
            from toolguard.guard.audit import default_logger

            logger = default_logger()
        self.logger = logger
        self.tracer = tracer
        self.failures = 0

    def emit(self, event: AuditEvent) -> None:
        """Write a line; a decision becomes a span, anything else an event on the current span."""
        record = event_record(event)
        try:
            self.logger.info(LOG_EVENT, **record)
            if self.tracer is not None:
                self._trace(event, record)
        except (OSError, ValueError, TypeError, RuntimeError):
            self.failures += 1

    def _trace(self, event: AuditEvent, record: Mapping[str, Any]) -> None:
        from opentelemetry import trace

        attributes = _span_attributes(record)
        if event.kind != "decision":
            trace.get_current_span().add_event(f"{COMPONENT}.{event.kind}", attributes)
            return
        end = time.time_ns()
        took = record.get("latency_us")
        start = end - round(took * 1000) if isinstance(took, (int, float)) else end
        span = self.tracer.start_span(  # type: ignore[union-attr]
            f"{OPERATION} {COMPONENT}", attributes=attributes, start_time=start
        )
        span.end(end)


def _span_attributes(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a span can hold: no None, and our own names with our prefix."""
    return {
        name if "." in name else f"{COMPONENT}.{name}": value
        for name, value in record.items()
        if isinstance(value, (str, bool, int, float))
    }
