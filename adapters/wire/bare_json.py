"""Calls that are bare JSON objects, with no mark of their own: what Llama and Gemma write.

Outside thoughts, an object whose first key is one that calls have is a call, wherever it stands,
so prose that shows an example call makes that call or is an error. An object that starts the turn
must be whole JSON, because cut short nobody knows what it was going to be; whole and without the
keys of a call it is content, as is every other object. Tolerated around calls: a code fence, `;` or
white space between them, Llama's `<|python_tag|>` in front, and `"type": "function"` inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.json_scan import decode_object, json_call, spell_json, write_json
from toolguard.adapters.wire.turn import (
    CallSpan,
    NameSpan,
    expect,
    search_outside_thoughts,
    skip_space,
    start_of_answer,
)
from toolguard.guard.tools import Menu, ToolCall

_ARGUMENT_KEYS = ("parameters", "arguments")
_CALL_KEYS = frozenset({"name", *_ARGUMENT_KEYS})
_FENCE = "```"
_FENCED = re.compile(rf"{_FENCE}\w*\s+")
_OPENING = re.compile(
    r"<\|python_tag\|>\s*"
    rf"|(?P<fence>{_FENCED.pattern})?"
    r'(?=\{\s*"(?:(?:name|parameters|arguments)"\s*:|type"\s*:\s*"function"))'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opening:
    """Where a call begins with all that surrounds it, and where its object must begin."""

    start: int
    body: int
    fenced: bool


class BareJson(WireFormat):
    """One JSON object a call; the arguments may stand under "parameters" or "arguments"."""

    trigger: ClassVar[str] = '"'
    arguments_key: ClassVar[str]

    def prefix(self) -> str:
        """Return the text up to the name's first character."""
        return '{"name": "'

    def spell(self, name: str) -> str:
        """Return `name` escaped for a JSON string."""
        return spell_json(name)

    def call_end(self) -> str:
        """Return the text after the arguments."""
        return "}"

    def call_text(self, call: ToolCall, *, menu: Menu | None = None) -> str:  # noqa: ARG002
        """Return the call as one object."""
        arguments = write_json(dict(call.arguments))
        return (
            f'{self.prefix()}{self.spell(call.name)}", "{self.arguments_key}": '
            f"{arguments}{self.call_end()}"
        )

    def _events(self, text: str, menu: Menu | None) -> Iterator[NameSpan | CallSpan]:  # noqa: ARG002
        opening = _first(text)
        while opening is not None:
            call, end = yield from json_call(
                text, opening.body, argument_keys=_ARGUMENT_KEYS, constants={"type": "function"}
            )
            after = skip_space(text, end)
            one_more = text[after : after + 1] in ("{", ";")
            if opening.fenced and not one_more:
                end = expect(text, after, _FENCE)
            yield CallSpan(start=opening.start, end=end, call=call)
            opening = _next(text, end, fenced=opening.fenced and one_more)


def _first(text: str) -> _Opening | None:
    lead = start_of_answer(text)
    if lead is None:
        return None
    fence = _FENCED.match(text, lead)
    body = fence.end() if fence else lead
    if not text.startswith("{", body) or _OPENING.match(text, lead):
        return _search(text, lead)
    members, end = decode_object(text, body)
    if members.keys() & _CALL_KEYS:
        return _Opening(start=lead, body=body, fenced=fence is not None)
    return _search(text, end)


def _next(text: str, end: int, *, fenced: bool) -> _Opening | None:
    at = skip_space(text, end)
    if text.startswith(";", at):
        return _Opening(start=end, body=skip_space(text, at + 1), fenced=fenced)
    if fenced:
        return _Opening(start=end, body=at, fenced=True)
    return _search(text, end)


def _search(text: str, at: int) -> _Opening | None:
    match = search_outside_thoughts(_OPENING, text, at)
    if match is None:
        return None
    return _Opening(start=match.start(), body=match.end(), fenced=match["fence"] is not None)
