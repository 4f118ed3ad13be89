"""What a policy would have done on recorded decisions: for `toolguard policy replay`.

The evidence is in the record; the arguments are not (the store keeps their digest), nor is the
caller's role. What was decided by those stands, where the call would still get that far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from toolguard.guard.decision import EXECUTING, Action, Reading, Reason
from toolguard.guard.errors import ReadoutError
from toolguard.guard.policy import Policy
from toolguard.guard.profile import Profile, ToolStatus
from toolguard.guard.verdict import Judge, Verdict, verdict_by_rule

_BEYOND_EVIDENCE: frozenset[Reason] = frozenset(
    {
        *("missing_argument", "invalid_arguments", "role", "budget", "call_limit"),
        *("no_record", "edited", "unread", "not_on_menu"),
    }
)
_NO_CALL: frozenset[Reason] = frozenset({"should_answer", "should_ask"})
_PERSONS_ANSWER: frozenset[Reason] = frozenset({"approved_by_person", "refused_by_person"})


class _Recorded(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Candidate(_Recorded):
    tool: str
    score: float | None


class _Evidence(_Recorded):
    p_wrong: float | None = None
    threshold: float | None = None
    status: ToolStatus = "unknown"
    fault: str = ""
    no_call: Mapping[str, float] = {}
    candidates: Mapping[str, tuple[_Candidate, ...]] = {}


class _Record(_Recorded):
    """The part of a `CallRecord` that a replay reads."""

    tool: str | None
    action: Action
    proposed: Action
    reason: Reason
    detail: str = ""
    target: str | None = None
    evidence: _Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happens to a call; the fields are those of `Decision`."""

    action: Action
    proposed: Action
    reason: Reason
    target: str | None = None

    def __str__(self) -> str:
        return self.action if self.action == self.proposed else f"{self.action} ({self.proposed})"

    @property
    def runs(self) -> bool:
        """Whether the call goes on."""
        return self.action in EXECUTING


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One recorded decision, judged again.

    Args:
        tool: name; None if it was not on the menu.
        was: what was recorded.
        would: what the policy would do.
        kept: whether the recorded reason stands because it rests on more than the evidence.
    """

    tool: str | None
    was: Outcome
    would: Outcome
    kept: bool

    @property
    def changed(self) -> bool:
        """Whether the policy would do or propose something else."""
        was, would = self.was, self.would
        return (was.action, was.proposed) != (would.action, would.proposed) or (
            would.action == "redirect" and was.target != would.target
        )


class PolicyReplay:
    """Judges recorded decisions by a policy.

    Args:
        policy: to try.
        profile: for the thresholds of the policy's risk targets and for who may replace whom;
            without it thresholds are as recorded, every rival counts as calibrated, and a call that
            was found needless still is.
    """

    def __init__(self, policy: Policy, profile: Profile | None = None) -> None:
        self.policy = policy
        self._threshold: Callable[[float | None], float | None] | None = None
        self._statuses: dict[str, ToolStatus] | None = None
        self._correction = profile.meta.correction if profile else None
        self._judges_openings = policy.call_or_answer == "judge"
        self._no_call_limits = profile.no_call_limits if profile else None
        if profile is not None:
            self._threshold = profile.threshold
            self._statuses = {tool.name: tool.status for tool in profile.meta.tools}

    def judge(self, payload: Mapping[str, Any]) -> Replayed | None:
        """Return the recorded decision judged again, or None if the payload is no record of one."""
        try:
            record = _Record.model_validate(payload)
        except ValidationError:
            return None
        was = Outcome(
            action=record.action,
            proposed=record.proposed,
            reason=record.reason,
            target=record.target,
        )
        verdict = self._verdict(record)
        going = verdict is None or verdict.action in EXECUTING or verdict.action == "confirm"
        kept = going and record.reason in self._beyond_evidence()
        if verdict is None or kept:
            verdict = Verdict(record.proposed, record.reason, record.detail, record.target)
        would = self._outcome(verdict, was)
        return Replayed(tool=record.tool, was=was, would=would, kept=kept)

    def _beyond_evidence(self) -> frozenset[Reason]:
        needless = self._judges_openings and self._no_call_limits is None
        return _BEYOND_EVIDENCE | _NO_CALL if needless else _BEYOND_EVIDENCE

    def _outcome(self, verdict: Verdict, was: Outcome) -> Outcome:
        if verdict.action == "confirm" and was.reason in _PERSONS_ANSWER:
            return was  # the person is asked again and has answered
        opened = self.policy.mode == "monitor" and verdict.action not in ("allow", "steer")
        return Outcome(
            action="allow" if opened else verdict.action,
            proposed=verdict.action,
            reason=verdict.reason,
            target=None if opened else verdict.target,
        )

    def _verdict(self, record: _Record) -> Verdict | None:
        """Return the verdict on the name, None for one that was not on the menu."""
        if record.tool is None:
            return None
        ruling = self.policy.ruling(record.tool)
        if (ruled := verdict_by_rule(ruling)) is not None:
            return ruled
        recorded = record.evidence.threshold
        reading = _reading(record, record.tool)
        judge = Judge(
            policy=self.policy,
            ruling=ruling,
            threshold=self._threshold(ruling.risk_target) if self._threshold else recorded,
            statuses=dict.fromkeys(reading.menu, "calibrated")
            if self._statuses is None
            else self._statuses,
            steered_to=record.target if record.action == "steer" else None,
            correction=self._correction,
            no_call_limits=self._no_call_limits(ruling.risk_target)
            if self._no_call_limits and self._judges_openings
            else {},
        )
        try:
            return judge.verdict(reading)
        except ReadoutError as error:
            return Verdict("veto", "fault", error.message)


def _reading(record: _Record, chosen: str) -> Reading:
    """Return the reading as far as it was recorded: of each signal the best few tools."""
    evidence = record.evidence
    scores = {
        signal: {one.tool: -inf if one.score is None else one.score for one in found}
        for signal, found in evidence.candidates.items()
    }
    menu = tuple(dict.fromkeys([chosen, *(name for found in scores.values() for name in found)]))
    return Reading(
        menu=menu,
        chosen=chosen,
        scores={
            signal: tuple(found.get(name, -inf) for name in menu)
            for signal, found in scores.items()
        },
        status=evidence.status,
        p_wrong=evidence.p_wrong,
        no_call=evidence.no_call,
        fault=evidence.fault or (record.detail if record.reason == "fault" else ""),
    )


class DecisionEvent(Protocol):
    """The part of a stored event that a replay reads."""

    @property
    def seq(self) -> int:
        """Place in the store."""

    @property
    def call_id(self) -> str:
        """The call's id."""

    @property
    def payload(self) -> Mapping[str, Any]:
        """The call's record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedDecision:
    """A recorded decision that the policy would change."""

    seq: int
    call_id: str
    replayed: Replayed


@dataclass(slots=True, kw_only=True)
class ReplayReport:
    """What a replay found.

    Args:
        decisions: events read.
        kept: decisions that stand because they rest on more than evidence.
        unreadable: events that hold no record of a decision.
        changes: the decisions that would change, oldest first.
    """

    decisions: int = 0
    kept: int = 0
    unreadable: int = 0
    changes: list[ChangedDecision] = field(default_factory=list)

    def count(self, *, ran: bool, runs: bool) -> int:
        """Return how many changed calls ran then, or did not, and would run now, or not."""
        found = [change.replayed for change in self.changes]
        return sum(one.was.runs is ran and one.would.runs is runs for one in found)


def replay_decisions(trial: PolicyReplay, events: Iterable[DecisionEvent]) -> ReplayReport:
    """Return what the policy would change on these decision events."""
    report = ReplayReport()
    for event in events:
        report.decisions += 1
        replayed = trial.judge(event.payload)
        if replayed is None:
            report.unreadable += 1
            continue
        report.kept += replayed.kept
        if replayed.changed:
            report.changes.append(
                ChangedDecision(seq=event.seq, call_id=event.call_id, replayed=replayed)
            )
    return report
