"""The guard: from the evidence at a decision token to a verdict, failing closed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolguard.guard.answer_gate import OpeningEvidence
from toolguard.guard.arguments import ArgumentFinding, check_arguments
from toolguard.guard.audit import log_decision
from toolguard.guard.calibrator import Calibrator
from toolguard.guard.decision import EXECUTING, Decision, Reading, Reason
from toolguard.guard.errors import ConfigError, ShapeError, ToolguardError
from toolguard.guard.policy import Policy
from toolguard.guard.profile import MenuView, Profile
from toolguard.guard.readout import top_gap
from toolguard.guard.signals import ALWAYS_READ, read_signals
from toolguard.guard.tools import Tool, ToolCall
from toolguard.guard.verdict import NOT_ON_MENU, Judge, Verdict, verdict_by_rule

_NAMES = 4096  # tools whose rules are kept ready


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
        opening: what was read where the turn's first call could start; None if this is a later
            call, the caller began it, or the profile has no use for it.
        fault: why something is missing; empty if nothing is.
    """

    chosen: str
    hidden: Tensor | None = None
    logprob: Tensor | None = None
    steered_to: str | None = None
    position: int = -1
    opening: OpeningEvidence | None = None
    fault: str = ""


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
        # Names are resolved once, not a call: a glob or a risk target is looked up in microseconds,
        # a whole verdict takes tens of them.
        self._ruling = lru_cache(maxsize=_NAMES)(policy.ruling)
        self._threshold = lru_cache(maxsize=_NAMES)(partial(_threshold, profile, policy))
        self._no_call_limits = lru_cache(maxsize=_NAMES)(partial(_no_call_limits, profile, policy))
        self._calibrator = Calibrator.from_dict(profile.meta.calibrator) if profile else None
        used = profile.meta.signals if profile else ()
        self._signals = tuple(dict.fromkeys((*ALWAYS_READ, *used)))
        self._gate = profile.gate if profile else None

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
        return frozenset(name for name in names if self._ruling(name).rule == "deny")

    def threshold_for(self, name: str) -> float | None:
        """Return the largest P(wrong) at which a call of this tool runs; None if none does."""
        return self._threshold(name)

    def check(self, evidence: Evidence, view: MenuView) -> Decision:
        """Return the verdict on one call and write it to the log.

        Never raises: if the verdict cannot be computed the call does not run (monitor mode: it
        runs, and the record says so).
        """
        started = time.perf_counter()
        ruled: Verdict | None = None
        try:
            ruled = self._by_rule(evidence.chosen, view)
            reading = self.read(evidence, view)
            verdict = ruled or self._by_evidence(reading, view, evidence.steered_to)
        except Exception as error:  # noqa: BLE001 - whatever fails here must end in a closed door
            reading = _unread(evidence, view, error)
            verdict = ruled or Verdict("veto", "fault", f"the guard failed: {reading.fault}")
        return self._decide(reading, verdict, (time.perf_counter() - started) * 1e6)

    def refuse(self, chosen: str, view: MenuView, reason: Reason, detail: str) -> Decision:
        """Return and log the decision that closes a call for which there is no reading."""
        reading = Reading(menu=view.names, chosen=chosen, fault=detail)
        return self._decide(reading, Verdict("veto", reason, detail), 0.0)

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
            margins = read_signals(scores, at, self._signals)
        no_call, fault = self._no_call(evidence.opening)
        return Reading(
            menu=view.names,
            chosen=evidence.chosen,
            scores={signal: tuple(values.tolist()) for signal, values in scores.items()},
            margins=margins,
            gaps={signal: top_gap(values) for signal, values in scores.items()},
            status=view.statuses.get(evidence.chosen, "unknown"),
            p_wrong=self._p_wrong(margins),
            no_call=no_call,
            fault=evidence.fault or fault,
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

    @property
    def judges_openings(self) -> bool:
        """Whether a call may be closed because there should be none."""
        return self._gate is not None and self.policy.call_or_answer == "judge"

    def _no_call(self, opening: OpeningEvidence | None) -> tuple[dict[str, float], str]:
        """Return what the profile's gate says of an opening, and why it cannot be judged."""
        if self._gate is None or opening is None:
            return {}, ""
        try:
            return self._gate.read(opening), ""
        except ToolguardError as error:
            return {}, fault_text(error) if self.judges_openings else ""

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

    def _by_rule(self, name: str, view: MenuView) -> Verdict | None:
        return verdict_by_rule(self._ruling(name)) if name in view.names else NOT_ON_MENU

    def _by_evidence(self, reading: Reading, view: MenuView, steered_to: str | None) -> Verdict:
        judge = Judge(
            policy=self.policy,
            ruling=self._ruling(reading.chosen),
            threshold=self._threshold(reading.chosen),
            statuses=view.statuses,
            steered_to=steered_to,
            correction=self.profile.meta.correction if self.profile else None,
            no_call_limits=self._no_call_limits(reading.chosen) if self.judges_openings else {},
        )
        return judge.verdict(reading)

    def answered(self, decision: Decision, picked: str) -> Decision:
        """Return the decision after the model was asked between two tools, written to the log.

        Args:
            decision: whose `asks` is set.
            picked: the tool or the target; anything else closes the call.
        """
        asked = "asked again with the best two tools alone, the model"
        if picked == decision.target:
            detail = f"{decision.detail}; {asked} took the other one"
            return self.record(replace(decision, asks=False, detail=detail))
        if picked != decision.tool:
            return self.record(_closed(decision, "the answer is neither of the two tools"))
        return self.record(
            replace(
                decision,
                action="allow",
                proposed="allow",
                target=None,
                asks=False,
                detail=f"{decision.detail}; {asked} kept its choice",
            )
        )

    def unanswered(self, decision: Decision, error: ToolguardError) -> Decision:
        """Return and log the decision that closes a call about which the model cannot be asked."""
        return self.record(_closed(decision, fault_text(error)))

    def check_arguments(self, decision: Decision, call: ToolCall, tool: Tool) -> Decision:
        """Return the decision after a look at the call's arguments, written to the log if changed.

        A missing required value asks for it, anything else vetoes. A call that does not go on
        anyway is not looked at. Never raises: if the arguments cannot be judged the call does not
        run (monitor mode: it runs, and the record says so).

        Args:
            decision: on the call's name.
            call: as parsed.
            tool: of the call.
        """
        going = decision.proposed if self.monitoring else decision.action
        if going not in EXECUTING and going != "confirm":
            return decision
        started = time.perf_counter()
        try:
            findings = self._argument_findings(call, tool)
        except Exception as error:  # noqa: BLE001 - whatever fails here must end in a closed door
            why = f"the arguments could not be judged: {type(error).__name__}"
            closed = replace(decision, proposed="veto", reason="fault", detail=why)
        else:
            if not findings:
                return decision
            closed = _with_findings(decision, findings)
        return self.record(
            replace(
                closed,
                action="allow" if self.monitoring else closed.proposed,
                latency_us=decision.latency_us + (time.perf_counter() - started) * 1e6,
            )
        )

    def _argument_findings(self, call: ToolCall, tool: Tool) -> tuple[ArgumentFinding, ...]:
        if call.name != tool.name:
            raise ConfigError(f"a call of {call.name!r} is judged by the tool {tool.name!r}")
        closed = self.policy.unknown_arguments == "deny"
        listed = self.policy.tool_policy(call.name)
        return check_arguments(tool, call.arguments, listed, closed=closed)

    def _decide(self, reading: Reading, verdict: Verdict, latency_us: float) -> Decision:
        opened = self.monitoring and verdict.action not in ("allow", "steer")
        decision = Decision(
            action="allow" if opened else verdict.action,
            proposed=verdict.action,
            tool=reading.chosen,
            reason=verdict.reason,
            detail=verdict.detail,
            reading=reading,
            threshold=self._threshold(reading.chosen),
            target=None if opened else verdict.target,
            asks=verdict.asks and not opened,
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


def _threshold(profile: Profile | None, policy: Policy, name: str) -> float | None:
    return profile.threshold(policy.risk_target_for(name)) if profile else None


def _no_call_limits(
    profile: Profile | None, policy: Policy, name: str
) -> Mapping[str, float | None]:
    return profile.no_call_limits(policy.risk_target_for(name)) if profile else {}


def _with_findings(decision: Decision, findings: tuple[ArgumentFinding, ...]) -> Decision:
    """Return the decision that closes the call; a question where all that is wrong is missing."""
    missing = all(found.problem == "missing" for found in findings)
    return replace(
        decision,
        proposed="clarify" if missing else "veto",
        reason="missing_argument" if missing else "invalid_arguments",
        detail="; ".join(map(str, findings)),
        fields=tuple(dict.fromkeys(found.field for found in findings if found.field)),
    )


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


def fault_text(error: ToolguardError) -> str:
    """Return the error's first line, for a record: our messages hold no prompt or argument text."""
    return error.message.splitlines()[0]
