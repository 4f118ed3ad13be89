"""The verdict on a call: static rules first, then the evidence. Knows no model and no tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toolguard.guard.decision import Action, Reading, Reason
from toolguard.guard.errors import ReadoutError
from toolguard.guard.policy import Policy, ToolRuling
from toolguard.guard.profile import ToolStatus


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `enforce` does with a call, and why; the fields are those of `Decision`."""

    action: Action
    reason: Reason
    detail: str
    target: str | None = None


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
        steered_to: tool the hidden state was pushed towards, if any.
    """

    policy: Policy
    ruling: ToolRuling
    threshold: float | None
    statuses: Mapping[str, ToolStatus]
    steered_to: str | None = None

    def verdict(self, reading: Reading) -> Verdict:
        """Return the verdict on a call that no static rule decides.

        Raises:
            ReadoutError: if the tool is calibrated and there is no P(wrong).
        """
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
        action = actions.get(self.policy.uncalibrated, self.ruling.doubtful)
        if action == "redirect":  # an untrusted reading is no ground for choosing another tool
            action = "veto"
        detail = f"the profile cannot vouch for this tool: it is {reading.status}"
        return Verdict(action, "uncalibrated", detail)

    def _doubtful(self, reading: Reading) -> Verdict:
        limit = "P(wrong) is above the threshold"
        if self.threshold is None:
            limit = "no P(wrong) is allowed at this risk target"
        if self.ruling.doubtful != "redirect":
            return Verdict(self.ruling.doubtful, "doubtful", limit)
        target = self._replacement(reading)
        if target is None:
            return Verdict("veto", "doubtful", f"{limit}, and no other tool may replace this one")
        return Verdict("redirect", "doubtful", limit, target)

    def _replacement(self, reading: Reading) -> str | None:
        """Return the best other tool if all signals agree on it and it may stand in, else None."""
        rivals = {
            next((name for name in reading.ranking(signal) if name != reading.chosen), None)
            for signal in reading.scores
        }
        rival = rivals.pop() if len(rivals) == 1 else None
        # A tool the profile cannot vouch for would not have passed if the model had chosen it.
        if rival is None or self.statuses.get(rival) != "calibrated":
            return None
        return rival if self.policy.may_replace(reading.chosen, rival) else None
