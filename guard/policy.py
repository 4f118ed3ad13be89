"""The policy file: what may run, and what happens when the evidence is not good enough."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from toolguard.guard.decision import Action
from toolguard.guard.errors import ConfigError

Mode = Literal["monitor", "enforce"]
Tier = Literal["read", "write", "irreversible"]
Rule = Literal["judge", "allow", "deny", "confirm"]
TIERS: tuple[Tier, ...] = ("read", "write", "irreversible")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ToolPolicy(_Section):
    """What one tool, by its exact name, is and how it is treated.

    Attributes:
        tier: how much harm a wrong call does.
        rule: `judge` by the evidence, or always `allow`, `deny` or `confirm`.
        doubtful: action when P(wrong) is above the threshold; by default that of the tier.
    """

    tier: Tier = "write"
    rule: Rule = "judge"
    doubtful: Action | None = None


class Steering(_Section):
    """When and how far to push the hidden state towards the readout's best tool.

    Attributes:
        alpha: multiples of the mean difference that are added; 1 moves by one whole difference.
        max_gap: steer only where the readout's best two tools are closer than this; by default the
            profile's lower quartile.
    """

    alpha: float = Field(default=1.0, gt=0)
    max_gap: float | None = Field(default=None, gt=0)


def _doubtful_by_tier() -> dict[Tier, Action]:
    return {"read": "allow", "write": "confirm", "irreversible": "veto"}


class Policy(_Section):
    """A whole policy. The default watches and blocks nothing.

    Attributes:
        version: of this format.
        mode: `monitor` records what it would do; `enforce` does it.
        unlisted: rule for tools that `tools` does not name.
        uncalibrated: rule for tools the profile cannot vouch for: too few examples, changed, or
            unknown.
        risk_target: largest share of wrong calls among the allowed ones; None takes what the
            profile was made for.
        doubtful: action by tier when P(wrong) is above the threshold; a tier left out is vetoed.
        steering: None steers nothing.
        tools: by exact name.
    """

    version: Literal[1] = 1
    mode: Mode = "monitor"
    unlisted: Rule = "judge"
    uncalibrated: Rule = "deny"
    risk_target: float | None = Field(default=None, gt=0, lt=1)
    doubtful: Mapping[Tier, Action] = Field(default_factory=_doubtful_by_tier)
    steering: Steering | None = None
    tools: Mapping[str, ToolPolicy] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _steer_needs_steering(self) -> Self:
        actions = {*self.doubtful.values(), *(tool.doubtful for tool in self.tools.values())}
        if "steer" in actions:
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
        content = source if isinstance(source, Mapping) else _read_yaml(Path(source))
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

    @property
    def redirects(self) -> bool:
        """Whether any doubtful call is turned into another tool's."""
        actions = {*self.doubtful.values(), *(tool.doubtful for tool in self.tools.values())}
        return "redirect" in actions

    def tier_of(self, name: str) -> Tier:
        """Return the tool's tier; a tool nobody listed counts as irreversible."""
        listed = self.tools.get(name)
        return listed.tier if listed else "irreversible"

    def rule_for(self, name: str) -> Rule:
        """Return the static rule of the tool."""
        listed = self.tools.get(name)
        return listed.rule if listed else self.unlisted

    def doubtful_action(self, name: str) -> Action:
        """Return what happens to a call of this tool when the evidence is not good enough."""
        listed = self.tools.get(name)
        if listed and listed.doubtful:
            return listed.doubtful
        return self.doubtful.get(self.tier_of(name), "veto")

    def may_replace(self, source: str, target: str) -> bool:
        """Return whether a call of `source` may be turned into one of `target`.

        Never up a tier, and never to a tool that is denied or wants a person.
        """
        up = TIERS.index(self.tier_of(target)) > TIERS.index(self.tier_of(source))
        return not up and self.rule_for(target) in ("judge", "allow")


class _UniqueKeyLoader(yaml.SafeLoader):
    """Reads YAML and refuses a key given twice, of which the first would silently not count."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - the signature of the base
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text("utf-8")
        content = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(
            f"cannot read the policy {path}: {error.strerror}", path=str(path)
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the policy {path} is not YAML: {error}", path=str(path)) from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"the policy {path} must be a mapping, found {type(content).__name__}", path=str(path)
        )
    return content
