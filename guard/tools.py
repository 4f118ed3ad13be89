"""Tools, menus and calls: the values that every other part passes around."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from toolguard.guard.errors import ConfigError


def canonical_json(value: object) -> str:
    """Return `value` as JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_text(text: str) -> str:
    """Return the SHA-256 of UTF-8 `text` as 64 lower-case hex digits."""
    # A model can write half a surrogate pair, which UTF-8 proper does not hold.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _no_parameters() -> dict[str, Any]:
    return {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One tool as the model is told about it.

    Args:
        name: exact name; never trimmed, folded or normalised.
        description: one sentence, or empty for a names-only menu.
        parameters: JSON Schema (draft 2020-12) of the arguments object.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=_no_parameters)

    @classmethod
    def from_schema(cls, schema: Mapping[str, Any]) -> Tool:
        """Return a tool from its plain schema or the OpenAI `{type, function}` wrapper around it.

        Raises:
            ConfigError: if there is no name, or a field has the wrong type.
        """
        inner = schema.get("function", schema)
        if (
            not isinstance(inner, Mapping)
            or not isinstance(inner.get("name"), str)
            or not inner["name"]
        ):
            raise ConfigError(
                f"a tool needs a non-empty string name, found {inner!r:.80}",
                hint='write {"name": ..., "description": ..., "parameters": {JSON Schema}}',
            )
        parameters = inner.get("parameters") or _no_parameters()
        description = inner.get("description") or ""
        if not isinstance(parameters, Mapping) or not isinstance(description, str):
            raise ConfigError(
                f"tool {inner['name']!r}: parameters must be an object and description a string"
            )
        return cls(name=inner["name"], description=description, parameters=parameters)

    def to_schema(self) -> dict[str, Any]:
        """Return the `{type: function, function: {...}}` object that chat templates expect."""
        function: dict[str, Any] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        function["parameters"] = dict(self.parameters)
        return {"type": "function", "function": function}

    @property
    def content_hash(self) -> str:
        """SHA-256 over all the model is told about the tool; differs whenever that does."""
        return sha256_text(
            canonical_json(
                {"name": self.name, "description": self.description, "parameters": self.parameters}
            )
        )


@dataclass(frozen=True, slots=True)
class Menu:
    """The tools offered in one request, in prompt order: not empty, names unique.

    Raises:
        ConfigError: on an empty menu or a name that occurs twice.
    """

    tools: tuple[Tool, ...]

    def __post_init__(self) -> None:
        if not self.tools:
            raise ConfigError("the menu is empty", hint="offer at least one tool")
        names = self.names
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ConfigError(
                f"tool names must be unique, found twice: {', '.join(twice)}", names=twice
            )

    @classmethod
    def of(cls, tools: Iterable[Tool | Mapping[str, Any]]) -> Menu:
        """Return a menu from tools or tool schemas, in the order given."""
        return cls(tuple(t if isinstance(t, Tool) else Tool.from_schema(t) for t in tools))

    @property
    def names(self) -> tuple[str, ...]:
        """Tool names in menu order."""
        return tuple(tool.name for tool in self.tools)

    @property
    def content_hash(self) -> str:
        """SHA-256 over the tools' hashes in order; equal iff the model sees the same menu."""
        return sha256_text("\n".join(tool.content_hash for tool in self.tools))

    def schemas(self) -> list[dict[str, Any]]:
        """Return every tool as `Tool.to_schema`, for a chat template."""
        return [tool.to_schema() for tool in self.tools]

    def get(self, name: str) -> Tool | None:
        """Return the tool of exactly this name, or None."""
        return next((tool for tool in self.tools if tool.name == name), None)

    def __iter__(self) -> Iterator[Tool]:
        return iter(self.tools)

    def __len__(self) -> int:
        return len(self.tools)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One parsed call: exact name and a JSON object of arguments.

    Args:
        name: as written by the model.
        arguments: JSON object.
        start: character offset of the name in the text it was parsed from; -1 if not parsed.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    start: int = field(default=-1, compare=False)
