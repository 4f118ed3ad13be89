"""Our fields under the names of OpenTelemetry's proposed guardrail conventions, in one table.

The proposal (open-telemetry/semantic-conventions-genai, pull request 427) is not merged, so names
may still change: here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COMPONENT = "toolguard"
OPERATION = "run_guardrail"

_VERDICTS = {
    "allow": "allow",
    "steer": "modify",
    "redirect": "modify",
    "veto": "deny",
    "confirm": "escalate",
    "clarify": "escalate",
}
_ACTIONS = _VERDICTS | {"veto": "block"}
_MODIFIES = {action: action in {"steer", "redirect"} for action in _VERDICTS}


@dataclass(frozen=True, slots=True)
class Attribute:
    """One of our fields under a conventional name.

    Args:
        field: key of a decision's record.
        name: the conventional name.
        values: our value -> theirs, a value that is not in it is left out; None: as it is.
    """

    field: str
    name: str
    values: Mapping[str, Any] | None = None


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute("call_id", "gen_ai.guardrail.target.id"),
    Attribute("run_id", "gen_ai.conversation.id"),
    Attribute("tool", "gen_ai.tool.name"),
    Attribute("proposed", "gen_ai.guardrail.verdict.type", _VERDICTS),
    Attribute("action", "gen_ai.guardrail.action.type", _ACTIONS),
    Attribute("action", "gen_ai.guardrail.security.content.modified", _MODIFIES),
    Attribute("reason", "gen_ai.guardrail.verdict.code"),
    Attribute("detail", "gen_ai.guardrail.verdict.reason"),
    Attribute("p_wrong", "gen_ai.guardrail.security.risk.score"),
    Attribute("policy", "gen_ai.guardrail.security.policy.id"),
    Attribute("arguments", "gen_ai.guardrail.security.content.input.hash"),
)
"""The table."""

CONSTANTS: Mapping[str, str] = {
    "gen_ai.operation.name": OPERATION,
    "gen_ai.guardrail.component.name": COMPONENT,
    "gen_ai.guardrail.target.type": "output",
    "gen_ai.guardrail.target.subtype": "tool_call",
}
"""What is the same of every decision."""


def guardrail_attributes(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record's fields, as far as they have a conventional name, under that name.

    A field that is missing or None is left out.
    """
    found: dict[str, Any] = dict(CONSTANTS)
    for attribute in ATTRIBUTES:
        value = record.get(attribute.field)
        if attribute.values is not None:
            value = attribute.values.get(value) if isinstance(value, str) else None
        if value is not None:
            found[attribute.name] = value
    return found
