"""XML calls of Qwen3-Coder and Qwen3.5.

    <tool_call>
    <function=N>
    <parameter=k>
    value
    </parameter>
    </function>
    </tool_call>

The XML does not say whether `3` is a number or a text. Given a menu, the schema of the parameter
decides: text stays as it stands, everything else must be JSON of the right type. Without a menu, or
without a type in the schema, a value that is exactly one JSON literal is that literal and anything
else is text; texts that look like a literal are therefore written as JSON strings. Rendering and
parsing with the same menu give back the same calls.

Outside thoughts the marks are reserved, also inside values: a turn that merely mentions one, and a
value that holds one, is an error, because a call with a lost closing mark looks just like it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.json_scan import decode_at, is_encodable, write_json
from toolguard.adapters.wire.turn import (
    CallSpan,
    NameSpan,
    expect,
    parse_error,
    search_outside_thoughts,
    skip_space,
)
from toolguard.guard.errors import ConfigError, ParseError
from toolguard.guard.tools import Menu, ToolCall

_OPEN = "<tool_call>"
_CLOSE = "</tool_call>"
_FUNCTION = "<function="
_FUNCTION_END = "</function>"
_PARAMETER = "<parameter="
_PARAMETER_END = "</parameter>"
_MARK = re.compile(f"{_OPEN}|{_CLOSE}|{_FUNCTION}|{_FUNCTION_END}")
_RESERVED = re.compile(f"{_MARK.pattern}|{_PARAMETER}|{_PARAMETER_END}")
_CARRIED = re.compile(r"[^<>\x00-\x1f\x7f]+")
_JSON_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
_WORDS = {"true": True, "True": True, "false": False, "False": False}


class Qwen3Coder(WireFormat):
    """One XML element a parameter, values without a mark of their type."""

    name: ClassVar[str] = "qwen3_coder"
    trigger: ClassVar[str] = "="
    how_to_call: ClassVar[str] = (
        "To use a tool, write\n"
        f"{_OPEN}\n{_FUNCTION}TOOL>\n{_PARAMETER}ARGUMENT>\nVALUE\n{_PARAMETER_END}\n"
        f"{_FUNCTION_END}\n{_CLOSE}\n"
        "once for every call, with one parameter element for every argument."
    )

    def prefix(self) -> str:
        """Return the text up to the name's first character."""
        return f"{_OPEN}\n{_FUNCTION}"

    def spell(self, name: str) -> str:
        """Return `name` as it is, if it can stand in a mark."""
        return _carried(name, "tool")

    def call_end(self) -> str:
        """Return the text after the last parameter."""
        return f"{_FUNCTION_END}\n{_CLOSE}"

    def call_text(self, call: ToolCall, *, menu: Menu | None = None) -> str:
        """Return the call with one element a parameter, spelled by the types in `menu`."""
        properties = _properties(menu, call.name)
        parameters = "".join(
            f"{_PARAMETER}{_carried(key, 'parameter')}>\n"
            f"{_write_value(value, _types(properties.get(key)))}\n{_PARAMETER_END}\n"
            for key, value in call.arguments.items()
        )
        return f"{self.prefix()}{self.spell(call.name)}>\n{parameters}{self.call_end()}"

    def _events(self, text: str, menu: Menu | None) -> Iterator[NameSpan | CallSpan]:
        at = 0
        while mark := search_outside_thoughts(_MARK, text, at):
            if mark.group() != _OPEN:
                raise parse_error("unopened", mark.start(), f"{mark.group()} without {_OPEN}")
            span = _mark_value(text, expect(text, skip_space(text, mark.end()), _FUNCTION))
            yield span
            if span.name is None or span.end is None:
                raise parse_error("truncated", len(text), "the text ends inside the name")
            properties = _properties(menu, span.name)
            arguments, at = _read_parameters(text, skip_space(text, span.end + 1), properties)
            at = expect(text, skip_space(text, at), _CLOSE)
            call = ToolCall(name=span.name, arguments=arguments, start=span.start)
            yield CallSpan(start=mark.start(), end=at, call=call)


def _carried(name: str, kind: str) -> str:
    if not _CARRIED.fullmatch(name) or not is_encodable(name):
        raise ConfigError(
            f"the qwen3_coder format cannot carry the {kind} name {name!r}",
            hint="use a name without < and > and control characters",
            name=name,
        )
    return name


def _mark_value(text: str, at: int) -> NameSpan:
    """Return the span of what stands between `=` and `>`, open if the text ends first."""
    match = _CARRIED.match(text, at)
    end = match.end() if match else at
    if end == len(text):
        return NameSpan(start=at)
    if match is None or text[end] != ">":
        raise parse_error("bad_name", at, "expected a name on one line and >")
    return NameSpan(start=at, end=end, name=match.group())


def _read_parameters(
    text: str, at: int, properties: Mapping[str, Any]
) -> tuple[dict[str, Any], int]:
    """Return the arguments and the offset after the mark that ends the function."""
    arguments: dict[str, Any] = {}
    while text.startswith(_PARAMETER, at):
        key = _mark_value(text, at + len(_PARAMETER))
        if key.name is None or key.end is None:
            raise parse_error("truncated", len(text), "the text ends inside a parameter's name")
        if key.name in arguments:
            raise parse_error("duplicate_key", at, "the call has the same parameter twice")
        closing = _RESERVED.search(text, key.end)
        if closing is None:
            raise parse_error("truncated", len(text), "the text ends inside a value")
        expect(text, closing.start(), _PARAMETER_END)
        raw = text[key.end + 1 : closing.start()].removeprefix("\n").removesuffix("\n")
        arguments[key.name] = _read_value(raw, _types(properties.get(key.name)), key.end + 1)
        at = skip_space(text, closing.end())
    return arguments, expect(text, at, _FUNCTION_END)


def _properties(menu: Menu | None, name: str) -> Mapping[str, Any]:
    tool = menu.get(name) if menu else None
    properties = tool.parameters.get("properties") if tool else None
    return properties if isinstance(properties, Mapping) else {}


def _types(schema: object) -> frozenset[str]:
    """Return the JSON types a schema allows; empty if it does not say."""
    if not isinstance(schema, Mapping):
        return frozenset()
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            options = [_types(option) for option in schema[key]]
            return frozenset().union(*options) if all(options) else frozenset()
    if "type" in schema:
        said = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        known = all(isinstance(kind, str) and kind in _JSON_TYPES for kind in said)
        return frozenset(said) if known else frozenset()
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return frozenset(_type_of(value) for value in values)


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _fits(value: object, types: frozenset[str]) -> bool:
    kind = _type_of(value)
    return kind in types or (kind == "integer" and "number" in types)


def _literal(raw: str) -> tuple[bool, Any]:
    """Return whether `raw` is exactly one strict JSON value, and the value."""
    try:
        value, end = decode_at(raw, 0)
    except ParseError:
        return False, None
    return end == len(raw), value


def _read_value(raw: str, types: frozenset[str], at: int) -> object:
    is_literal, value = _literal(raw.strip() if types else raw)
    if not types:
        return value if is_literal else raw
    if is_literal and not isinstance(value, str) and _fits(value, types):
        return value
    if "string" in types:
        return raw
    if "boolean" in types and raw.strip() in _WORDS:
        return _WORDS[raw.strip()]
    raise parse_error("bad_arguments", at, f"the value is no JSON of type {' or '.join(types)}")


def _write_value(value: object, types: frozenset[str]) -> str:
    text = _spelled(value, types)
    try:
        reads_back = _read_value(text, types, 0) == value
        carried = reads_back and is_encodable(text) and not _RESERVED.search(text)
    except ParseError:
        carried = False
    if not carried:
        raise ConfigError(
            "the qwen3_coder format cannot carry the value of an argument",
            hint="the value must fit its schema, and hold none of the format's marks",
        )
    return text


def _spelled(value: object, types: frozenset[str]) -> str:
    if isinstance(value, str) and (types or not (_literal(value)[0] or _RESERVED.search(value))):
        return value
    # Inside a JSON string a reserved mark can hide behind an escape; outside, JSON has no `<`.
    return write_json(value).replace("<", "\\u003c")
