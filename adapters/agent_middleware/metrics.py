"""Numbers that operators watch, through OpenTelemetry where its API is installed."""

from __future__ import annotations

from functools import cache
from typing import Any

from toolguard.guard.guardrail_names import COMPONENT

UNWRITTEN = f"{COMPONENT}.audit.write_failures"
"""Name of the counter of events that the audit store did not take; attribute: the event's kind."""


def count_unwritten(kind: str) -> None:
    """Count one event that could not be written."""
    counter = _counter()
    if counter is not None:
        counter.add(1, {f"{COMPONENT}.kind": kind})


@cache
def _counter() -> Any | None:
    try:
        from opentelemetry import metrics
    except ModuleNotFoundError:
        return None
    return metrics.get_meter(COMPONENT).create_counter(
        UNWRITTEN, unit="{event}", description="Audit events that could not be written."
    )
