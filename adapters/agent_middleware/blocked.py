"""The message in a blocked call's place, and how to know it again among what tools say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import ToolMessage

from toolguard.guard.seal import Seal

METADATA = "toolguard"
"""Key of the records in `response_metadata`, and of the mark in a blocked call's artifact."""

ANSWERED = "answered_by_person"
"""Mark of a message that a person wrote in the tool's place: nothing ran, nothing was wrong."""


def blocked_message(seal: Seal, call_id: str, name: str, text: str, reason: str) -> ToolMessage:
    """Return the error that the model gets instead of the tool's answer."""
    return ToolMessage(
        content=text,
        name=name,
        tool_call_id=call_id,
        status="error",
        artifact=mark(seal, call_id, reason),
    )


def mark(seal: Seal, call_id: str, reason: str) -> dict[str, Any]:
    """Return the artifact of a message that stands in a tool's place; signed, as tools have some.

    A tool whose artifact is someone else's JSON could otherwise deny that it ran.
    """
    content = {"call_id": call_id, "reason": reason}
    return {METADATA: {"reason": reason, "signature": seal.sign(content)}}


def marked_reason(message: Any, seal: Seal) -> str | None:
    """Return why a message stands in its tool's place; None if it is what a tool said."""
    artifact = message.artifact if isinstance(message, ToolMessage) else None
    found = artifact.get(METADATA) if isinstance(artifact, Mapping) else None
    if not isinstance(found, Mapping):
        return None
    reason = found.get("reason")
    content = {"call_id": message.tool_call_id, "reason": reason}
    return str(reason) if seal.holds(content, found.get("signature")) else None
