"""What all prompts of one menu begin with, found by rendering two conversations that differ.

Where a special token separates the shared text from the rest, the shared text is tokenised once: no
tokenizer merges across such a token. Both conversations are the proof, or it is not done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.int32]

# First letters that differ, so that no token of the user's text can seem shared.
_PROBES = ("A", "b")


def as_ids(tokens: Sequence[int]) -> Ids:
    """Return token ids as (tokens,) int32: a ninth of what a list of integers takes."""
    return np.asarray(tokens, dtype=np.int32)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    """Return the token ids of each text, none added: a rendered prompt holds its special tokens."""
    if not texts:
        return []
    told = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    return [as_ids(ids) for ids in told["input_ids"]]


def common_length(first: Ids, second: Ids) -> int:
    """Return how many tokens two sequences share from the start."""
    shorter = min(len(first), len(second))
    differ = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(differ[0]) if len(differ) else shorter


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SharedText:
    """What every prompt of a menu begins with.

    Args:
        text: ends where a special token begins, so that what follows can be tokenised alone;
            empty if no such place was found.
        text_ids: its tokens.
        ids: the tokens that both conversations share, those of `text` among them.
    """

    text: str
    text_ids: Ids
    ids: Ids

    def encode(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[Ids]:
        """Return the token ids of whole prompts, the shared text's own taken from before."""
        if not all(prompt.startswith(self.text) for prompt in prompts):
            return encode(tokenizer, prompts)
        tails = encode(tokenizer, [prompt[len(self.text) :] for prompt in prompts])
        return [np.concatenate([self.text_ids, tail]) for tail in tails]


def find_shared_text(
    tokenizer: PreTrainedTokenizerBase,
    render: Callable[[list[dict[str, Any]]], str],
    leading: Sequence[dict[str, Any]],
) -> SharedText:
    """Return what prompts share that begin with the messages `leading`.

    Args:
        tokenizer: turns prompts into tokens.
        render: writes the prompt of a conversation.
        leading: the system message, or none.

    Raises:
        ConfigError: if the template refuses so short a conversation.
    """
    first, second = (render([*leading, {"role": "user", "content": letter}]) for letter in _PROBES)
    whole = encode(tokenizer, [first, second])
    text = first[: _last_mark(tokenizer, first, _common_characters(first, second))]
    head, *tails = encode(tokenizer, [text, first[len(text) :], second[len(text) :]])
    found = SharedText(text=text, text_ids=head, ids=whole[0][: common_length(*whole)])
    if all(_splits(head, tail, ids) for tail, ids in zip(tails, whole, strict=True)):
        return found
    return SharedText(text="", text_ids=as_ids(()), ids=found.ids)


def _splits(head: Ids, tail: Ids, whole: Ids) -> bool:
    return np.array_equal(np.concatenate([head, tail]), whole)


def _common_characters(first: str, second: str) -> int:
    shorter = min(len(first), len(second))
    return next((at for at in range(shorter) if first[at] != second[at]), shorter)


def _last_mark(tokenizer: PreTrainedTokenizerBase, text: str, end: int) -> int:
    """Return where the last special token that stands before `end` begins, or 0."""
    marks = (
        token.content
        for token in getattr(tokenizer, "added_tokens_decoder", {}).values()
        if not token.normalized  # else the text around it decides whether it is found
    )
    return max(0, *(text.rfind(mark, 0, end) for mark in marks), 0)
