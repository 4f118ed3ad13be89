"""What an assistant turn is made of: thoughts, names, calls, and the marks that end it.

Everything here counts characters of the generated text. The text starts where the assistant turn
starts; a caller whose rendered prompt already opened a thought (`opens_thought`) puts that mark in
front of the text, or calls the model only thinks about would look like calls it makes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from toolguard.guard.errors import ParseError
from toolguard.guard.tools import ToolCall

ParseErrorKind = Literal[
    "truncated",  # the text ends inside a call
    "malformed",  # something else stands where the format wants one thing
    "unopened",  # a call's inner or closing mark without the mark that opens a call
    "trailing_text",  # text after a call where the format allows none
    "bad_name",  # the name is missing, empty, or not a string
    "bad_arguments",  # the arguments are missing, not an object, or do not fit the schema
    "unexpected_key",  # a key the format does not know
    "duplicate_key",  # the same key or parameter twice
    "not_a_number",  # NaN, Infinity, or a number too large to hold
    "lone_surrogate",  # half of a surrogate pair, which no UTF-8 text can hold
    "too_deep",  # nested deeper than the parser goes
]

_THOUGHTS = {"<think>": "</think>", "[THINK]": "[/THINK]"}
THOUGHT_OPENS = re.compile("|".join(re.escape(mark) for mark in _THOUGHTS))

_THOUGHT_AT_END = re.compile(rf"({THOUGHT_OPENS.pattern})\s*\Z")

# Generated text may come with the special token that ended the turn; it belongs to no call.
TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|eom|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<eos>",
    "</s>",
)
TURN_END = re.compile("|".join(re.escape(mark) for mark in TURN_ENDS))
_TURN_ENDS_AT_END = re.compile(rf"(?:(?:{TURN_END.pattern})\s*)+\Z")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class NameSpan:
    """Where a tool name stands in the generated text.

    Args:
        start: offset of the name's first character.
        end: offset after its last character; None while the name is not finished.
        name: the name itself, un-escaped; None while it is not finished.
    """

    start: int
    end: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSpan:
    """One whole call and the stretch of text, marks included, that it takes up."""

    start: int
    end: int
    call: ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedTurn:
    """An assistant turn taken apart.

    Args:
        content: the text outside the calls, thoughts included; where there are calls, without
            the white space around them.
        calls: in the order written; `ToolCall.start` is the offset of the name.
    """

    content: str
    calls: tuple[ToolCall, ...]


def parse_error(kind: ParseErrorKind, offset: int, what: str) -> ParseError:
    """Return the error for `what` at `offset`; the text itself stays out of the message."""
    return ParseError(
        f"tool call not well formed at character {offset}: {what}", offset=offset, kind=kind
    )


def skip_space(text: str, at: int) -> int:
    """Return the offset of the first character at or after `at` that is not white space."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def expect(text: str, at: int, literal: str) -> int:
    """Return the offset after `literal`, which must stand at `at`.

    Raises:
        ParseError: truncated if the text ends inside `literal`, else malformed.
    """
    if text.startswith(literal, at):
        return at + len(literal)
    kind: ParseErrorKind = "truncated" if literal.startswith(text[at:]) else "malformed"
    raise parse_error(kind, at, f"expected {literal}")


def end_of_thought(text: str, opening: re.Match[str]) -> int | None:
    """Return the offset after the thought that `opening` opens, or None if it never ends."""
    mark = _THOUGHTS[opening.group()]
    closing = text.find(mark, opening.end())
    return None if closing < 0 else closing + len(mark)


def search_outside_thoughts(
    pattern: re.Pattern[str], text: str, at: int = 0
) -> re.Match[str] | None:
    """Return the first match of `pattern` at or after `at` that no thought holds.

    `at` must itself be outside a thought. A thought that never ends reaches to the end of the text.
    """
    while True:
        match = pattern.search(text, at)
        thought = THOUGHT_OPENS.search(text, at)
        if match is None or thought is None or match.start() < thought.start():
            return match
        after = end_of_thought(text, thought)
        if after is None:
            return None
        at = after


def start_of_answer(text: str) -> int | None:
    """Return the offset of the first character after leading thoughts and white space.

    None if a thought is still open.
    """
    at = skip_space(text, 0)
    while thought := THOUGHT_OPENS.match(text, at):
        after = end_of_thought(text, thought)
        if after is None:
            return None
        at = skip_space(text, after)
    return at


def opens_thought(prompt: str) -> str | None:
    """Return the mark of the thought that a rendered prompt leaves open at its end, or None."""
    match = _THOUGHT_AT_END.search(prompt)
    return match[1] if match else None


def begins_thought_mark(text: str) -> bool:
    """Return whether `text` may yet become the mark that opens a thought."""
    return any(mark.startswith(text) for mark in _THOUGHTS)


def closing_mark(opening: str) -> str:
    """Return the mark that closes the thought which `opening` opens."""
    return _THOUGHTS[opening]


def without_turn_end(text: str) -> str:
    """Return `text` without the end-of-turn marks it ends with; offsets stay as they were."""
    match = _TURN_ENDS_AT_END.search(text)
    return text[: match.start()] if match else text


def outside(text: str, spans: Sequence[CallSpan]) -> str:
    """Return what `spans` leave of `text`, stripped and joined; all of it if there are none."""
    if not spans:
        return text
    starts = [0, *(span.end for span in spans)]
    ends = [*(span.start for span in spans), len(text)]
    pieces = (text[start:end].strip() for start, end in zip(starts, ends, strict=True))
    return "\n".join(piece for piece in pieces if piece)
