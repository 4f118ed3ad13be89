"""The account of calls at the boundary: each step written before the next one is taken."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, Protocol

from toolguard.adapters.agent_middleware.metrics import count_unwritten
from toolguard.guard.arguments import MAX_BYTES
from toolguard.guard.audit import default_logger
from toolguard.guard.errors import ToolguardError
from toolguard.guard.policy import Policy
from toolguard.guard.seal import Seal
from toolguard.guard.tool_gate import GateVerdict, HandedCall, StartCounter

if TYPE_CHECKING:  # it brings SQLAlchemy, which an agent without an audit store can do without
    from toolguard.adapters.audit_store import AuditEvent, EventKind, StartLimit, StartOutcome

PAUSED = "paused"


class AuditWriter(StartCounter, Protocol):
    """Where decisions and outcomes are kept: an `AuditStore`, or what does the same."""

    def write(self, event: AuditEvent) -> bool:
        """Append the event; return False if this kind stands there for this call already."""

    def write_started(self, event: AuditEvent, limits: Sequence[StartLimit] = ()) -> StartOutcome:
        """Append a start unless the call was started already or a limit is reached."""

    def get(self, call_id: str, kind: EventKind) -> Any:
        """Return the stored event, whose `payload` is a mapping, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEntry:
    """A call as the account knows it.

    Args:
        call_id: its id.
        run_id: the agent's thread.
        tool: its tool's name; None if there is no such tool.
        attempt: 1, and one more each time that its tool has paused the agent.
        prompt: what the user asked last.
    """

    call_id: str
    run_id: str
    tool: str | None
    attempt: int = 1
    prompt: str = ""

    @property
    def attempt_id(self) -> str:
        """The id of the start and the outcome of this attempt."""
        return self.call_id if self.attempt == 1 else f"{self.call_id}#{self.attempt}"


class CallLedger:
    """Writes what happens to calls. Says of each step whether the call may go on.

    What cannot be written is said on standard error and counted; in monitor mode the call goes on.

    Args:
        audit: where it is written; None keeps no account.
        policy: says what may be kept readable.
        seal: makes digests of the rest.
    """

    def __init__(self, audit: AuditWriter | None, policy: Policy, seal: Seal) -> None:
        self.audit = audit
        self.policy = policy
        self.seal = seal

    @property
    def _open(self) -> bool:
        return self.policy.mode == "monitor"

    def at_attempt(self, entry: CallEntry) -> CallEntry:
        """Return the entry at its next attempt: the one after those that ended in a pause."""
        while self._status(entry) == PAUSED:
            entry = replace(entry, attempt=entry.attempt + 1)
        return entry

    def _status(self, entry: CallEntry) -> str | None:
        """Return how the attempt ended; None if it has not, or nobody knows."""
        try:
            found = self.audit.get(entry.attempt_id, "outcome") if self.audit else None
        except ToolguardError as error:
            _tell_unwritten("outcome", error)
            return None
        return None if found is None else str(found.payload.get("status"))

    def decided(self, entry: CallEntry, verdict: GateVerdict, handed: HandedCall) -> bool:
        """Write the decision."""
        if self.audit is None:
            return True
        facts = {"tool": entry.tool, **decision_facts(verdict, self.policy)}
        payload = facts | self._prompt(entry) | self._plain(handed.arguments)
        event = _event(entry, "decision", entry.call_id, verdict.action, payload)
        return self._noted(self.audit, event)

    def asked(self, entry: CallEntry, verdict: GateVerdict, handed: HandedCall) -> bool:
        """Write that a person is asked."""
        if self.audit is None:
            return True
        payload = {
            "arguments": self.digest(handed.arguments),
            "reason": verdict.reason,
            "fields": list(verdict.fields),
            **self._plain(handed.arguments),
        }
        event = _event(entry, "approval_request", entry.call_id, "confirm", payload)
        return self._noted(self.audit, event)

    def answered(self, entry: CallEntry, answer: str, arguments: Mapping[str, Any]) -> bool:
        """Write a person's answer; False also if an earlier one said something else.

        The first answer counts: a second one cannot approve other arguments.
        """
        if self.audit is None:
            return True
        digest = self.digest(arguments)
        payload = {"type": answer, "arguments": digest, **self._plain(arguments)}
        event = _event(entry, "approval", entry.call_id, answer, payload)
        if not self._noted(self.audit, event):
            return False
        try:
            first = self.audit.get(entry.call_id, "approval")
        except ToolguardError as error:
            _tell_unwritten("approval", error)
            return False
        facts = payload if first is None else first.payload
        return (facts.get("type"), facts.get("arguments")) == (answer, digest)

    def began(
        self, entry: CallEntry, handed: HandedCall, reason: str, limits: Sequence[StartLimit]
    ) -> StartOutcome | Literal["unrecorded"]:
        """Write that the call begins: the one moment from which on it never begins again."""
        if self.audit is None:
            return "started"
        payload = {"arguments": self.digest(handed.arguments), "reason": reason}
        event = _event(entry, "started", entry.attempt_id, "started", payload)
        try:
            return self.audit.write_started(event, limits)
        except ToolguardError as error:
            _tell_unwritten("started", error)
            return "started" if self._open else "unrecorded"

    def ended(self, entry: CallEntry, status: str, **facts: Any) -> None:
        """Write how the call ended."""
        if self.audit is None:
            return
        payload = {"status": status, **facts}
        self._noted(self.audit, _event(entry, "outcome", entry.attempt_id, status, payload))

    def blocked(self, entry: CallEntry, reason: str, fields: Sequence[str] = ()) -> None:
        """Write that the call was not run, beside what is known of an earlier call of its id."""
        if self.audit is None:
            return
        payload = {"status": "blocked", "reason": reason, "fields": list(fields)}
        for number in count(1):
            key = entry.attempt_id if number == 1 else f"{entry.attempt_id}~{number}"
            try:
                if self.audit.write(_event(entry, "outcome", key, "blocked", payload)):
                    return
                found = self.audit.get(key, "outcome")
            except ToolguardError as error:
                _tell_unwritten("outcome", error)
                return
            if found is not None and found.payload.get("reason") == reason:
                return  # the same call, handed over again after the agent was resumed

    def digest(self, arguments: Mapping[str, Any]) -> str:
        """Return the arguments' keyed digest; empty if they are no JSON."""
        try:
            return self.seal.digest(dict(arguments))
        except (TypeError, ValueError, RecursionError):
            return ""

    def _prompt(self, entry: CallEntry) -> dict[str, str]:
        """Return the user's text as the policy lets the store keep it."""
        if not entry.prompt:
            return {}
        if self.policy.audit.prompts == "plain":
            return {"prompt_plain": entry.prompt[:MAX_BYTES]}
        return {"prompt": self.seal.digest(entry.prompt)}

    def _plain(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments where the policy lets the store keep them, and they are no load."""
        if self.policy.audit.arguments != "plain":
            return {}
        try:
            text = json.dumps(dict(arguments), allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            return {}
        return {"arguments_plain": dict(arguments)} if len(text) <= MAX_BYTES else {}

    def _noted(self, audit: AuditWriter, event: AuditEvent) -> bool:
        """Write the event; return whether the call may go on."""
        try:
            audit.write(event)
        except ToolguardError as error:
            _tell_unwritten(event.kind, error)
            return self._open
        return True


def decision_facts(verdict: GateVerdict, policy: Policy) -> dict[str, Any]:
    """Return the call's record with what the boundary says of it, JSON-ready.

    Where the boundary has its own reason, that is the decision's, and the record's stands under
    `recorded`.
    """
    record = verdict.record
    facts: dict[str, Any] = {
        "action": verdict.action,
        "proposed": verdict.proposed,
        "reason": verdict.reason,
        "fields": list(verdict.fields),
    }
    if record is None:
        return {**facts, "mode": policy.mode, "policy": policy.content_hash, "evidence": {}}
    known = record.to_dict()
    del known["signature"], known["call_id"]
    if verdict.reason == record.reason:
        return {**known, "action": verdict.action}
    recorded = {name: known[name] for name in ("action", "proposed", "reason", "detail", "fields")}
    return {**known, **facts, "detail": "the tool boundary objects", "recorded": recorded}


def _event(
    entry: CallEntry, kind: EventKind, key: str, action: str, payload: Mapping[str, Any]
) -> AuditEvent:
    from toolguard.adapters.audit_store import AuditEvent

    return AuditEvent(
        kind=kind,
        call_id=key or "(none)",
        run_id=entry.run_id,
        tool=entry.tool,
        action=action,
        payload=payload,
    )


def _tell_unwritten(kind: EventKind, error: ToolguardError) -> None:
    default_logger().error("audit_write_failed", kind=kind, error=error.message)
    count_unwritten(kind)
