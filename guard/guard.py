"""The guard: from the evidence at a decision token to a verdict, failing closed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolguard.guard.audit import log_decision
from toolguard.guard.calibrator import Calibrator
from toolguard.guard.decision import EXECUTING, Action, Decision, Reading, Reason
from toolguard.guard.errors import ReadoutError, ToolguardError
from toolguard.guard.policy import Policy
from toolguard.guard.profile import MenuView, Profile
from toolguard.guard.readout import margin, top_gap


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What decoding hands to the guard when a tool's name is complete.

    Args:
        chosen: the decoded name, exactly as written.
        hidden: (dim,) hidden state at the decision token, block output at the profile's layer; None if not read.
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
        logger: a structlog logger; by default the one named toolguard.
    """

    def __init__(self, profile: Profile | None, policy: Policy, *, logger: Any | None = None) -> None:
        self.profile = profile
        self.policy = policy
        self.logger = logger
        self.threshold = profile.threshold(policy.risk_target) if profile else None
        self._calibrator = Calibrator.from_dict(profile.meta.calibrator) if profile else None

    @classmethod
    def load(cls, profile: Path | str, policy: Policy | Path | str | None = None, *, logger: Any | None = None) -> Guard:
        """Return a guard from a profile folder and a policy (value, YAML file, or None: watch only).

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
        """Return the names that no evidence could make run: they are masked while the name is decoded."""
        if self.monitoring:
            return frozenset()
        return frozenset(name for name in names if self.policy.rule_for(name) == "deny")

    def check(self, evidence: Evidence, view: MenuView) -> Decision:
        """Return the verdict on one call and write it to the log.

        Never raises: if the verdict cannot be computed the call does not run (monitor mode: it runs, and the
        record says so).
        """
        started = time.perf_counter()
        try:
            reading = self.read(evidence, view)
            verdict = self._judge(reading, evidence)
        except Exception as error:  # noqa: BLE001 - the one place where anything at all must end in a closed door
            reading = Reading(menu=view.names, chosen=evidence.chosen, fault=type(error).__name__)
            verdict = _Verdict("veto", "fault", f"the guard failed: {type(error).__name__}")
        return self._decide(reading, verdict, (time.perf_counter() - started) * 1e6)

    def refuse(self, chosen: str, view: MenuView, reason: Reason, detail: str) -> Decision:
        """Return and log the decision that closes a call for which there is no reading."""
        reading = Reading(menu=view.names, chosen=chosen, fault=detail)
        return self._decide(reading, _Verdict("veto", reason, detail), 0.0)

    def read(self, evidence: Evidence, view: MenuView) -> Reading:
        """Return the evidence as scores, margins and P(wrong), without judging it.

        Raises:
            ReadoutError: if a score is not finite.
        """
        scores: dict[str, Tensor] = {}
        if evidence.logprob is not None:
            scores["logprob"] = evidence.logprob
        if evidence.hidden is not None and self.profile is not None:
            scores["activation"] = view.scores(evidence.hidden)
        margins: dict[str, float] = {}
        if evidence.chosen in view.names:
            at = view.names.index(evidence.chosen)
            margins = {signal: margin(values, at) for signal, values in scores.items() if _finite_at(values, at)}
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

    def _p_wrong(self, margins: dict[str, float]) -> float | None:
        calibrator = self._calibrator
        if calibrator is None or any(signal not in margins for signal in calibrator.features):
            return None
        return calibrator.probability({signal: margins[signal] for signal in calibrator.features})

    def steering_direction(self, hidden: Tensor, view: MenuView) -> tuple[str, Tensor] | None:
        """Return (target, vector to add) if the policy steers this hidden state, else None.

        The state is pushed from the readout's second tool to its best one, if the two are close, the best one may
        replace the other, and both are calibrated.

        Args:
            hidden: (dim,) block output at the decision token.
            view: the menu.

        Returns:
            the target's name and a (dim,) float32 vector `alpha * (mean[target] - mean[source])`.

        Source: DESIGN section 5; the gate follows the finding that ungated steering does harm.
        """
        steering = self.policy.steering
        if steering is None or self.monitoring or self.profile is None or len(view.names) < 2:
            return None
        scores = view.scores(hidden)
        best, second = (view.names[i] for i in torch.topk(scores, 2).indices.tolist())
        gate = steering.max_gap if steering.max_gap is not None else self.profile.meta.gap_low_quartile
        trusted = {view.statuses[best], view.statuses[second]} == {"calibrated"}
        if not trusted or gate is None or top_gap(scores) >= gate or not self.policy.may_replace(second, best):
            return None
        return best, steering.alpha * view.direction(second, best)

    def _judge(self, reading: Reading, evidence: Evidence) -> _Verdict:
        name = reading.chosen
        if name not in reading.menu:
            return _Verdict("veto", "not_on_menu", "the model named a tool that is not on the menu")
        rule = self.policy.rule_for(name)
        listed = name in self.policy.tools
        if rule == "deny":
            return _Verdict("veto", "rule_deny" if listed else "unlisted", "the policy denies this tool")
        if rule == "confirm":
            return _Verdict("confirm", "rule_confirm" if listed else "unlisted", "the policy wants a person to confirm")
        if rule == "allow":
            return _Verdict("allow", "rule_allow", "the policy allows this tool whatever the evidence")
        if evidence.fault:
            return _Verdict("veto", "fault", evidence.fault)
        if reading.status != "calibrated":
            return self._judge_untrusted(reading)
        return self._judge_evidence(reading, evidence)

    def _judge_untrusted(self, reading: Reading) -> _Verdict:
        actions: dict[str, Action] = {"allow": "allow", "confirm": "confirm", "deny": "veto"}
        rule = self.policy.uncalibrated
        action = actions.get(rule) or self.policy.doubtful_action(reading.chosen)
        if action == "redirect":  # an untrusted reading is no ground for choosing another tool
            action = "veto"
        return _Verdict(action, "uncalibrated", f"the profile cannot vouch for this tool: it is {reading.status}")

    def _judge_evidence(self, reading: Reading, evidence: Evidence) -> _Verdict:
        if reading.p_wrong is None:
            raise ReadoutError("no P(wrong): a signal of the calibrator was not read")
        if self.threshold is not None and reading.p_wrong <= self.threshold:
            steered = evidence.steered_to == reading.chosen
            return _Verdict("steer" if steered else "allow", "confident", "P(wrong) is within the threshold", evidence.steered_to)
        action = self.policy.doubtful_action(reading.chosen)
        limit = "no P(wrong) is allowed at this risk target" if self.threshold is None else "P(wrong) is above the threshold"
        if action != "redirect":
            return _Verdict(action, "doubtful", limit)
        target = self._replacement(reading)
        if target is None:
            return _Verdict("veto", "doubtful", f"{limit}, and no other tool may replace this one")
        return _Verdict("redirect", "doubtful", limit, target)

    def _replacement(self, reading: Reading) -> str | None:
        """Return the best-scored other tool if every signal agrees on it and the policy lets it stand in."""
        rivals = {
            next((name for name in reading.ranking(signal) if name != reading.chosen), None) for signal in reading.scores
        }
        rival = rivals.pop() if len(rivals) == 1 else None
        return rival if rival is not None and self.policy.may_replace(reading.chosen, rival) else None

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
        """Write the decision to the log and return it; if it cannot be written the call does not run."""
        try:
            log_decision(decision, self.logger)
        except Exception as error:  # noqa: BLE001 - an unrecorded decision must not execute
            if self.monitoring or decision.action not in EXECUTING:
                return decision
            return _closed(decision, f"the decision could not be recorded: {type(error).__name__}")
        return decision


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


def _finite_at(values: Tensor, at: int) -> bool:
    return bool(torch.isfinite(values[at]))


def fault_text(error: ToolguardError) -> str:
    """Return the error's first line, for a record: our messages hold no prompt or argument text."""
    return error.message.splitlines()[0]
