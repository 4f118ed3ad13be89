"""The types a user's own checker sees; mypy reads this file, nothing runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

from toolguard.guard.errors import ConfigError, ToolguardError
from toolguard.guard.tools import Menu, Tool, ToolCall

tool = Tool(name="get_weather", description="Weather of a city now.")
assert_type(tool.parameters, Mapping[str, Any])
assert_type(tool.content_hash, str)
assert_type(Tool.from_schema({"name": "get_time"}), Tool)

menu = Menu.of([tool, {"name": "get_time"}])
assert_type(menu.names, tuple[str, ...])
assert_type(menu.get("get_time"), Tool | None)
assert_type([entry.name for entry in menu], list[str])

assert_type(ToolCall(name="get_time").arguments, Mapping[str, Any])

error: ToolguardError = ConfigError("the menu is empty", hint="offer at least one tool")
assert_type(error.fields, dict[str, Any])
