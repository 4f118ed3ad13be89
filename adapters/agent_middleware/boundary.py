"""One call at the tool boundary, from gate to outcome, the same for sync and async agents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, ToolMessage
from langgraph.errors import GraphBubbleUp, ParentCommand

from toolguard.adapters.agent_middleware.approval import (
    PersonsAnswer,
    answer_message,
    ask_person,
    description_of,
)
from toolguard.adapters.agent_middleware.blocked import blocked_message, marked_reason
from toolguard.adapters.agent_middleware.bound_tool import EDITED, BoundTool
from toolguard.adapters.agent_middleware.handed import follow_redirect, handed_call, thread_of
from toolguard.adapters.agent_middleware.ledger import PAUSED, CallEntry, CallLedger
from toolguard.adapters.agent_middleware.run_history import asked_text, run_seconds, stored_record
from toolguard.guard.call_record import CallRecord
from toolguard.guard.tool_gate import MINUTE, GateVerdict, HandedCall, ToolGate, over_budget

if TYPE_CHECKING:
    from langchain.agents.middleware.types import ToolCallRequest

    from toolguard.adapters.audit_store import StartLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A call that has begun: its tool is to be run now, once.

    Args:
        request: to run.
        entry: the call in the account, for its outcome.
    """

    request: ToolCallRequest
    entry: CallEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    request: ToolCallRequest
    handed: HandedCall
    entry: CallEntry


class ToolBoundary:
    """Lets calls run that may run, answers for the others, and keeps account of both.

    Args:
        gate: judges.
        ledger: where each step is written before the next is taken.
        role_of: the caller's role from the request.
    """

    def __init__(
        self, gate: ToolGate, ledger: CallLedger, role_of: Callable[[ToolCallRequest], str | None]
    ) -> None:
        self.gate = gate
        self.ledger = ledger
        self._role_of = role_of

    def enter(self, request: ToolCallRequest) -> Admitted | ToolMessage:
        """Return the call to run now, or what the agent gets in its tool's place.

        Raises:
            GraphInterrupt: to ask a person; entered again on resuming.
        """
        call = self._handed(request)
        verdict = self.gate.admit(call.handed)
        if not self.ledger.decided(call.entry, verdict, call.handed):
            return self._unrecorded(call)
        if verdict.verb == "ask":
            if not self.ledger.asked(call.entry, verdict, call.handed):
                return self._unrecorded(call)
            return self._asked(call, verdict)
        return self._run(call, verdict) if verdict.verb == "run" else self._blocked(call, verdict)

    def ended(self, admitted: Admitted, result: Any) -> Any:
        """Write how the run ended; return its result."""
        failed = isinstance(result, ToolMessage) and result.status == "error"
        if marked_reason(result, self.gate.seal) == EDITED:  # behind the gate, by other middleware
            self.ledger.ended(admitted.entry, "blocked", reason=EDITED)
        else:
            self.ledger.ended(admitted.entry, "failed" if failed else "done")
        return result

    def failed(self, admitted: Admitted, error: Exception) -> None:
        """Write that the run ended in an error; a tool that pauses begins anew on resuming."""
        if isinstance(error, ParentCommand):  # the tool hands over to another agent
            self.ledger.ended(admitted.entry, "done")
        elif isinstance(error, GraphBubbleUp):
            self.ledger.ended(admitted.entry, PAUSED)
        else:
            self.ledger.ended(admitted.entry, "failed", error=type(error).__name__)

    def never_handed(self, message: AIMessage, run_id: str) -> None:
        """Write the decisions on calls that the model itself keeps from the boundary."""
        for call in message.invalid_tool_calls:
            record = CallRecord.opened(stored_record(message, call["id"]), self.gate.seal)
            if record is None or record.call_id != call["id"]:
                continue
            closed = record.enforced if record.enforced in ("veto", "clarify") else "veto"
            verdict = GateVerdict(
                action=closed, proposed=record.proposed, reason=record.reason, record=record
            )
            handed = HandedCall(
                call_id=record.call_id, name=record.tool or "", arguments={}, tool=None
            )
            entry = CallEntry(call_id=record.call_id, run_id=run_id, tool=record.tool)
            self.ledger.decided(entry, verdict, handed)
            self.ledger.blocked(entry, record.reason, record.fields)

    def _handed(self, request: ToolCallRequest) -> _Call:
        request = follow_redirect(request, self.gate.seal)
        handed = handed_call(request, self._role_of(request), self.gate.seal)
        entry = self.ledger.at_attempt(
            CallEntry(
                call_id=handed.call_id,
                run_id=thread_of(request),
                tool=handed.name if handed.tool is not None else None,
                prompt=asked_text(request.state),
            )
        )
        begun = entry.attempt > 1
        return _Call(request=request, handed=replace(handed, begun=begun), entry=entry)

    def _asked(self, call: _Call, verdict: GateVerdict) -> Admitted | ToolMessage:
        """Ask a person, and judge what they want to run like any other call."""
        handed = call.handed
        description = description_of(handed.name, verdict)
        answer = ask_person(handed.call_id, handed.name, handed.arguments, description)
        kept = self.ledger.answered(call.entry, answer.type, answer.arguments)
        if not answer.runs:
            return self._refused(call, answer)
        if not kept:
            return self._blocked(call, _not_kept(verdict, handed.name))
        call = _approved(call, answer, self.ledger.digest(answer.arguments))
        verdict = self.gate.admit(call.handed)
        return self._run(call, verdict) if verdict.verb == "run" else self._blocked(call, verdict)

    def _run(self, call: _Call, verdict: GateVerdict) -> Admitted | ToolMessage:
        begun = self.ledger.began(call.entry, call.handed, verdict.reason, self._limits(call))
        if begun == "unrecorded":
            return self._unrecorded(call)
        if begun == "over_limit":
            return self._blocked(call, over_budget(verdict, call.handed.name))
        if begun == "repeated":
            return self._blocked(call, _ran_before(verdict, call.handed.name))
        return Admitted(request=self._bound(call), entry=call.entry)

    def _bound(self, call: _Call) -> ToolCallRequest:
        request, tool = call.request, call.handed.tool
        if self._monitoring or request.tool is None or tool is None:
            return request
        told = tool.parameters.get("properties") or ()
        bound = BoundTool.of(request.tool, request.tool_call, told, self.gate.seal)
        return request.override(tool=bound)

    @property
    def _monitoring(self) -> bool:
        return self.gate.policy.mode == "monitor"

    def _limits(self, call: _Call) -> tuple[StartLimit, ...]:
        """Return what the store checks while it writes the start, so that no two calls slip in."""
        listed = self.gate.policy.tool_policy(call.handed.name)
        budget = listed.budget if listed else None
        if budget is None or self._monitoring or call.handed.begun or self.ledger.audit is None:
            return ()
        from toolguard.adapters.audit_store import StartLimit

        limits = []
        if budget.per_minute is not None:
            limits.append(StartLimit(most=budget.per_minute, seconds=MINUTE))
        age, run_id = run_seconds(call.request.state), call.entry.run_id
        if budget.per_run is not None and age is not None and run_id:
            limits.append(StartLimit(most=budget.per_run, seconds=age, run_id=run_id))
        return tuple(limits)

    def _refused(self, call: _Call, answer: PersonsAnswer) -> ToolMessage:
        self.ledger.ended(call.entry, "answered" if answer.type == "respond" else "rejected")
        return answer_message(self.gate.seal, call.handed.call_id, call.handed.name, answer)

    def _blocked(self, call: _Call, verdict: GateVerdict) -> ToolMessage:
        self.ledger.blocked(call.entry, verdict.reason, verdict.fields)
        return self._instead(call, verdict.message, verdict.reason)

    def _unrecorded(self, call: _Call) -> ToolMessage:
        why = f"{call.handed.name} was not run: the call could not be recorded."
        return self._instead(call, why, "unrecorded")

    def _instead(self, call: _Call, text: str, reason: str) -> ToolMessage:
        handed = call.handed
        return blocked_message(self.gate.seal, handed.call_id, handed.name, text, reason)


def _approved(call: _Call, answer: PersonsAnswer, digest: str) -> _Call:
    arguments = dict(answer.arguments)
    request = call.request.override(tool_call={**call.request.tool_call, "args": arguments})
    handed = replace(call.handed, arguments=arguments, approved=digest)
    return replace(call, request=request, handed=handed)


def _not_kept(verdict: GateVerdict, name: str) -> GateVerdict:
    why = f"{name}: the approval could not be kept, or another answer was given before."
    return replace(verdict, action="veto", proposed="veto", reason="edited", message=why)


def _ran_before(verdict: GateVerdict, name: str) -> GateVerdict:
    why = f"{name} was not run again: this call was begun before. Its effect may have happened."
    return replace(verdict, action="veto", proposed="veto", reason="no_record", message=why)
