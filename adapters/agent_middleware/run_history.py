"""What a run has done so far, from the agent's messages: calls let in, blocked, handed over twice.

A run is one invocation of the agent with all its resumptions. Where it began is kept in the agent's
private state, because a tool or a summary may add messages that look like a user's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from toolguard.adapters.agent_middleware.blocked import ANSWERED, METADATA, marked_reason
from toolguard.guard.call_record import CallRecord
from toolguard.guard.seal import Seal

RUN = "toolguard_run"
"""Key of the run's beginning in the agent's state."""


def messages_of(state: Any) -> Sequence[Any]:
    """Return the messages of an agent's state, in any of the forms that a tool node takes."""
    if isinstance(state, Sequence):
        return state
    found = state.get("messages") if isinstance(state, Mapping) else getattr(state, "messages", ())
    return found or ()


def begin_run(state: Any) -> dict[str, Any]:
    """Return the state's update at the beginning of a run: its last message and the time now."""
    messages = messages_of(state)
    return {RUN: {"after": messages[-1].id if messages else None, "at": time.time()}}


def run_seconds(state: Any) -> float | None:
    """Return the run's age in seconds; None if the state does not tell when it began."""
    began = _beginning(state).get("at")
    return max(0.0, time.time() - began) if isinstance(began, float) else None


def run_messages(state: Any) -> Sequence[Any]:
    """Return the run's messages after the one that began it.

    Without a beginning in the state they follow the last user's message; if the message that began
    the run is gone, for example summarised, all of them count.
    """
    messages, beginning = messages_of(state), _beginning(state)
    for at in range(len(messages) - 1, -1, -1):
        message = messages[at]
        began = message.id == beginning["after"] if beginning else _is_users(message)
        if began:
            return messages[at + 1 :]
    return messages


def blocked_in_run(state: Any, seal: Seal) -> int:
    """Return how many of the run's calls were blocked or refused."""
    reasons = (marked_reason(message, seal) for message in run_messages(state))
    return sum(reason not in (None, ANSWERED) for reason in reasons)


def let_in_before(state: Any, call_id: str, name: str, seal: Seal) -> int:
    """Return how many calls of tool `name` stand before this one in the run and were let in.

    Calls of one message run side by side: of those, each counts that its record does not stop.
    """
    messages = run_messages(state)
    ran = {m.tool_call_id: not marked_reason(m, seal) for m in messages if _is_answer(m)}
    count = 0
    for message, call in _calls(messages):
        if call["id"] == call_id:
            break
        record = CallRecord.opened(stored_record(message, call["id"]), seal)
        named = record.named if record is not None else call["name"]
        going = record is not None and record.enforced not in ("veto", "clarify")
        count += named == name and ran.get(call["id"], going)
    return count


def used_before(state: Any, call_id: str) -> bool:
    """Return whether the conversation holds this id on another call too, or holds its answer."""
    messages = messages_of(state)
    answered = any(m.tool_call_id == call_id for m in messages if _is_answer(m))
    return answered or sum(call["id"] == call_id for _, call in _calls(messages)) > 1


def asked_text(state: Any) -> str:
    """Return the text of the last message of a user; empty if there is none."""
    users = (message for message in reversed(messages_of(state)) if _is_users(message))
    return next((str(message.text) for message in users), "")


def stored_record(message: AIMessage, call_id: str | None) -> object:
    """Return what a message says was decided about one of its calls, unchecked."""
    records = message.response_metadata.get(METADATA)
    return records.get(call_id) if isinstance(records, Mapping) else None


def _calls(messages: Sequence[Any]) -> Iterator[tuple[AIMessage, Any]]:
    for message in messages:
        if isinstance(message, AIMessage):
            yield from ((message, call) for call in message.tool_calls)


def _beginning(state: Any) -> Mapping[str, Any]:
    found = state.get(RUN) if isinstance(state, Mapping) else getattr(state, RUN, None)
    return found if isinstance(found, Mapping) else {}


def _is_users(message: Any) -> bool:
    return isinstance(message, HumanMessage)


def _is_answer(message: Any) -> bool:
    return isinstance(message, ToolMessage)
