"""The policy: what may run, and what happens when the evidence is not good enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from toolguard.guard.errors import ConfigError
from toolguard.guard.policy_file import read_policy_file
from toolguard.guard.policy_presets import TIERS, PresetName, expand
from toolguard.guard.policy_sections import (
    AuditPolicy,
    Budget,
    Count,
    Doubtful,
    Mode,
    RiskTarget,
    Rule,
    Section,
    Steering,
    TierPolicy,
    ToolPolicy,
)
from toolguard.guard.tools import canonical_json, sha256_text

__all__ = [
    "AuditPolicy",
    "Budget",
    "Mode",
    "Policy",
    "Rule",
    "Steering",
    "TierPolicy",
    "ToolPolicy",
    "ToolRuling",
    "is_glob",
]

_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRuling:
    """What the policy says of one name, with every default filled in.

    Args:
        key: the entry of `tools` that decides, a name or a glob; None for a tool nobody listed.
        tier: its tier; the most harmful one for a tool nobody listed.
        rule: static rule.
        doubtful: action when P(wrong) is above the threshold.
        risk_target: largest share of wrong calls among the allowed ones; None takes what the
            profile was made for.
    """

    key: str | None
    tier: str
    rule: Rule
    doubtful: Doubtful
    risk_target: float | None

    @property
    def listed(self) -> bool:
        """Whether an entry of `tools` covers the name."""
        return self.key is not None


def _default_tiers() -> dict[str, TierPolicy]:
    return {name: TierPolicy.model_validate(keys) for name, keys in TIERS.items()}


class Policy(Section):
    """A whole policy. The default watches and blocks nothing."""

    version: Literal[1] = 1
    """Of this format."""

    preset: PresetName | None = None
    """A policy to start from; every key of the file goes before the preset's."""

    mode: Mode = "monitor"
    """`monitor` records what it would do; `enforce` does it."""

    unlisted: Rule = "judge"
    """Rule for tools that `tools` does not name; `judge` treats them as the most harmful tier."""

    uncalibrated: Rule = "deny"
    """Rule for tools the profile cannot vouch for: too few examples, changed, or unknown."""

    call_or_answer: Literal["judge", "record"] = "judge"
    """Whether a call is doubtful where the profile says that an answer or a question should stand
    in its place; `record` only notes it."""

    unknown_arguments: Literal["allow", "deny"] = "allow"
    """Whether a call may carry an argument that neither the tool's schema nor the policy names."""

    risk_target: RiskTarget | None = None
    """Largest share of wrong calls among the allowed ones; by default the profile's."""

    vetoed_retries: Count = 3
    """Blocked calls in one run after which the run ends."""

    tiers: Mapping[str, TierPolicy] = Field(default_factory=_default_tiers, min_length=1)
    """By name, from the least to the most harmful."""

    tools: Mapping[str, ToolPolicy] = Field(default_factory=dict)
    """By exact name, or by glob where the key holds *, ? or [; the first that matches counts."""

    steering: Steering | None = None
    """Whether hidden states are changed; by default nothing is steered."""

    audit: AuditPolicy = AuditPolicy()
    """What the audit store keeps readable; by default nothing that a person or tool said."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, content: Any) -> Any:
        return expand(content) if isinstance(content, Mapping) else content

    @field_validator("tools")
    @classmethod
    def _tiers_exist(
        cls, tools: Mapping[str, ToolPolicy], info: ValidationInfo
    ) -> Mapping[str, ToolPolicy]:
        tiers = info.data.get("tiers")
        wrong = [
            f"tools.{name}.tier: {tool.tier!r} is none of {', '.join(tiers)}"
            for name, tool in tools.items()
            if tiers and tool.tier not in tiers
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return tools

    @model_validator(mode="after")
    def _steer_needs_steering(self) -> Self:
        if "steer" in self._doubtful_actions():
            raise ValueError(
                "a doubtful call is past the point where it can be steered: use redirect there, "
                "and the section 'steering' to act at the decision token"
            )
        return self

    @classmethod
    def load(cls, source: Path | str | Mapping[str, Any]) -> Policy:
        """Return the policy in a YAML file or a mapping.

        Raises:
            ConfigError: if the file cannot be read or a key or value is not allowed; its field
                `problems` lists each.
        """
        content = source if isinstance(source, Mapping) else read_policy_file(Path(source))
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            lines = [
                f"{'.'.join(map(str, e['loc'])) or 'policy'}: {e['msg']}" for e in error.errors()
            ]
            where = "the policy" if isinstance(source, Mapping) else str(source)
            raise ConfigError(
                f"{where} is not a valid policy:\n  " + "\n  ".join(lines),
                hint=f"allowed keys: {', '.join(cls.model_fields)}",
                problems=lines,
            ) from error

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of the file, for editors."""
        return {
            "$schema": _SCHEMA_DIALECT,
            **cls.model_json_schema(),
            "title": "toolguard policy",
        }

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a policy with some keys replaced, checked like a new one."""
        del deep  # a frozen value has nothing to copy deeply
        return type(self).model_validate({**self.model_dump(), **(update or {})})

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over all that decides; the order of tiers and of globs is part of it."""
        content = self.model_dump(mode="json")
        # Canonical JSON sorts keys, so what is ordered must be a list.
        content["tiers"] = list(content["tiers"].items())
        content["tools"] = list(content["tools"].items())
        return sha256_text(canonical_json(content))

    @property
    def redirects(self) -> bool:
        """Whether any doubtful call may be turned into another tool's."""
        return not self._doubtful_actions().isdisjoint(("redirect", "correct"))

    def _doubtful_actions(self) -> set[Doubtful | None]:
        return {
            *(tier.doubtful for tier in self.tiers.values()),
            *(tool.doubtful for tool in self.tools.values()),
        }

    def entry_for(self, name: str) -> str | None:
        """Return the key of `tools` that covers the name: itself, else the first glob; or None."""
        if name in self.tools and not is_glob(name):
            return name
        return next((key for key in self.tools if is_glob(key) and fnmatchcase(name, key)), None)

    def tool_policy(self, name: str) -> ToolPolicy | None:
        """Return the section that covers the tool, as written; None if nobody listed it."""
        key = self.entry_for(name)
        return None if key is None else self.tools[key]

    def ruling(self, name: str) -> ToolRuling:
        """Return everything that the policy says of the name before there is evidence."""
        key = self.entry_for(name)
        listed = None if key is None else self.tools[key]
        name_of_tier = listed.tier if listed else tuple(self.tiers)[-1]
        tier = self.tiers[name_of_tier]
        rule = listed.rule if listed else None
        if listed is None and self.unlisted != "judge":
            rule = self.unlisted
        return ToolRuling(
            key=key,
            tier=name_of_tier,
            rule=rule or tier.rule or "judge",
            doubtful=(listed.doubtful if listed else None) or tier.doubtful,
            risk_target=self.tier_target(name_of_tier),
        )

    def tier_target(self, tier: str) -> float | None:
        """Return the largest share of wrong calls wanted of a tier; None is the profile's own."""
        own = self.tiers[tier].risk_target
        return self.risk_target if own is None else own

    @property
    def risk_targets(self) -> tuple[float, ...]:
        """Every target that it may ask a profile for, rising; each deserves its own threshold."""
        asked = {self.risk_target, *map(self.tier_target, self.tiers)}
        return tuple(sorted(target for target in asked if target is not None))

    def tier_of(self, name: str) -> str:
        """Return the tool's tier; a tool nobody listed counts to the most harmful one."""
        return self.ruling(name).tier

    def rule_for(self, name: str) -> Rule:
        """Return the static rule of the tool."""
        return self.ruling(name).rule

    def doubtful_action(self, name: str) -> Doubtful:
        """Return what happens to a call of this tool when the evidence is not good enough."""
        return self.ruling(name).doubtful

    def risk_target_for(self, name: str) -> float | None:
        """Return the largest share of wrong calls wanted; None is what the profile was made for."""
        return self.ruling(name).risk_target

    def constraints_for(self, name: str) -> Mapping[str, Any] | None:
        """Return the JSON Schema that the policy adds to the tool's own, or None."""
        listed = self.tool_policy(name)
        return None if listed is None else listed.arguments

    def may_replace(self, source: str, target: str) -> bool:
        """Return whether a call of `source` may be turned into one of `target`.

        Never up a tier, never to a tool that is denied or wants a person, and only to those that
        the section of `source` names, if it names any.
        """
        listed = self.tool_policy(source)
        if listed and listed.redirects is not None and target not in listed.redirects:
            return False
        order = tuple(self.tiers)
        ruled = self.ruling(target)
        up = order.index(ruled.tier) > order.index(self.tier_of(source))
        return not up and ruled.rule in ("judge", "allow")


def is_glob(key: str) -> bool:
    """Return whether a key of `tools` is a glob and not an exact name."""
    return any(sign in key for sign in "*?[")
