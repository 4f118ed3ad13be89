"""Calls as a Python list, as Llama 3.2 and 4 write them: `[N(a=1), M(b="x")]`.

Names are dotted identifiers, arguments are keywords, values are literals: texts, numbers, lists,
tuples (read as lists), objects with string keys, and True, False, None or their JSON spellings.
Nothing is evaluated. A list is a list of calls if it starts a line, a code fence's line, or stands
after `<|python_start|>` or `<|python_tag|>`, and begins with a name and `(`; it is then well formed
or an error. Elsewhere in prose, and without `name(`, brackets are content.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Generator, Iterator, Sequence
from keyword import iskeyword
from typing import Any, ClassVar
from unicodedata import is_normalized

from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.json_scan import is_encodable, write_json
from toolguard.adapters.wire.turn import (
    CallSpan,
    NameSpan,
    ParseErrorKind,
    parse_error,
    search_outside_thoughts,
    skip_space,
)
from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import Menu, ToolCall

_LIST = re.compile(
    r"(?:^[ \t]*|(?<=</think>)\s*|(?<=\[/THINK\])\s*|<\|python_(?:start|tag)\|>\s*)\[", re.MULTILINE
)
_LIST_END = re.compile(r"\](?:\s*<\|python_end\|>)?")
_NAME = re.compile(r"(?:[^\W\d]\w*(?:\.(?:[^\W\d]\w*)?)*)?")
_CARRIED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
# The tokens that literals are made of. Strings have no prefix and only escapes Python knows, and a
# number no suffix, so that `ast` sees nothing it would warn about.
_TOKEN = re.compile(
    r"""\s+
    | "(?:[^"\\\n]|\\[\n'"abfnrtv\\xuU0])*"(?!["'])
    | '(?:[^'\\\n]|\\[\n'"abfnrtv\\xuU0])*'(?!["'])
    | (?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])
    | (?P<word>[^\W\d]\w*+)(?!["'])
    | [()\[\]{},:=+-]""",
    re.VERBOSE,
)
# What one of those tokens may look like where the text ends inside it.
_CUT_SHORT = re.compile(
    r"""(?:"(?:[^"\\\n]|\\.)*\\?|'(?:[^'\\\n]|\\.)*\\?|[\d.]+(?:[eE][+-]?)?)\Z"""
)
_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_WORDS = {"true": True, "false": False, "null": None}


class Pythonic(WireFormat):
    """A list of calls with keyword arguments; a later name opens after `, `."""

    name: ClassVar[str] = "pythonic"
    trigger: ClassVar[str] = "["
    how_to_call: ClassVar[str] = (
        "To use tools, answer with nothing but a list of calls, values as Python literals:\n"
        "[TOOL(ARGUMENT=VALUE), TOOL(ARGUMENT=VALUE)]"
    )

    def prefix(self) -> str:
        """Return the text up to the first name's first character."""
        return "["

    def spell(self, name: str) -> str:
        """Return `name` as it is, if it is a dotted identifier."""
        if not _is_name(name):
            raise ConfigError(
                f"the pythonic format cannot carry the tool name {name!r}",
                hint="use identifiers joined by dots",
                name=name,
            )
        return name

    def call_end(self) -> str:
        """Return the text that closes the only call of a list."""
        return ")]"

    def call_text(self, call: ToolCall, *, menu: Menu | None = None) -> str:
        """Return the list of this one call."""
        return self.render_calls([call], menu=menu)

    def probe_text(self, name: str) -> str:
        """Return the text through `(`: what follows it, `)]` or an argument, may fuse with it."""
        return f"{self.prefix()}{self.spell(name)}("

    def render_calls(self, calls: Sequence[ToolCall], *, menu: Menu | None = None) -> str:  # noqa: ARG002
        """Return one list of all calls; nothing if there are none."""
        written = ", ".join(self._write_call(call) for call in calls)
        return f"{self.prefix()}{written}]" if calls else ""

    def _write_call(self, call: ToolCall) -> str:
        write_json(dict(call.arguments))  # what JSON cannot carry has no place in a call
        keywords = ", ".join(
            f"{_spell_keyword(key)}={_write_literal(value)}"
            for key, value in call.arguments.items()
        )
        return f"{self.spell(call.name)}({keywords})"

    def may_open(self, piece: str) -> bool:
        """Tell whether `piece` holds `[` or `,`."""
        return "[" in piece or "," in piece

    def _events(self, text: str, menu: Menu | None) -> Iterator[NameSpan | CallSpan]:  # noqa: ARG002
        at = 0
        while opening := search_outside_thoughts(_LIST, text, at):
            at = opening.end()
            span = _name_span(text, at)
            if span is not None:  # else the list is content
                at = yield from _calls(text, opening.start(), span)


def _name_span(text: str, at: int) -> NameSpan | None:
    """Return the span of the name that opens a call at `at`, or None if none opens there.

    Open as long as the text may still grow into a name and `(`.
    """
    start = skip_space(text, at)
    match = _NAME.match(text, start)
    end = match.end() if match else start
    after = skip_space(text, end)
    if after == len(text):
        return NameSpan(start=start)
    if end == start or text[after] != "(":
        return None
    return NameSpan(start=start, end=end, name=text[start:end])


def _calls(text: str, start: int, first: NameSpan) -> Generator[NameSpan | CallSpan, None, int]:
    """Yield the events of one list, and return the offset after it."""
    span: NameSpan | None = first
    while span is not None:
        yield span
        if span.name is None or span.end is None:
            raise parse_error("truncated", len(text), "the text ends inside the list of calls")
        if not _is_name(span.name):
            raise parse_error("bad_name", span.start, "expected identifiers joined by dots")
        opening = skip_space(text, span.end)
        closed = _after_bracket(text, opening)
        arguments = _arguments(text[opening:closed], opening)
        call = ToolCall(name=span.name, arguments=arguments, start=span.start)
        at = skip_space(text, closed)
        if not text.startswith(",", at):
            end = _after_list(text, at)
            yield CallSpan(start=start, end=end, call=call)
            return end
        yield CallSpan(start=start, end=at + 1, call=call)
        start = at + 1
        span = _name_span(text, start)
    raise parse_error("malformed", start, "expected another call after the comma")


def _after_list(text: str, at: int) -> int:
    match = _LIST_END.match(text, at)
    if match is None:
        kind: ParseErrorKind = "truncated" if at == len(text) else "malformed"
        raise parse_error(kind, at, "expected , or ] after a call")
    return match.end()


def _after_bracket(text: str, at: int) -> int:
    """Return the offset after the bracket that closes the one at `at`."""
    waiting: list[str] = []
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None or not is_normalized("NFKC", token["word"] or ""):
            kind: ParseErrorKind = "truncated" if _CUT_SHORT.match(text, at) else "malformed"
            raise parse_error(kind, at, "expected a Python literal")
        piece = token.group()
        if piece in _CLOSERS:
            waiting.append(_CLOSERS[piece])
        elif piece in _CLOSERS.values() and waiting.pop() != piece:
            raise parse_error("malformed", at, "a bracket closes another kind of bracket")
        at = token.end()
        if not waiting:
            return at
    raise parse_error("truncated", len(text), "the text ends inside the arguments")


def _arguments(source: str, at: int) -> dict[str, Any]:
    """Return the keyword arguments in `source`, which is `(` to `)` and stands at `at`."""
    try:
        node = ast.parse(f"f{source}", mode="eval").body
        if not isinstance(node, ast.Call) or node.args:
            raise parse_error("bad_arguments", at, "arguments must be given by keyword")
        pairs = [(keyword.arg, _literal(keyword.value, at)) for keyword in node.keywords]
    except (SyntaxError, ValueError):
        raise parse_error("malformed", at, "the arguments are no valid Python") from None
    except (RecursionError, MemoryError):
        raise parse_error("too_deep", at, "the arguments are nested too deep") from None
    arguments = {key: value for key, value in pairs if key is not None}
    if len(arguments) != len(pairs):
        raise parse_error("duplicate_key", at, "an argument is given twice or by **")
    return arguments


def _literal(node: ast.expr | None, at: int) -> Any:
    """Return the JSON value a literal stands for."""
    match node:
        case ast.Constant(value=str() as text):
            if not is_encodable(text):
                raise parse_error("lone_surrogate", at, "a text holds half a surrogate pair")
            return text
        case ast.Constant(value=bool() | int() | float() | None as value):
            return _finite(value, at)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=number)):
            if isinstance(number, int | float) and not isinstance(number, bool):
                return _finite(-number if isinstance(sign, ast.USub) else number, at)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item, at) for item in items]
        case ast.Dict(keys=keys, values=values):
            return _object([_literal(key, at) for key in keys], values, at)
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
    raise parse_error("bad_arguments", at, "an argument is not a literal that JSON can hold")


def _finite(value: float | None, at: int) -> float | None:
    if isinstance(value, float) and not math.isfinite(value):
        raise parse_error("not_a_number", at, "a number is too large")
    return value


def _object(keys: Sequence[object], values: Sequence[ast.expr], at: int) -> dict[str, Any]:
    if not all(isinstance(key, str) for key in keys):
        raise parse_error("bad_arguments", at, "the keys of an object must be texts")
    if len(set(keys)) != len(keys):
        raise parse_error("duplicate_key", at, "an object has the same key twice")
    return {str(key): _literal(value, at) for key, value in zip(keys, values, strict=True)}


def _is_identifier(word: str) -> bool:
    return word.isidentifier() and not iskeyword(word) and is_normalized("NFKC", word)


def _is_name(name: str) -> bool:
    return bool(_CARRIED.fullmatch(name)) and all(map(_is_identifier, name.split(".")))


def _spell_keyword(key: str) -> str:
    if not _is_name(key) or "." in key:
        raise ConfigError(
            f"the pythonic format cannot carry the argument name {key!r}",
            hint="use an identifier",
            name=key,
        )
    return key


def _write_literal(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_write_literal, value))}]"
    if isinstance(value, dict):
        members = (f"{write_json(key)}: {_write_literal(item)}" for key, item in value.items())
        return f"{{{', '.join(members)}}}"
    if isinstance(value, str):
        return write_json(value)  # every escape of JSON is one of Python too
    return repr(value)
