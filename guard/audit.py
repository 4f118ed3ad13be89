"""One structured log record a decision: names, numbers and reasons, no prompt or argument text."""

from __future__ import annotations

import math
import sys
from typing import Any

import structlog

from toolguard.guard.decision import Decision
from toolguard.guard.guardrail_names import guardrail_attributes
from toolguard.guard.tools import sha256_text

EVENT = "tool_decision"
CANDIDATES = 3  # competing tools in a record


def decision_record(decision: Decision) -> dict[str, Any]:
    """Return the decision as JSON-ready fields.

    A name that is not on the menu is free text of the model, so its hash stands for it.
    """
    reading = decision.reading
    known = decision.tool in reading.menu
    return {
        "tool": decision.tool if known else None,
        "tool_hash": None if known else sha256_text(decision.tool)[:16],
        "action": decision.action,
        "proposed": decision.proposed,
        "target": decision.target,
        "reason": decision.reason,
        "detail": decision.detail,
        "p_wrong": reading.p_wrong,
        "threshold": decision.threshold,
        "margins": {signal: _finite(value) for signal, value in reading.margins.items()},
        "gaps": {signal: _finite(value) for signal, value in reading.gaps.items()},
        "candidates": {signal: _candidates(decision, signal) for signal in reading.scores},
        "no_call": {kind: _finite(value) for kind, value in reading.no_call.items()},
        "status": reading.status,
        "fault": reading.fault,
        "position": reading.position,
        "latency_us": round(decision.latency_us, 1),
    }


def _candidates(decision: Decision, signal: str) -> list[dict[str, Any]]:
    reading = decision.reading
    scores = dict(zip(reading.menu, reading.scores[signal], strict=True))
    best = reading.ranking(signal)[:CANDIDATES]
    return [{"tool": name, "score": _finite(scores[name])} for name in best]


def _finite(value: float) -> float | None:
    # JSON has no infinity: a menu of one tool has no rival and thus no margin.
    return round(value, 6) if math.isfinite(value) else None


def default_logger() -> Any:
    """Return the logger named toolguard: as structlog is configured, else JSON lines to stderr.

    Structlog left alone prints coloured text to standard output, which is the program's own.
    """
    if structlog.is_configured():
        return structlog.get_logger("toolguard")
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
    )


def log_decision(decision: Decision, logger: Any | None = None) -> None:
    """Write the decision to `logger`, or to `default_logger`, as one event.

    What has a conventional name (`guardrail_names`) stands under that name as well.
    """
    log = logger if logger is not None else default_logger()
    record = decision_record(decision)
    log.info(EVENT, **record, **guardrail_attributes(record))
