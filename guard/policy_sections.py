"""The sections of a policy file: what stands under a tier, a tool, a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from toolguard.guard.argument_schema import check_constraints
from toolguard.guard.decision import Action

Mode = Literal["monitor", "enforce"]
Rule = Literal["judge", "allow", "deny", "confirm"]
Doubtful = Literal[Action, "correct"]
"""What a policy may want of a doubtful call: an action, or what calibration showed to help."""

Stored = Literal["hmac", "plain"]
"""How the audit store keeps a text: as keyed digest, or readable."""

RiskTarget = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, and attribute texts reach the JSON Schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TierPolicy(Section):
    """How the tools of one tier are treated, where their own section does not say."""

    risk_target: RiskTarget | None = None
    """Largest share of wrong calls among the allowed ones; by default the policy's."""

    doubtful: Doubtful = "veto"
    """Action when P(wrong) is above the threshold."""

    rule: Rule | None = None
    """`judge` by the evidence, or always `allow`, `deny` or `confirm`; by default `judge`."""


class Budget(Section):
    """How often a tool may be executed."""

    per_run: Count | None = None
    """Executions in one run of an agent."""

    per_minute: Count | None = None
    """Executions within 60 seconds, over all runs that share an audit store."""


class ToolPolicy(Section):
    """What one tool, or every tool a glob matches, is and how it is treated."""

    tier: Name = "write"
    """How much harm a wrong call does: one of the policy's tiers."""

    rule: Rule | None = None
    """`judge` by the evidence, or always `allow`, `deny` or `confirm`; by default the tier's."""

    doubtful: Doubtful | None = None
    """Action when P(wrong) is above the threshold; by default the tier's."""

    arguments: Mapping[str, Any] | None = None
    """JSON Schema (draft 2020-12) that the arguments must meet beside the tool's own."""

    required: tuple[Name, ...] = ()
    """Arguments the user must have given: a call without one asks for it."""

    irrelevant: tuple[Name, ...] = ()
    """Arguments this agent has no use for: a call that carries one is vetoed."""

    budget: Budget | None = None
    """How often it may be executed; by default without limit."""

    roles: tuple[Name, ...] | None = None
    """Callers that may use it; by default all, and with an empty list none."""

    redirects: tuple[Name, ...] | None = None
    """Tools its calls may be turned into; by default any of the same or a lower tier."""

    @field_validator("arguments")
    @classmethod
    def _constraints_can_be_checked(cls, value: Mapping[str, Any] | None) -> Any:
        if value is not None:
            check_constraints(value)
        return value


class AuditPolicy(Section):
    """What the audit store keeps readable."""

    arguments: Stored = "hmac"
    """Arguments of calls: a keyed digest, or as they are."""

    prompts: Stored = "hmac"
    """What users and tools said: a keyed digest, or as it is."""


class Steering(Section):
    """When and how far to push the hidden state towards the readout's best tool."""

    alpha: float = Field(default=1.0, gt=0)
    """Multiples of the mean difference that are added; 1 moves by one whole difference."""

    max_gap: float | None = Field(default=None, gt=0)
    """Steer only where the readout's best two tools are closer than this; by default the profile's
    lower quartile."""
