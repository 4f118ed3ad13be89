"""From a guarded turn to LangChain's message: calls that may run, calls that did not, records."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk

from toolguard.adapters.turn_result import GuardedResult, JudgedCall
from toolguard.guard.call_record import CallRecord
from toolguard.guard.decision import Decision
from toolguard.guard.guard import Guard
from toolguard.guard.seal import Seal
from toolguard.guard.tool_gate import blocked_text

METADATA = "toolguard"
"""Key of the records in `response_metadata`."""

NOT_CALLED = "(not called)"
"""Arguments of a call that may not run. When chunks are added up, missing arguments, or JSON cut
short, become a valid call; this text can become none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCall:
    """One call of the turn.

    Args:
        id: made here; no model writes it.
        name: the tool's; None if the text broke off before one.
        arguments: of a call that is handed on; None for one that is not.
        error: why it is not, without scores; empty for one that is.
        record: the signed decision; None where there was nothing to decide on.
    """

    id: str
    name: str | None
    arguments: Mapping[str, Any] | None = None
    error: str = ""
    record: CallRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One turn, ready to be told to LangChain at once or in chunks.

    Args:
        content: plain text.
        calls: in the order written.
        prompt_tokens: in front of the turn.
        turn_tokens: of the turn.
        facts: model name, finish reason and the like.
    """

    content: str
    calls: tuple[WrittenCall, ...]
    prompt_tokens: int
    turn_tokens: int
    facts: Mapping[str, Any]

    def message(self) -> AIMessage:
        """Return the whole turn."""
        return AIMessage(
            content=self.content,
            tool_calls=[
                tool_call(name=call.name or "", args=dict(call.arguments), id=call.id)
                for call in self.calls
                if call.arguments is not None
            ],
            invalid_tool_calls=[
                invalid_tool_call(name=call.name, args=NOT_CALLED, id=call.id, error=call.error)
                for call in self.calls
                if call.arguments is None
            ],
            usage_metadata=self._usage(),
            response_metadata=self._metadata(),
        )

    def chunks(self) -> Iterator[AIMessageChunk]:
        """Yield what follows the text: each call whole, and last of all usage and records.

        The first index is 1, because with LangChain's content blocks the text has 0.
        """
        for index, call in enumerate(self.calls, start=1):
            handed_on = call.arguments is not None
            args = json.dumps(dict(call.arguments or {})) if handed_on else NOT_CALLED
            chunk = tool_call_chunk(name=call.name, args=args, id=call.id, index=index)
            yield AIMessageChunk(content="", tool_call_chunks=[chunk])
        yield AIMessageChunk(
            content="",
            usage_metadata=self._usage(),
            response_metadata=self._metadata(),
            chunk_position="last",
        )

    def _usage(self) -> UsageMetadata:
        return UsageMetadata(
            input_tokens=self.prompt_tokens,
            output_tokens=self.turn_tokens,
            total_tokens=self.prompt_tokens + self.turn_tokens,
        )

    def _metadata(self) -> dict[str, Any]:
        records = {call.id: call.record.to_dict() for call in self.calls if call.record}
        return {**self.facts, METADATA: records}


def written_calls(
    result: GuardedResult, guard: Guard, seal: Seal, *, boundary: bool
) -> tuple[WrittenCall, ...]:
    """Return the turn's calls, each with an id of its own and its signed record.

    Args:
        result: the turn.
        guard: that judged it.
        seal: signs.
        boundary: hand on calls that are blocked or wait for a person too, because who asks will
            answer them from their records.
    """
    calls = [_written(judged, guard, seal, boundary=boundary) for judged in result.judged]
    if result.malformed is not None and all(judged.call for judged in result.judged):
        error = "A tool call broke off before its name, so nothing was called."
        calls.append(WrittenCall(id=_new_id(), name=None, error=error))
    return tuple(calls)


def _written(judged: JudgedCall, guard: Guard, seal: Seal, *, boundary: bool) -> WrittenCall:
    call, decision = judged.call, judged.decision
    name = call.name if call else decision.target or decision.tool
    # One that was let go on and yet is no whole call ends here, in every mode: its record must not
    # vouch for arguments that nobody wrote.
    broken = call is None and (decision.executes or (boundary and decision.action == "confirm"))
    if broken:
        decision = guard.record(_closed(decision))
    arguments = dict(call.arguments) if call else {}
    identity = _new_id()
    record = CallRecord.of(
        decision, call_id=identity, arguments=arguments, policy=guard.policy, seal=seal
    )
    runs = call is not None and decision.executed_tool == call.name
    if runs or (boundary and not broken):
        return WrittenCall(id=identity, name=name, arguments=arguments, record=record)
    error = f"{name}: the call was not well formed, so it did not run."
    return WrittenCall(
        id=identity,
        name=name,
        error=error if broken else _refusal(name, decision, record),
        record=record,
    )


def _closed(decision: Decision) -> Decision:
    return replace(
        decision,
        action="veto",
        proposed="veto",
        reason="invalid_arguments",
        detail="the call is not well formed",
        target=None,
    )


def _refusal(name: str, decision: Decision, record: CallRecord) -> str:
    if decision.action == "confirm":
        return f"{name}: a person has to confirm this call, so it did not run."
    return blocked_text(name, record)


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex}"
