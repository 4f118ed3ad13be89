"""What is kept of one judged call: the decision, its evidence and digests, signed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from toolguard.guard.audit import decision_record
from toolguard.guard.decision import Action, Decision, Reason
from toolguard.guard.policy import Mode, Policy
from toolguard.guard.seal import Seal
from toolguard.guard.tools import canonical_json

_EVIDENCE = (
    "p_wrong",
    "threshold",
    "margins",
    "gaps",
    "candidates",
    "no_call",
    "status",
    "fault",
    "latency_us",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One call as the guard let it stand; what runs is compared with it.

    Args:
        call_id: the call's id in its message.
        tool: name the model chose; None if it is not on the menu.
        target: tool redirected or steered to; None otherwise.
        action: what was decided.
        proposed: what `enforce` would decide.
        reason: why, as one word.
        detail: why, as a sentence without prompt or argument text.
        fields: arguments the reason is about, by name.
        mode: of the policy.
        arguments: digest of the arguments as written.
        policy: hash of the policy that judged.
        evidence: P(wrong), threshold, margins and the like, JSON-ready.
        signature: over all of the above; empty until sealed.
    """

    call_id: str
    tool: str | None
    target: str | None
    action: Action
    proposed: Action
    reason: Reason
    detail: str
    fields: tuple[str, ...]
    mode: Mode
    arguments: str
    policy: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    signature: str = ""

    @classmethod
    def of(
        cls,
        decision: Decision,
        *,
        call_id: str,
        arguments: Mapping[str, Any],
        policy: Policy,
        seal: Seal,
    ) -> CallRecord:
        """Return the signed record of a decision on the call with this id and these arguments."""
        told = decision_record(decision)
        content: dict[str, Any] = {
            "call_id": call_id,
            "tool": told["tool"],
            "target": decision.target,
            "action": decision.action,
            "proposed": decision.proposed,
            "reason": decision.reason,
            "detail": decision.detail,
            "fields": list(decision.fields),
            "mode": policy.mode,
            "arguments": seal.digest(dict(arguments)),
            "policy": policy.content_hash,
            "evidence": {name: told[name] for name in _EVIDENCE},
        }
        # Plain JSON from here on: what comes back from a checkpoint must be what was signed.
        content = json.loads(canonical_json(content))
        return cls(**{**content, "fields": decision.fields}, signature=seal.sign(content))

    @classmethod
    def opened(cls, stored: object, seal: Seal) -> CallRecord | None:
        """Return the record in a stored mapping, or None if it is not one that `seal` signed."""
        if not isinstance(stored, Mapping) or set(stored) != set(cls.__dataclass_fields__):
            return None
        content = {name: value for name, value in stored.items() if name != "signature"}
        if not seal.holds(content, stored["signature"]):
            return None
        return cls(**{**stored, "fields": tuple(stored["fields"])})

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON-ready values, as `opened` takes them."""
        return asdict(self) | {"fields": list(self.fields), "evidence": dict(self.evidence)}

    @property
    def enforced(self) -> Action:
        """What `enforce` does with the call, also where the model's guard was only watching."""
        return self.proposed if self.mode == "monitor" else self.action

    @property
    def named(self) -> str | None:
        """The name the call must carry: the target's of a redirect, else the chosen tool's."""
        return self.target if self.action == "redirect" else self.tool
