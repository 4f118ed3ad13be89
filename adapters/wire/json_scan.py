"""Strict JSON inside other text: one value from an offset, or one member of an unfinished object.

It is the standard library's scanner with its leniency taken away: a key twice, NaN, an infinite
number, and half a surrogate pair are refused, because two readers could read them differently.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NoReturn

from toolguard.adapters.wire.turn import NameSpan, ParseErrorKind, parse_error, skip_space
from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import ToolCall

# What a literal, a number or an escape may look like where the text ends inside it.
_CUT_SHORT = re.compile(
    r"\s*(?:t(?:r(?:u)?)?|f(?:a(?:l(?:s)?)?)?|n(?:u(?:l)?)?|-|\.|[eE][+-]?|\\?u?[0-9a-fA-F]{0,4})?\Z"
)
_STRING_REST = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class _RefusedError(ValueError):
    """A value that JSON, or this scanner, does not allow; raised inside the decoder's hooks."""

    def __init__(self, kind: ParseErrorKind, what: str) -> None:
        super().__init__(what)
        self.kind: ParseErrorKind = kind
        self.what = what


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _RefusedError("duplicate_key", "a JSON object has the same key twice")
    return members


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _RefusedError("not_a_number", "a number is too large")
    return number


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # the interpreter's limit on digits
        raise _RefusedError("not_a_number", "a number has too many digits") from None


def _no_constant(_name: str) -> NoReturn:
    raise _RefusedError("not_a_number", "NaN and Infinity are not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_int=_whole, parse_constant=_no_constant
)


def decode_at(text: str, at: int) -> tuple[Any, int]:
    """Return the JSON value that starts exactly at `at` and the offset after it.

    Raises:
        ParseError: if no strict JSON value starts there; never quotes the text.
    """
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        kind: ParseErrorKind = "truncated" if _is_cut(error) else "malformed"
        raise parse_error(kind, error.pos, f"no valid JSON ({error.msg})") from None
    except _RefusedError as error:
        raise parse_error(error.kind, at, error.what) from None
    except RecursionError:
        raise parse_error("too_deep", at, "JSON nested too deep") from None
    # Only an escape can bring in a surrogate that the text itself does not hold.
    if "\\u" in text[at:end] and not is_encodable(json.dumps(value, ensure_ascii=False)):
        raise parse_error("lone_surrogate", at, "an escape gives half a surrogate pair")
    return value, end


def _is_cut(error: json.JSONDecodeError) -> bool:
    """Tell whether the text merely ended too early."""
    if error.msg.startswith("Unterminated"):
        return True
    return len(error.doc) - error.pos <= 8 and bool(_CUT_SHORT.match(error.doc, error.pos))


def is_encodable(text: str) -> bool:
    """Tell whether `text` can be written as UTF-8, that is, holds no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def decode_object(text: str, at: int) -> tuple[dict[str, Any], int]:
    """Return the JSON object that starts exactly at `at` and the offset after it.

    Raises:
        ParseError: if something else, or no strict JSON, stands there.
    """
    if text[at : at + 1] != "{":
        kind: ParseErrorKind = "truncated" if at >= len(text) else "malformed"
        raise parse_error(kind, at, "expected a JSON object")
    return decode_at(text, at)


def name_member(text: str, at: int) -> NameSpan | None:
    """Return where the string under "name" stands in the object opened at `at`.

    Reads as far as the text goes: a string that is not closed yet gives an open span, an object
    that has not come to its name gives None. Looks at the top level only.

    Raises:
        ParseError: if a key or value before the name is not strict JSON.
    """
    at = skip_space(text, at + 1)
    while text[at : at + 1] == '"':
        key, at = decode_at(text, at)
        at = skip_space(text, at)
        if text[at : at + 1] != ":":
            return None
        at = skip_space(text, at + 1)
        if key == "name":
            return _string_span(text, at)
        _, at = decode_at(text, at)
        at = skip_space(text, at)
        if text[at : at + 1] != ",":
            return None
        at = skip_space(text, at + 1)
    return None


def _string_span(text: str, at: int) -> NameSpan | None:
    if text[at : at + 1] != '"':
        return None
    if _STRING_REST.match(text, at + 1) is None:
        return NameSpan(start=at + 1)
    value, end = decode_at(text, at)
    return NameSpan(start=at + 1, end=end - 1, name=value)


def json_call(
    text: str, at: int, *, argument_keys: Sequence[str], constants: Mapping[str, str] | None = None
) -> Generator[NameSpan, None, tuple[ToolCall, int]]:
    """Yield the name's span as soon as it is there; return the call and the offset after it.

    Args:
        text: generated text.
        at: where the object must start.
        argument_keys: keys that may hold the arguments; exactly one of them must be present.
        constants: further keys that may be present, with the only value each may have.

    Raises:
        ParseError: if the object is not a well-formed call.
    """
    span = name_member(text, at) if text.startswith("{", at) else None
    if span is not None:
        yield span
    members, end = decode_object(text, at)
    _check_keys(members, at, argument_keys, constants or {})
    name = members.get("name")
    if span is None or not isinstance(name, str) or not name:
        raise parse_error("bad_name", at, 'a call needs a non-empty string under "name"')
    present = [key for key in argument_keys if key in members]
    if len(present) != 1 or not isinstance(members[present[0]], dict):
        raise parse_error(
            "bad_arguments", at, f"a call needs one JSON object under {' or '.join(argument_keys)}"
        )
    return ToolCall(name=name, arguments=members[present[0]], start=span.start), end


def _check_keys(
    members: Mapping[str, Any], at: int, argument_keys: Sequence[str], constants: Mapping[str, str]
) -> None:
    for key, value in members.items():
        if key != "name" and key not in argument_keys and constants.get(key) != value:
            raise parse_error("unexpected_key", at, "the call has a key that the format lacks")


def write_json(value: object) -> str:
    """Return `value` as JSON spelled as chat templates spell it: spaces after `,` and `:`.

    Raises:
        ConfigError: if `value` has no strict JSON form that reads back as itself.
    """
    try:
        _check_writable(value)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ConfigError(
            "a tool call's arguments cannot be written as JSON",
            hint="use string keys and strings, finite numbers, booleans, null, lists and objects",
        ) from None
    if not is_encodable(text):
        raise ConfigError("a tool call holds half a surrogate pair, which no text can carry")
    return text


def _check_writable(value: object) -> None:
    """Refuse what json.dumps would write as something else: keys that are not strings, tuples."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError
        for member in value.values():
            _check_writable(member)
    elif isinstance(value, list):
        for item in value:
            _check_writable(item)
    elif isinstance(value, tuple):
        raise TypeError


def spell_json(name: str) -> str:
    """Return `name` as it stands between the quotes of a JSON string.

    Raises:
        ConfigError: if the name is empty or holds half a surrogate pair.
    """
    if not name:
        raise ConfigError("a tool name is empty")
    return write_json(name)[1:-1]
