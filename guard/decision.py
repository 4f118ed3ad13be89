"""What the guard saw at one decision token, and what it decided about the call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from toolguard.guard.profile import ToolStatus

Action = Literal["allow", "steer", "redirect", "veto", "confirm", "clarify"]
"""What happens to a call: allow and steer let it go on, redirect forces another tool's name, the
rest stop it."""

Reason = Literal[
    "confident",
    "doubtful",
    "rule_allow",
    "rule_deny",
    "rule_confirm",
    "unlisted",
    "uncalibrated",
    "not_on_menu",
    "fault",
    "unread",
    "refused_by_person",
    "approved_by_person",
    "missing_argument",
    "invalid_arguments",
    "role",
    "budget",
    "no_record",
    "edited",
    "call_limit",
    "should_answer",
    "should_ask",
]
"""Why: one word that policies, logs and tests can rely on."""

EXECUTING: frozenset[Action] = frozenset({"allow", "steer", "redirect"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The evidence at one decision token, per tool of the menu.

    Args:
        menu: tool names in menu order.
        chosen: the name the model wrote, or would write greedily; may be outside the menu.
        scores: signal -> (tools,) scores in menu order; `logprob` in nats, `activation` in the
            readout's unit.
        margins: signal -> score of the chosen tool minus the best other; +inf on a menu of one
            tool. Where P(wrong) uses them also `entropy` and `activation_gap`, see `guard.signals`.
        gaps: signal -> best score minus second best, whichever tool was chosen.
        status: how far the profile knows the chosen tool.
        p_wrong: calibrated probability in [0, 1] that the choice is wrong; None if it is unknown.
        no_call: kind of turn -> probability in [0, 1] that such a turn, an `answer` in words or an
            `ask`ed question, should stand in place of the call; empty if it was not read.
        fault: why the evidence is incomplete; empty if it is whole.
        position: index of the decision token in prompt and answer together; -1 if unknown.
    """

    menu: tuple[str, ...]
    chosen: str
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    margins: Mapping[str, float] = field(default_factory=dict)
    gaps: Mapping[str, float] = field(default_factory=dict)
    status: ToolStatus = "unknown"
    p_wrong: float | None = None
    no_call: Mapping[str, float] = field(default_factory=dict)
    fault: str = ""
    position: int = -1

    def ranking(self, signal: str) -> tuple[str, ...]:
        """Return the menu's names from best to worst by `signal`; empty if it was not read."""
        scores = self.scores.get(signal, ())
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        return tuple(self.menu[i] for i in order)

    @property
    def runner_up(self) -> str | None:
        """The best other tool by log-probability; None if there is none, or it was not read."""
        return next((name for name in self.ranking("logprob") if name != self.chosen), None)

    @property
    def agreed_rival(self) -> str | None:
        """The best other tool, if all signals that were read agree on it; else None."""
        rivals = {
            next((name for name in self.ranking(signal) if name != self.chosen), None)
            for signal in self.scores
        }
        return rivals.pop() if len(rivals) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The verdict on one call, with its evidence.

    Args:
        action: what was done.
        proposed: what `enforce` would do; differs from `action` in monitor mode alone.
        tool: the name the model chose.
        reason: why, as one word.
        detail: why, as a sentence without prompt or argument text.
        reading: the evidence.
        threshold: largest P(wrong) that was allowed; None if none is.
        target: the tool redirected or steered to; None otherwise.
        fields: arguments that the reason is about, by name.
        asks: whether the model has still to be asked between the tool and the target; until then
            neither may be executed.
        latency_us: microseconds spent on reading and judging.
    """

    action: Action
    proposed: Action
    tool: str
    reason: Reason
    detail: str
    reading: Reading
    threshold: float | None = None
    target: str | None = None
    fields: tuple[str, ...] = ()
    asks: bool = False
    latency_us: float = 0.0

    @property
    def executes(self) -> bool:
        """Whether a call goes on after this decision."""
        return self.action in EXECUTING

    @property
    def executed_tool(self) -> str | None:
        """The only tool name that may be executed on this decision, or None."""
        if not self.executes or self.asks:
            return None
        return self.target if self.action == "redirect" else self.tool

    @property
    def question(self) -> str:
        """What to ask the user on `clarify`: what is missing, or which tool, if any, is meant."""
        if self.fields:
            wanted = " and ".join(name.replace("_", " ") for name in self.fields)
            return f"What should I use as {wanted} for {self.target or self.tool}?"
        if self.reason == "should_ask":
            return f"I need to know more before I use {self.tool}. Can you tell me the details?"
        if self.reason == "should_answer":
            return f"Do you want me to use {self.tool} for this?"
        named = self.reading.ranking("logprob") or self.reading.menu
        rivals = [self.tool, *(name for name in named if name != self.tool)][:2]
        if len(rivals) < 2:
            return f"Should I use {rivals[0]} for this?"
        return f"Should I use {rivals[0]} or {rivals[1]} for this?"
