"""Hermes calls, as Hermes, Qwen2.5 and Qwen3 write them.

    <tool_call>
    {"name": "N", "arguments": {...}}
    </tool_call>

Several calls follow one another; text may stand before, between and after. Outside thoughts the
marks are reserved: a turn that merely mentions one is an error, not content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.json_scan import json_call, spell_json, write_json
from toolguard.adapters.wire.turn import (
    CallSpan,
    NameSpan,
    expect,
    parse_error,
    search_outside_thoughts,
    skip_space,
)
from toolguard.guard.tools import Menu, ToolCall

_OPEN = "<tool_call>"
_CLOSE = "</tool_call>"
_MARK = re.compile(f"{_OPEN}|{_CLOSE}")


class Hermes(WireFormat):
    """JSON between `<tool_call>` marks; the members may come in either order."""

    name: ClassVar[str] = "hermes"
    trigger: ClassVar[str] = '"'
    how_to_call: ClassVar[str] = (
        "To use a tool, write\n"
        f'{_OPEN}\n{{"name": "TOOL", "arguments": {{"ARGUMENT": VALUE}}}}\n{_CLOSE}\n'
        "once for every call, and nothing after the last one."
    )

    def prefix(self) -> str:
        """Return the text up to the name's first character."""
        return f'{_OPEN}\n{{"name": "'

    def spell(self, name: str) -> str:
        """Return `name` escaped for a JSON string."""
        return spell_json(name)

    def call_end(self) -> str:
        """Return the text after the arguments."""
        return f"}}\n{_CLOSE}"

    def call_text(self, call: ToolCall, *, menu: Menu | None = None) -> str:  # noqa: ARG002
        """Return the call in its marks."""
        arguments = write_json(dict(call.arguments))
        return f'{self.prefix()}{self.spell(call.name)}", "arguments": {arguments}{self.call_end()}'

    def _events(self, text: str, menu: Menu | None) -> Iterator[NameSpan | CallSpan]:  # noqa: ARG002
        at = 0
        while mark := search_outside_thoughts(_MARK, text, at):
            if mark.group() == _CLOSE:
                raise parse_error("unopened", mark.start(), f"{_CLOSE} without {_OPEN}")
            body = skip_space(text, mark.end())
            call, end = yield from json_call(text, body, argument_keys=("arguments",))
            at = expect(text, skip_space(text, end), _CLOSE)
            yield CallSpan(start=mark.start(), end=at, call=call)
