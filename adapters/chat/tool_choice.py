"""Which tools a turn is offered and whether it must call one, from LangChain's `tool_choice`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from toolguard.guard.errors import ConfigError

_FREE = ("auto",)
_NONE = ("none",)
_ANY = ("any", "required")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """What a caller wants of a turn.

    Args:
        offered: whether the model is told of the tools at all.
        must_call: names of which one must be called; empty leaves it to the model.
    """

    offered: bool
    must_call: tuple[str, ...] = ()

    @classmethod
    def of(cls, choice: object, names: Sequence[str]) -> Self:
        """Return the choice among tools of these names.

        Args:
            choice: None or `auto`, `none`, `any` or `required` or True, a name, or an object of
                OpenAI's or Anthropic's form. The words win over a tool of the same name, which the
                object can still ask for.
            names: of the tools.

        Raises:
            ConfigError: if the choice is none of these, or a name is not among the tools.
        """
        word = choice
        if isinstance(choice, Mapping):
            word = choice.get("type", choice)
            if word in ("function", "tool"):
                return cls(offered=True, must_call=(_named(choice, names),))
        if word is None or word is False or word in _FREE:
            return cls(offered=bool(names))
        if word in _NONE:
            return cls(offered=False)
        if word is True or word in _ANY:
            return cls(offered=True, must_call=_some(names))
        if not isinstance(choice, str):
            raise _unknown(choice)
        return cls(offered=True, must_call=(_known(choice, names),))


def _named(choice: Mapping[str, object], names: Sequence[str]) -> str:
    inner = choice.get("function", choice)
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str):
        raise _unknown(choice)
    return _known(name, names)


def _known(name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise ConfigError(
            f"tool_choice names {name!r}, which is not among the tools",
            hint=f"the tools are: {', '.join(names)}" if names else "bind the tool first",
            name=name,
        )
    return name


def _some(names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        raise ConfigError("tool_choice wants a call but there are no tools", hint="bind one")
    return tuple(names)


def _unknown(choice: object) -> ConfigError:
    return ConfigError(
        f"tool_choice cannot be a {type(choice).__name__} of this form",
        hint='use "auto", "none", "any", a tool\'s name, or {"type": "tool", "name": ...}',
    )
