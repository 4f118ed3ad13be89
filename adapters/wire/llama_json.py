"""JSON calls of Llama 3.1 and 3.2: `{"name": "N", "parameters": {...}}`, `; ` between several.

`bare_json` says what else is read and what is content.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from toolguard.adapters.wire.bare_json import BareJson
from toolguard.guard.tools import Menu, ToolCall


class LlamaJson(BareJson):
    """Bare objects with "parameters"; written without the optional `<|python_tag|>`."""

    name: ClassVar[str] = "llama_json"
    arguments_key: ClassVar[str] = "parameters"
    how_to_call: ClassVar[str] = (
        "To use a tool, answer with nothing but\n"
        '{"name": "TOOL", "parameters": {"ARGUMENT": VALUE}}\n'
        "and put a semicolon between the calls if there are several."
    )

    def render_calls(self, calls: Sequence[ToolCall], *, menu: Menu | None = None) -> str:
        """Return the calls, separated by semicolons."""
        return "; ".join(self.call_text(call, menu=menu) for call in calls)
