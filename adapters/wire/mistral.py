"""Mistral calls from tokenizer v11 on: `[TOOL_CALLS]N[ARGS]{...}`, repeated for several.

Also read: `[TOOL_CALLS]N{...}` and `[TOOL_CALLS]N[CALL_ID]id[ARGS]{...}`. Text may stand before the
first call; after a call only another may follow. Outside thoughts the marks are reserved: a turn
that merely mentions one is an error. The older list form, `[TOOL_CALLS] [{...}]`, is an error too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.json_scan import decode_object, is_encodable, write_json
from toolguard.adapters.wire.prompting import Message
from toolguard.adapters.wire.turn import (
    CallSpan,
    NameSpan,
    expect,
    parse_error,
    search_outside_thoughts,
    skip_space,
)
from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import Menu, ToolCall, sha256_text

_OPEN = "[TOOL_CALLS]"
_ARGUMENTS = "[ARGS]"
_ID = "[CALL_ID]"
_MARK = re.compile("|".join(re.escape(mark) for mark in (_OPEN, _ARGUMENTS, _ID)))
_NAME = re.compile(r"[^\[{]*")
_CARRIED = re.compile(r"[^\[{\x00-\x1f\x7f]+")
_ID_VALUE = re.compile(r"\w*")
_TEMPLATE_ID = re.compile(r"[a-zA-Z0-9]{9}")


class Mistral(WireFormat):
    """The name bare between special tokens, so it holds neither `[` nor `{`."""

    name: ClassVar[str] = "mistral"
    trigger: ClassVar[str] = "]"
    how_to_call: ClassVar[str] = (
        "To use a tool, end the answer with\n"
        f'{_OPEN}TOOL{_ARGUMENTS}{{"ARGUMENT": VALUE}}\n'
        "and repeat that directly for every further call."
    )

    def prefix(self) -> str:
        """Return the text up to the name's first character."""
        return _OPEN

    def spell(self, name: str) -> str:
        """Return `name` as it is, if it can stand bare."""
        if not _CARRIED.fullmatch(name) or name.strip() != name or not is_encodable(name):
            raise ConfigError(
                f"the mistral format cannot carry the tool name {name!r}",
                hint="use a name without brackets, control characters and outer spaces",
                name=name,
            )
        return name

    def call_end(self) -> str:
        """Return the empty text: a call ends with its arguments."""
        return ""

    def call_text(self, call: ToolCall, *, menu: Menu | None = None) -> str:  # noqa: ARG002
        """Return the call with both marks."""
        arguments = write_json(dict(call.arguments))
        return f"{self.prefix()}{self.spell(call.name)}{_ARGUMENTS}{arguments}"

    def render_calls(self, calls: Sequence[ToolCall], *, menu: Menu | None = None) -> str:
        """Return the calls with nothing between them."""
        return "".join(self.call_text(call, menu=menu) for call in calls)

    def _prepare(self, messages: list[Message]) -> list[Message]:
        return _with_ids(messages)

    def _events(self, text: str, menu: Menu | None) -> Iterator[NameSpan | CallSpan]:  # noqa: ARG002
        mark = search_outside_thoughts(_MARK, text)
        while mark is not None:
            if mark.group() != _OPEN:
                raise parse_error("unopened", mark.start(), f"{mark.group()} without {_OPEN}")
            span = _name_span(text, mark.end())
            yield span
            if span.name is None or span.end is None:
                raise parse_error("truncated", len(text), "the text ends inside the name")
            arguments, end = decode_object(text, _arguments_start(text, span.end))
            call = ToolCall(name=span.name, arguments=arguments, start=span.start)
            yield CallSpan(start=mark.start(), end=end, call=call)
            mark = _following(text, end)


def _name_span(text: str, at: int) -> NameSpan:
    start = skip_space(text, at)
    match = _NAME.match(text, start)
    if match is None or match.end() == len(text):
        return NameSpan(start=start)
    name = match.group().rstrip()
    if not name or "\n" in name:
        raise parse_error("bad_name", start, f"expected a name on one line after {_OPEN}")
    return NameSpan(start=start, end=start + len(name), name=name)


def _arguments_start(text: str, at: int) -> int:
    at = skip_space(text, at)
    if text.startswith(_ID, at) and (match := _ID_VALUE.match(text, at + len(_ID))):
        at = match.end()
    if text.startswith("[", at):
        at = expect(text, at, _ARGUMENTS)
    return skip_space(text, at)


def _following(text: str, end: int) -> re.Match[str] | None:
    """Return the mark of the next call; only white space may stand before it."""
    at = skip_space(text, end)
    if at == len(text):
        return None
    expect(text, at, _OPEN)
    return _MARK.match(text, at)


def _with_ids(messages: list[Message]) -> list[Message]:
    """Give every call and result the id of nine letters and digits that the templates demand.

    Results without an id answer the calls in their order.
    """
    waiting: list[str] = []
    return [_with_id(message, index, waiting) for index, message in enumerate(messages)]


def _with_id(message: Message, index: int, waiting: list[str]) -> Message:
    if message["role"] == "tool":
        given = message.get("tool_call_id")
        oldest = waiting.pop(0) if waiting else f"{index:09d}"
        return {**message, "tool_call_id": _template_id(given) if given else oldest}
    if "tool_calls" not in message:
        return message
    calls: list[dict[str, Any]] = [
        {**call, "id": _template_id(call.get("id") or f"{index}.{place}")}
        for place, call in enumerate(message["tool_calls"])
    ]
    waiting[:] = [call["id"] for call in calls]
    return {**message, "tool_calls": calls}


def _template_id(given: object) -> str:
    text = str(given)
    return text if _TEMPLATE_ID.fullmatch(text) else sha256_text(text)[:9]
