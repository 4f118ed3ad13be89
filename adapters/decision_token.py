"""Which tokens lead to the decision, and which tokens spell each tool name from there on.

The decision token is the last token before the names part. Where it lies depends on the tokenizer,
which may fuse a quote with what stands before or after it; so whole calls are tokenised, with
offsets, and never glued from pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.prompting import apply_template, chat_template
from toolguard.guard.errors import ConfigError, UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A tokenizer looks back a few characters at most, and 64 names times a long prompt would be slow.
_CONTEXT_CHARACTERS = 64
# Stands for an answer, to see what a chat template writes after one.
_ANSWER = "toolguard"


@dataclass(frozen=True, slots=True, kw_only=True)
class NameTokens:
    """Token ids from the end of the prompt through each name.

    Args:
        prefix_ids: tokens after the rendered prompt; the last one is the decision token. Empty if
            the prompt's last token is the decision token.
        paths: for each name, in the order given, the tokens after the decision token up to and
            including the one that holds the first character after the name. No path is the
            beginning of another.
    """

    prefix_ids: tuple[int, ...]
    paths: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoded:
    """One tokenised text; offsets are characters, [start, end) for each token."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def name_tokens(
    tokenizer: PreTrainedTokenizerBase, wire: WireFormat, names: Sequence[str], context: str
) -> NameTokens:
    """Return the tokens of the canonical calls of `names` after a prompt that ends with `context`.

    If the tokenizer fuses a name's first character with what stands before it, for whichever name,
    the decision token moves back in front of the fused token, for all of them.

    Args:
        tokenizer: fast, since only these give offsets.
        wire: how calls are written.
        names: exact, unique.
        context: the rendered prompt or its end; 64 characters are enough.

    Raises:
        ConfigError: if there are no names, one twice, one that the format cannot carry, or two
            whose tokens do not tell them apart; names are in the field `names`.
        UnsupportedModel: if the tokenizer gives no offsets, or joins the prompt's last characters
            with the call's first.
    """
    _check_names(names)
    tail = _tail(context)
    ends = _turn_end(tokenizer) if not wire.prefix() else ""
    texts = [tail, *(f"{tail}{wire.probe_text(name)}{ends}" for name in names)]
    prompt, *calls = _encode(tokenizer, texts)
    begin = len(prompt.ids)
    if any(call.ids[:begin] != prompt.ids for call in calls):
        raise UnsupportedModel(
            "the tokenizer joins the end of the prompt with the beginning of a tool call",
            hint="use a chat template whose generation prompt ends in a newline or special token",
        )
    start = len(tail) + len(wire.prefix())
    decision = _common_length(calls, start)
    special = frozenset(tokenizer.all_special_ids)
    paths = {
        name: _path(call, decision, (start, start + len(wire.spell(name))), special, name)
        for name, call in zip(names, calls, strict=True)
    }
    _check_paths(paths)
    return NameTokens(prefix_ids=tuple(calls[0].ids[begin:decision]), paths=paths)


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise ConfigError("there are no tool names", hint="offer at least one tool", names=())
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"tool names given twice: {', '.join(twice)}", names=tuple(twice))


def _tail(context: str) -> str:
    """Return the end of `context`, from the start of a line where one is near."""
    earliest = max(len(context) - 4 * _CONTEXT_CHARACTERS, 0)
    newline = context.find("\n", earliest, max(len(context) - _CONTEXT_CHARACTERS, 0))
    return context[newline + 1 if newline >= 0 else earliest :]


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text after an assistant turn, which ends a name that is the whole turn."""
    if chat_template(tokenizer) is None:
        return "\n"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        told = apply_template(tokenizer, turns, generation_prompt=False)
    except ConfigError:  # a template may insist on tools or a system turn
        told = ""
    return told.rpartition(_ANSWER)[2] or str(tokenizer.eos_token or "\n")


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[_Encoded]:
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModel(
            f"{type(tokenizer).__name__} gives no character offsets for its tokens",
            hint="load the fast tokenizer (tokenizer.json, use_fast=True)",
        )
    batch = tokenizer(
        texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
    )
    rows = zip(batch["input_ids"], batch["offset_mapping"], strict=True)
    return [_Encoded(ids=ids, offsets=offsets) for ids, offsets in rows]


def _common_length(calls: Sequence[_Encoded], at: int) -> int:
    """Return how many first tokens all calls share that end at or before character `at`."""
    length = min(_first_after(call, at) for call in calls)
    for call in calls:
        while call.ids[:length] != calls[0].ids[:length]:
            length -= 1
    return length


def _first_after(call: _Encoded, at: int) -> int:
    """Return the index of the first token that ends after character `at`."""
    ends = (index for index, (_, end) in enumerate(call.offsets) if end > at)
    return next(ends, len(call.ids))


def _path(
    call: _Encoded, decision: int, span: tuple[int, int], special: frozenset[int], name: str
) -> tuple[int, ...]:
    """Return the tokens from `decision` through the one that holds the character after the name."""
    terminator = _first_after(call, span[1])
    path = tuple(call.ids[decision : terminator + 1])
    if special & set(call.ids[_first_after(call, span[0]) : terminator]):
        raise ConfigError(
            f"the tokenizer spells the tool name {name!r} with a special or unknown token",
            hint="rename the tool",
            names=(name,),
        )
    return path


def _check_paths(paths: Mapping[str, tuple[int, ...]]) -> None:
    # A path and its continuations are neighbours when sorted.
    ordered = sorted(paths, key=lambda name: paths[name])
    for shorter, longer in pairwise(ordered):
        if paths[longer][: len(paths[shorter])] == paths[shorter]:
            raise ConfigError(
                f"the tokens of the tool names {shorter!r} and {longer!r} do not tell them apart",
                hint="rename one of the two tools",
                names=(shorter, longer),
            )
