"""From a finished row to what the caller gets: message, calls that may run, decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from toolguard.adapters.menu_plan import MenuPlan
from toolguard.adapters.request import Judged, Row
from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.turn import ParsedTurn
from toolguard.guard.decision import Decision
from toolguard.guard.errors import ParseError
from toolguard.guard.guard import Guard
from toolguard.guard.tools import ToolCall

OnConfirm = Callable[[Decision, ToolCall], bool]
"""Asked about one whole call; True lets it run."""

FinishReason = Literal["stop", "length", "guard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCall:
    """A decision and the call it is about.

    Args:
        decision: the verdict.
        call: the whole call; None where it ended at its name or is not well formed.
    """

    decision: Decision
    call: ToolCall | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedResult:
    """One guarded assistant turn.

    Args:
        message: HF chat message: role, content and, for calls that may run, tool_calls.
        calls: the calls that may run, in the order written.
        judged: every decision with its call, calls that do not run included, in the order written.
        text: the turn as written, special tokens included; where the guard ended it, up to the
            token that completed the name.
        tokens: its token ids.
        prompt_tokens: tokens in front of the turn.
        finish_reason: `guard` if the guard ended the turn, `length` if the token limit did.
        malformed: the error in the turn's last call, which then does not run; None if there is
            none.
    """

    message: dict[str, Any]
    calls: tuple[ToolCall, ...]
    judged: tuple[JudgedCall, ...]
    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    malformed: ParseError | None = None

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Every decision, in the order written."""
        return tuple(judged.decision for judged in self.judged)


def read_turn(
    row: Row,
    plan: MenuPlan,
    wire: WireFormat,
    guard: Guard,
    end_tokens: frozenset[int],
    *,
    on_confirm: OnConfirm | None,
    notice: bool = True,
) -> GuardedResult:
    """Return the row's result: only calls whose own decision executes are in it.

    A call that was parsed but never judged (written where no decision token was seen) is refused.
    An empty message says what was not called, unless `notice` is False.
    """
    tokens = row.watcher.tokens
    turn, malformed = wire.parse_written(row.watcher.text_before(end_tokens), menu=plan.menu)
    by_start = {judged.start: judged for judged in row.judged}
    final = {start: JudgedCall(decision=found.decision) for start, found in by_start.items()}
    calls: list[ToolCall] = []
    for call in turn.calls:
        decision = _decision_of(call, by_start.get(call.start), plan, guard)
        if wire.writes_arguments and (tool := plan.menu.get(call.name)) is not None:
            decision = guard.check_arguments(decision, call, tool)
        if decision.action == "confirm" and on_confirm is not None:
            decision = _ask(decision, call, on_confirm, guard)
        final[call.start] = JudgedCall(decision=decision, call=call)
        if decision.executed_tool == call.name:
            calls.append(call)
    stopped = row.stopped_by_guard
    ended = bool(tokens) and tokens[-1] in end_tokens
    judged = tuple(final[start] for start in sorted(final))
    told = [each.decision for each in judged] if notice else []
    return GuardedResult(
        message=_message(turn, calls, told),
        calls=tuple(calls),
        judged=judged,
        text=row.watcher.text,
        tokens=tuple(tokens),
        prompt_tokens=row.prompt_length,
        finish_reason="guard" if stopped else "stop" if ended else "length",
        malformed=None if stopped else malformed,
    )


def _decision_of(call: ToolCall, judged: Judged | None, plan: MenuPlan, guard: Guard) -> Decision:
    if judged is None:
        why = "the call was written where no decision token was seen"
        return guard.refuse(call.name, plan.view, "unread", why)
    decision = judged.decision
    named = decision.target if decision.action == "redirect" else decision.tool
    if named != call.name:
        why = "the parsed call carries another name than the judged one"
        return guard.refuse(call.name, plan.view, "unread", why)
    return decision


def _ask(decision: Decision, call: ToolCall, on_confirm: OnConfirm, guard: Guard) -> Decision:
    approved = on_confirm(decision, call) is True
    return guard.record(
        replace(
            decision,
            action="allow" if approved else "veto",
            reason="approved_by_person" if approved else "refused_by_person",
            detail="a person approved the call" if approved else "a person refused the call",
        )
    )


def _message(
    turn: ParsedTurn, calls: Sequence[ToolCall], decisions: Sequence[Decision]
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": turn.content}
    if calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in calls
        ]
    closed = [decision for decision in decisions if not decision.executes]
    if closed and not calls and not turn.content:
        message["content"] = _notice(closed[-1])
    return message


def _notice(decision: Decision) -> str:
    if decision.action == "clarify":
        return decision.question
    if decision.reason == "not_on_menu":
        return "I did not call a tool: the one I chose is not on offer."
    wants = "needs a person to confirm it" if decision.action == "confirm" else "was blocked"
    return f"I did not call {decision.tool}: the call {wants}."
