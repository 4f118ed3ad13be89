"""The tool boundary: whether a call that somebody hands over for execution is one that may run.

What was decided while the model wrote is not trusted to have arrived unchanged: the call must carry
a signed record, its name and its arguments, and the policy's static rules are asked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from toolguard.guard.arguments import ArgumentFinding, check_arguments
from toolguard.guard.call_record import CallRecord
from toolguard.guard.decision import EXECUTING, Action, Reason
from toolguard.guard.errors import ToolguardError
from toolguard.guard.policy import Policy
from toolguard.guard.seal import Seal
from toolguard.guard.tools import Tool

MINUTE = 60.0  # seconds
Verb = Literal["run", "ask", "block"]
"""What the boundary does with a call: run it, ask a person first, or answer in the tool's place."""


class StartCounter(Protocol):
    """Counts executions over all runs, for budgets a minute."""

    def count_started(self, tool: str, seconds: float) -> int:
        """Return how many calls of `tool` were started within the last `seconds`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedCall:
    """A call that somebody wants executed.

    Args:
        call_id: its id.
        name: its name, exactly as handed over.
        arguments: its arguments.
        tool: the tool of that name as the agent would run it; None if it has none.
        record: what the message says was decided about this id; None if nothing.
        role: who asks; None if unknown.
        used_before: whether the conversation holds another call of this id, or its answer.
        begun: whether the call has begun before and goes on after a pause of its tool; what it
            takes of a budget is taken.
        started_in_run: other calls of this name that the run has let in.
        approved: digest of the arguments that a person approved; empty if nobody did.
    """

    call_id: str
    name: str
    arguments: Mapping[str, Any]
    tool: Tool | None
    record: object = None
    role: str | None = None
    used_before: bool = False
    begun: bool = False
    started_in_run: int = 0
    approved: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """What the boundary does with a call.

    Args:
        action: what happens; `confirm` asks a person first.
        proposed: what `enforce` would do; differs from `action` in monitor mode alone.
        reason: why, as one word.
        message: why, for the model: no scores, no argument values; empty if nothing is against it.
        fields: arguments the reason is about.
        record: the record, if it is authentic.
    """

    action: Action
    proposed: Action
    reason: Reason
    message: str = ""
    fields: tuple[str, ...] = ()
    record: CallRecord | None = None

    @property
    def verb(self) -> Verb:
        """The action in short: run the call, ask about it, or block it."""
        if self.action == "confirm":
            return "ask"
        return "run" if self.action in EXECUTING else "block"


@dataclass(frozen=True, slots=True)
class _Objection:
    reason: Reason
    message: str
    action: Action = "veto"
    fields: tuple[str, ...] = field(default=())


class ToolGate:
    """Judges calls at the tool boundary. Holds no call's state, so threads may share it.

    Args:
        policy: what may run.
        seal: with which records were signed.
        counter: for budgets a minute; without one, a tool that has such a budget does not run.
    """

    def __init__(self, policy: Policy, seal: Seal, counter: StartCounter | None = None) -> None:
        self.policy = policy
        self.seal = seal
        self.counter = counter

    def admit(self, call: HandedCall) -> GateVerdict:
        """Return what happens to the call; whatever fails here blocks it, in any mode."""
        try:
            record = CallRecord.opened(call.record, self.seal)
            objection = self._objection(call, record)
        except Exception as error:  # noqa: BLE001 - whatever fails here must end in a closed door
            why = (
                f"{call.name}: the guard failed ({type(error).__name__}), so the call did not run."
            )
            return GateVerdict(action="veto", proposed="veto", reason="fault", message=why)
        if objection is None:
            return _let_in(call, record)
        return GateVerdict(
            action="allow" if self._opens(call, record) else objection.action,
            proposed=objection.action,
            reason=objection.reason,
            message=objection.message,
            fields=objection.fields,
            record=record,
        )

    def _opens(self, call: HandedCall, record: CallRecord | None) -> bool:
        """Return whether a call runs all the same because the policy only watches."""
        # One that the model's guard has stopped was never written whole, so nothing can run.
        stopped = record is not None and record.action in ("veto", "clarify")
        known = call.tool is not None and call.tool.name == call.name
        return self.policy.mode == "monitor" and known and not stopped

    def _objection(self, call: HandedCall, record: CallRecord | None) -> _Objection | None:
        """Return the first thing that stands against the call.

        Arguments are looked at before they are digested: what is too deep has no digest.
        """
        return (
            self._of_record(call, record)
            or self._of_rule(call, record)
            or self._of_arguments(call)
            or self._of_edit(call, record)
            or self._of_budget(call)
            or self._of_person(call, record)
        )

    def _of_record(self, call: HandedCall, record: CallRecord | None) -> _Objection | None:
        if record is None or not call.call_id or record.call_id != call.call_id:
            return _Objection(
                "no_record", f"{call.name}: nobody has judged this call, so it did not run."
            )
        if call.used_before:
            return _Objection(
                "no_record", f"{call.name}: a call of this id was handed over before."
            )
        # A redirect that the model's guard only proposed was not followed.
        ignored = record.enforced == "redirect" != record.action
        if record.enforced in ("veto", "clarify") or ignored:
            action: Action = "clarify" if record.enforced == "clarify" else "veto"
            text = blocked_text(call.name, record)
            return _Objection(record.reason, text, action, record.fields)
        if record.named != call.name:
            return _Objection("edited", f"{call.name}: the call was judged under another name.")
        return None

    def _of_rule(self, call: HandedCall, record: CallRecord | None) -> _Objection | None:
        if call.tool is None or call.tool.name != call.name:
            return _Objection("not_on_menu", f"{call.name}: there is no tool of this name.")
        listed = self.policy.tool_policy(call.name)
        if self.policy.rule_for(call.name) == "deny":
            reason: Reason = "rule_deny" if listed else "unlisted"
            return _Objection(reason, f"{call.name}: the policy denies this tool.")
        if record is not None and record.action == "redirect":
            source = record.tool
            if source is None or not self.policy.may_replace(source, call.name):
                return _Objection("rule_deny", f"{call.name}: it may not replace another tool.")
        if listed and listed.roles is not None and call.role not in listed.roles:
            return _Objection("role", f"{call.name}: the caller's role may not use this tool.")
        return None

    def _of_arguments(self, call: HandedCall) -> _Objection | None:
        if call.tool is None:
            return None
        listed = self.policy.tool_policy(call.name)
        closed = self.policy.unknown_arguments == "deny"
        findings = check_arguments(call.tool, call.arguments, listed, closed=closed)
        if not findings:
            return None
        fields = tuple(dict.fromkeys(found.field for found in findings if found.field))
        text = arguments_text(call.name, findings)
        if all(found.problem == "missing" for found in findings):
            return _Objection("missing_argument", text, "clarify", fields)
        return _Objection("invalid_arguments", text, fields=fields)

    def _of_edit(self, call: HandedCall, record: CallRecord | None) -> _Objection | None:
        digest = self.seal.digest(dict(call.arguments))
        if record is not None and digest in (record.arguments, call.approved):
            return None
        why = f"{call.name}: the arguments were changed after they were judged."
        return _Objection("edited", why)

    def _of_budget(self, call: HandedCall) -> _Objection | None:
        listed = self.policy.tool_policy(call.name)
        budget = listed.budget if listed and not call.begun else None
        if budget is None:
            return None
        if budget.per_run is not None and call.started_in_run >= budget.per_run:
            why = f"{call.name}: the limit of {budget.per_run} calls in one run is reached."
            return _Objection("budget", why)
        if budget.per_minute is None:
            return None
        try:
            started = self.counter.count_started(call.name, MINUTE) if self.counter else None
        except ToolguardError:
            started = None
        if started is None:
            why = f"{call.name}: its limit a minute cannot be checked without an audit store."
            return _Objection("budget", why)
        return _Objection("budget", _spent(call.name)) if started >= budget.per_minute else None

    def _of_person(self, call: HandedCall, record: CallRecord | None) -> _Objection | None:
        """Return an objection unless the evidence or a person let exactly these arguments run."""
        wanted = self.policy.rule_for(call.name) == "confirm"
        if record is not None and record.enforced in EXECUTING and not wanted:
            return None
        if call.approved and call.approved == self.seal.digest(dict(call.arguments)):
            return None
        judged = record is not None and record.enforced == "confirm"
        reason: Reason = record.reason if record is not None and judged else "rule_confirm"
        return _Objection(reason, f"{call.name}: a person has to confirm this call.", "confirm")


def _let_in(call: HandedCall, record: CallRecord | None) -> GateVerdict:
    judged = record is not None and record.enforced in EXECUTING
    action: Action = record.action if record is not None and judged else "allow"
    reason: Reason = "approved_by_person" if call.approved or record is None else record.reason
    return GateVerdict(action=action, proposed=action, reason=reason, record=record)


def over_budget(verdict: GateVerdict, name: str) -> GateVerdict:
    """Return the verdict on a call whose budget others have spent since it was let in."""
    return replace(verdict, action="veto", proposed="veto", reason="budget", message=_spent(name))


def _spent(name: str) -> str:
    return f"{name}: its limit of calls is reached. Try again later."


def blocked_text(name: str, record: CallRecord) -> str:
    """Return for the model why a judged call does not run: no scores, no argument values."""
    if record.reason == "missing_argument":
        return f"{name}: ask the user for {_listed(record.fields)}; do not make a value up."
    if record.reason == "should_ask" and record.enforced == "clarify":
        return f"{name}: something is missing. Ask the user for it before you call a tool."
    if record.enforced == "clarify":
        return f"{name}: it is unclear whether this is the right tool. Ask the user what they want."
    told = {
        "rule_deny": "the policy denies this tool",
        "unlisted": "the policy does not list this tool",
        "uncalibrated": "the guard cannot vouch for this tool",
        "not_on_menu": "there is no tool of this name",
        "refused_by_person": "a person refused the call",
        "invalid_arguments": f"not valid: {', '.join(record.fields) or 'its arguments'}",
        "fault": "the guard could not judge it",
        "unread": "the guard could not judge it",
        "call_limit": "there are too many calls in one turn",
        "should_answer": "an answer in words seems right here, not a call",
        "should_ask": "the user should be asked first",
    }
    why = told.get(record.reason, "it is doubtful that this is the right tool here")
    return f"{name} was blocked: {why}. Do not repeat the same call."


def arguments_text(name: str, findings: tuple[ArgumentFinding, ...]) -> str:
    """Return for the model what is wrong with a call's arguments, without their values."""
    missing = [found.field for found in findings if found.problem == "missing"]
    if len(missing) == len(findings):
        return f"{name}: ask the user for {_listed(missing)}; do not make a value up."
    wrong = "; ".join(map(str, findings))
    return f"{name} was not run, its arguments are not valid: {wrong}."


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(dict.fromkeys(names)) or "the missing value"
