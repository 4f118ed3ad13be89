"""The guard: from the evidence at a decision token to a verdict, failing closed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import isinf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolguard.guard.audit import log_decision
from toolguard.guard.calibrator import Calibrator
from toolguard.guard.decision import EXECUTING, Action, Decision, Reading, Reason
from toolguard.guard.errors import ReadoutError, ShapeError, ToolguardError
from toolguard.guard.policy import Policy
from toolguard.guard.profile import MenuView, Profile
from toolguard.guard.readout import margin, top_gap


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What decoding hands to the guard when a tool's name is complete.

    Args:
        chosen: the decoded name, exactly as written.
        hidden: (dim,) hidden state at the decision token, block output at the profile's layer; None
            if not read.
        logprob: (tools,) whole-name log-probabilities in menu order, float32; None if not read.
        steered_to: tool the hidden state was pushed towards at the decision token, if any.
        position: index of the decision token.
        fault: why something is missing; empty if nothing is.
    """

    chosen: str
    hidden: Tensor | None = None
    logprob: Tensor | None = None
    steered_to: str | None = None
    position: int = -1
    fault: str = ""


@dataclass(frozen=True, slots=True)
class _Verdict:
    action: Action
    reason: Reason
    detail: str
    target: str | None = None


class Guard:
    """A profile and a policy: judges readings. Holds no request state, so threads may share it.

    Args:
        profile: what calibration learned; None judges by static rules alone and trusts no tool.
        policy: what may run.
        logger: a structlog logger; by default `audit.default_logger`.
    """

    def __init__(
        self, profile: Profile | None, policy: Policy, *, logger: Any | None = None
    ) -> None:
        self.profile = profile
        self.policy = policy
        self.logger = logger
        self.threshold = profile.threshold(policy.risk_target) if profile else None
        self._calibrator = Calibrator.from_dict(profile.meta.calibrator) if profile else None

    @classmethod
    def load(
        cls,
        profile: Path | str,
        policy: Policy | Path | str | None = None,
        *,
        logger: Any | None = None,
    ) -> Guard:
        """Return a guard from a profile folder and a policy.

        Args:
            profile: the folder.
            policy: a value, a YAML file, or None to watch only.
            logger: see the class.

        Raises:
            ConfigError: if the policy or the folder cannot be read.
            ArtifactMismatch: if the profile is corrupt.
        """
        if policy is None:
            policy = Policy()
        elif not isinstance(policy, Policy):
            policy = Policy.load(policy)
        return cls(Profile.load(Path(profile)), policy, logger=logger)

    @property
    def monitoring(self) -> bool:
        """Whether decisions are only recorded."""
        return self.policy.mode == "monitor"

    def denied(self, names: tuple[str, ...]) -> frozenset[str]:
        """Return the names that no evidence could make run: decoding masks them."""
        if self.monitoring:
            return frozenset()
        return frozenset(name for name in names if self.policy.rule_for(name) == "deny")

    def check(self, evidence: Evidence, view: MenuView) -> Decision:
        """Return the verdict on one call and write it to the log.

        Never raises: if the verdict cannot be computed the call does not run (monitor mode: it
        runs, and the record says so).
        """
        started = time.perf_counter()
        ruled: _Verdict | None = None
        try:
            ruled = self._by_rule(evidence.chosen, view)
            reading = self.read(evidence, view)
            verdict = ruled or self._by_evidence(reading, view, evidence.steered_to)
        except Exception as error:  # noqa: BLE001 - whatever fails here must end in a closed door
            reading = _unread(evidence, view, error)
            verdict = ruled or _Verdict("veto", "fault", f"the guard failed: {reading.fault}")
        return self._decide(reading, verdict, (time.perf_counter() - started) * 1e6)

    def refuse(self, chosen: str, view: MenuView, reason: Reason, detail: str) -> Decision:
        """Return and log the decision that closes a call for which there is no reading."""
        reading = Reading(menu=view.names, chosen=chosen, fault=detail)
        return self._decide(reading, _Verdict("veto", reason, detail), 0.0)

    def read(self, evidence: Evidence, view: MenuView) -> Reading:
        """Return the evidence as scores, margins and P(wrong), without judging it.

        Raises:
            ReadoutError: if a score is NaN, or a known tool's not finite.
            ShapeError: if the evidence does not fit the menu or the profile.
        """
        scores = self._scores(evidence, view)
        margins: dict[str, float] = {}
        if evidence.chosen in view.names:
            at = view.names.index(evidence.chosen)
            margins = {
                signal: value
                for signal, values in scores.items()
                if (value := _margin(values, at)) is not None
            }
        return Reading(
            menu=view.names,
            chosen=evidence.chosen,
            scores={signal: tuple(values.tolist()) for signal, values in scores.items()},
            margins=margins,
            gaps={signal: top_gap(values) for signal, values in scores.items()},
            status=view.statuses.get(evidence.chosen, "unknown"),
            p_wrong=self._p_wrong(margins),
            fault=evidence.fault,
            position=evidence.position,
        )

    def _scores(self, evidence: Evidence, view: MenuView) -> dict[str, Tensor]:
        scores: dict[str, Tensor] = {}
        if evidence.logprob is not None:
            if evidence.logprob.shape != (len(view.names),):
                raise ShapeError(
                    f"expected {len(view.names)} log-probabilities, "
                    f"found {tuple(evidence.logprob.shape)}"
                )
            scores["logprob"] = evidence.logprob
        if evidence.hidden is not None and self.profile is not None:
            scores["activation"] = view.scores(evidence.hidden)
        return scores

    def _p_wrong(self, margins: dict[str, float]) -> float | None:
        calibrator = self._calibrator
        if calibrator is None or any(signal not in margins for signal in calibrator.features):
            return None
        return calibrator.probability({signal: margins[signal] for signal in calibrator.features})

    def steering_direction(self, hidden: Tensor, view: MenuView) -> tuple[str, Tensor] | None:
        """Return (target, vector to add) if the policy steers this hidden state, else None.

        The state is pushed from the readout's second tool to its best one, if the two are close,
        the best one may replace the other, and both are calibrated.

        Args:
            hidden: (dim,) block output at the decision token.
            view: the menu.

        Returns:
            the target's name and a (dim,) float32 vector `alpha * (mean[target] - mean[source])`.

        Raises:
            ReadoutError: if a known tool's score is not finite.
            ShapeError: if `hidden` has another width.

        Source: DESIGN section 5; the gate follows the finding that ungated steering does harm.
        """
        steering = self.policy.steering
        if steering is None or self.monitoring or self.profile is None or len(view.names) < 2:
            return None
        scores = view.scores(hidden)
        best, second = (view.names[i] for i in torch.topk(scores, 2).indices.tolist())
        gate = steering.max_gap
        if gate is None:
            gate = self.profile.meta.gap_low_quartile
        trusted = {view.statuses[best], view.statuses[second]} == {"calibrated"}
        if not trusted or gate is None or top_gap(scores) >= gate:
            return None
        if not self.policy.may_replace(second, best):
            return None
        return best, steering.alpha * view.direction(second, best)

    def _by_rule(self, name: str, view: MenuView) -> _Verdict | None:
        """Return the verdict that needs no evidence, or None."""
        if name not in view.names:
            return _Verdict("veto", "not_on_menu", "the model named a tool that is not on the menu")
        rule = self.policy.rule_for(name)
        listed = name in self.policy.tools
        if rule == "deny":
            reason: Reason = "rule_deny" if listed else "unlisted"
            return _Verdict("veto", reason, "the policy denies this tool")
        if rule == "confirm":
            reason = "rule_confirm" if listed else "unlisted"
            return _Verdict("confirm", reason, "the policy wants a person to confirm")
        if rule == "allow":
            detail = "the policy allows this tool whatever the evidence"
            return _Verdict("allow", "rule_allow", detail)
        return None

    def _by_evidence(self, reading: Reading, view: MenuView, steered_to: str | None) -> _Verdict:
        if reading.fault:
            return _Verdict("veto", "fault", reading.fault)
        if reading.status != "calibrated":
            return self._untrusted(reading)
        if reading.p_wrong is None:
            raise ReadoutError("no P(wrong): a signal of the calibrator was not read")
        if self.threshold is not None and reading.p_wrong <= self.threshold:
            action: Action = "steer" if steered_to == reading.chosen else "allow"
            return _Verdict(action, "confident", "P(wrong) is within the threshold", steered_to)
        return self._doubtful(reading, view)

    def _untrusted(self, reading: Reading) -> _Verdict:
        actions: dict[str, Action] = {"allow": "allow", "confirm": "confirm", "deny": "veto"}
        action = actions.get(self.policy.uncalibrated)
        if action is None:
            action = self.policy.doubtful_action(reading.chosen)
        if action == "redirect":  # an untrusted reading is no ground for choosing another tool
            action = "veto"
        detail = f"the profile cannot vouch for this tool: it is {reading.status}"
        return _Verdict(action, "uncalibrated", detail)

    def _doubtful(self, reading: Reading, view: MenuView) -> _Verdict:
        limit = "P(wrong) is above the threshold"
        if self.threshold is None:
            limit = "no P(wrong) is allowed at this risk target"
        action = self.policy.doubtful_action(reading.chosen)
        if action != "redirect":
            return _Verdict(action, "doubtful", limit)
        target = self._replacement(reading, view)
        if target is None:
            return _Verdict("veto", "doubtful", f"{limit}, and no other tool may replace this one")
        return _Verdict("redirect", "doubtful", limit, target)

    def _replacement(self, reading: Reading, view: MenuView) -> str | None:
        """Return the best other tool if all signals agree on it and it may stand in, else None."""
        rivals = {
            next((name for name in reading.ranking(signal) if name != reading.chosen), None)
            for signal in reading.scores
        }
        rival = rivals.pop() if len(rivals) == 1 else None
        # A tool the profile cannot vouch for would not have passed if the model had chosen it.
        if rival is None or view.statuses[rival] != "calibrated":
            return None
        return rival if self.policy.may_replace(reading.chosen, rival) else None

    def _decide(self, reading: Reading, verdict: _Verdict, latency_us: float) -> Decision:
        opened = self.monitoring and verdict.action not in ("allow", "steer")
        decision = Decision(
            action="allow" if opened else verdict.action,
            proposed=verdict.action,
            tool=reading.chosen,
            reason=verdict.reason,
            detail=verdict.detail,
            reading=reading,
            threshold=self.threshold,
            target=None if opened else verdict.target,
            latency_us=latency_us,
        )
        return self.record(decision)

    def record(self, decision: Decision) -> Decision:
        """Write the decision to the log and return it; unwritten, a call does not run."""
        try:
            log_decision(decision, self.logger)
        except Exception as error:  # noqa: BLE001 - an unrecorded decision must not execute
            if self.monitoring or decision.action not in EXECUTING:
                return decision
            return _closed(decision, f"the decision could not be recorded: {type(error).__name__}")
        return decision


def _unread(evidence: Evidence, view: MenuView, error: Exception) -> Reading:
    return Reading(
        menu=view.names,
        chosen=evidence.chosen,
        status=view.statuses.get(evidence.chosen, "unknown"),
        fault=type(error).__name__,
        position=evidence.position,
    )


def _closed(decision: Decision, detail: str) -> Decision:
    return Decision(
        action="veto",
        proposed="veto",
        tool=decision.tool,
        reason="fault",
        detail=detail,
        reading=decision.reading,
        threshold=decision.threshold,
        latency_us=decision.latency_us,
    )


def _margin(scores: Tensor, at: int) -> float | None:
    """Return the margin, or None if this signal does not compare the tool with another one."""
    if not bool(torch.isfinite(scores[at])):
        return None
    value = margin(scores, at)
    # Rivals the profile never met score -inf; to lead them by +inf means nothing.
    return None if isinf(value) and len(scores) > 1 else value


def fault_text(error: ToolguardError) -> str:
    """Return the error's first line, for a record: our messages hold no prompt or argument text."""
    return error.message.splitlines()[0]
