"""The verdict on a call: static rules first, then the evidence. Knows no model and no tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from toolguard.guard.decision import EXECUTING, Action, Reading, Reason
from toolguard.guard.errors import ReadoutError
from toolguard.guard.policy import Policy, ToolRuling
from toolguard.guard.policy_sections import Doubtful
from toolguard.guard.profile import ToolStatus
from toolguard.guard.profile_meta import Correction


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `enforce` does with a call, and why; the fields are those of `Decision`."""

    action: Action
    reason: Reason
    detail: str
    target: str | None = None
    asks: bool = False


NOT_ON_MENU = Verdict("veto", "not_on_menu", "the model named a tool that is not on the menu")


def verdict_by_rule(ruling: ToolRuling) -> Verdict | None:
    """Return the verdict that needs no evidence, or None if the evidence has to speak."""
    if ruling.rule == "deny":
        reason: Reason = "rule_deny" if ruling.listed else "unlisted"
        return Verdict("veto", reason, "the policy denies this tool")
    if ruling.rule == "confirm":
        reason = "rule_confirm" if ruling.listed else "unlisted"
        return Verdict("confirm", reason, "the policy wants a person to confirm")
    if ruling.rule == "allow":
        return Verdict("allow", "rule_allow", "the policy allows this tool whatever the evidence")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """What the evidence on one call is judged by.

    Args:
        policy: what may run.
        ruling: of the chosen tool.
        threshold: largest P(wrong) allowed for it; None if none is.
        statuses: how far the profile knows each tool of the menu.
        correction: what the profile offers where the policy says `correct`; None if nothing.
        steered_to: tool the hidden state was pushed towards, if any.
        no_call_limits: kind of turn -> largest probability, that such a turn should stand in place
            of the call, at which the call goes on; None if none does. Kinds left out are not
            judged.
    """

    policy: Policy
    ruling: ToolRuling
    threshold: float | None
    statuses: Mapping[str, ToolStatus]
    steered_to: str | None = None
    correction: Correction | None = None
    no_call_limits: Mapping[str, float | None] = field(default_factory=dict)

    def verdict(self, reading: Reading) -> Verdict:
        """Return the verdict on a call that no static rule decides.

        Whether there should be a call at all is looked at last: it closes, and never opens.

        Raises:
            ReadoutError: if the tool is calibrated and there is no P(wrong).
        """
        verdict = self._on_tool(reading)
        if verdict.action not in EXECUTING:
            return verdict
        return self._unneeded(reading) or verdict

    def _unneeded(self, reading: Reading) -> Verdict | None:
        """Return the verdict on a call that should not have been started, or None if it may be."""
        exceeded = {
            kind: value
            for kind, value in reading.no_call.items()
            if kind in self.no_call_limits and _exceeds(value, self.no_call_limits[kind])
        }
        if not exceeded:
            return None
        action = _on_this_tool(self.ruling.doubtful)  # no other tool is any better
        if max(exceeded, key=lambda kind: exceeded[kind]) == "ask":
            asked: Action = "allow" if action == "allow" else "clarify"
            return Verdict(asked, "should_ask", "P(the user should be asked) is above its limit")
        return Verdict(action, "should_answer", "P(no tool should be called) is above its limit")

    def _on_tool(self, reading: Reading) -> Verdict:
        """Return the verdict by what is known of the tool and its margins."""
        if reading.fault:
            return Verdict("veto", "fault", reading.fault)
        if reading.status != "calibrated":
            return self._untrusted(reading)
        if reading.p_wrong is None:
            raise ReadoutError("no P(wrong): a signal of the calibrator was not read")
        if self.threshold is not None and reading.p_wrong <= self.threshold:
            action: Action = "steer" if self.steered_to == reading.chosen else "allow"
            return Verdict(action, "confident", "P(wrong) is within the threshold", self.steered_to)
        return self._doubtful(reading)

    def _untrusted(self, reading: Reading) -> Verdict:
        actions: dict[str, Action] = {"allow": "allow", "confirm": "confirm", "deny": "veto"}
        # An untrusted reading is no ground for choosing another tool.
        action = actions.get(self.policy.uncalibrated) or _on_this_tool(self.ruling.doubtful)
        detail = f"the profile cannot vouch for this tool: it is {reading.status}"
        return Verdict(action, "uncalibrated", detail)

    def _doubtful(self, reading: Reading) -> Verdict:
        limit = "P(wrong) is above the threshold"
        if self.threshold is None:
            limit = "no P(wrong) is allowed at this risk target"
        action = self.ruling.doubtful
        if action == "correct":
            return self._corrected(reading, limit)
        if action == "redirect":
            return self._replaced(reading, reading.agreed_rival, limit)
        return Verdict(action, "doubtful", limit)

    def _corrected(self, reading: Reading, limit: str) -> Verdict:
        """Return the verdict by the correction that the profile offers."""
        if self.correction is None:
            return Verdict("veto", "doubtful", f"{limit}, and the profile offers no correction")
        if self.correction == "between_two":
            return self._replaced(reading, reading.runner_up, limit, asks=True)
        if self.correction == "redirect_above_half" and not _likely_wrong(reading):
            why = "but it is more likely right than wrong, so it is not corrected"
            return Verdict("veto", "doubtful", f"{limit}, {why}")
        return self._replaced(reading, reading.agreed_rival, limit)

    def _replaced(
        self, reading: Reading, rival: str | None, limit: str, *, asks: bool = False
    ) -> Verdict:
        """Return a redirect to the rival if it may stand in, else a veto."""
        # A tool the profile cannot vouch for would not have passed if the model had chosen it.
        if (
            rival is None
            or self.statuses.get(rival) != "calibrated"
            or not self.policy.may_replace(reading.chosen, rival)
        ):
            return Verdict("veto", "doubtful", f"{limit}, and no other tool may replace this one")
        return Verdict("redirect", "doubtful", limit, rival, asks=asks)


def _exceeds(value: float, limit: float | None) -> bool:
    return limit is None or value > limit


def _on_this_tool(doubtful: Doubtful) -> Action:
    """Return the action; a veto in place of one that would choose another tool."""
    return "veto" if doubtful == "redirect" or doubtful == "correct" else doubtful  # noqa: PLR1714


def _likely_wrong(reading: Reading) -> bool:
    return reading.p_wrong is not None and reading.p_wrong > 0.5
