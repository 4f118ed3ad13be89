"""The tokens that one conversation puts in front of the model, and what of them is the turn's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.turn import closing_mark, opens_thought
from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import Menu


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnPrompt:
    """A rendered conversation.

    Args:
        text: up to where the assistant's turn begins.
        before: tokens before the turn.
        written: tokens of the turn that are given to the model.
    """

    text: str
    before: tuple[int, ...]
    written: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens given to the model."""
        return self.before + self.written

    @property
    def lead(self) -> str:
        """Text of the turn that stands in front of it: the mark of a thought left open."""
        return opens_thought(self.text) or ""

    def with_turn(self, tokens: Sequence[int]) -> TurnPrompt:
        """Return the same conversation with `tokens` as the turn's beginning."""
        return TurnPrompt(text=self.text, before=self.before, written=tuple(tokens))


def render_prompt(
    loaded: LoadedModel,
    wire: WireFormat,
    messages: Sequence[Mapping[str, Any]],
    menu: Menu | None,
    prefill: str,
) -> TurnPrompt:
    """Return the prompt of a turn that begins with `prefill`; without a menu it offers no tools.

    Raises:
        ConfigError: if the conversation is malformed or longer than the model's context.
        UnsupportedModel: if the tokenizer has no chat template.
    """
    if menu is None:
        text = wire.render_plain(loaded.tokenizer, messages)
    else:
        text = wire.render(loaded.tokenizer, messages, menu)
    before = _encode(loaded, text)
    prompt = TurnPrompt(text=text, before=before)
    if prefill:
        whole = _encode(loaded, text + prefill)
        pairs = enumerate(zip(before, whole, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(before), len(whole)))
        prompt = TurnPrompt(text=text, before=whole[:same], written=whole[same:])
    limit = context_of(loaded)
    if limit is not None and len(prompt.ids) >= limit:
        raise ConfigError(
            f"the prompt has {len(prompt.ids)} tokens, the model's context holds {limit}",
            hint="offer fewer tools or shorten the conversation",
            prompt=len(prompt.ids),
            context=limit,
        )
    return prompt


def opening_call(loaded: LoadedModel, prompt: TurnPrompt, prefix_ids: Sequence[int]) -> TurnPrompt:
    """Return the prompt whose turn begins with a call, up to the name; an open thought is closed.

    Args:
        loaded: its tokenizer.
        prompt: with nothing written yet.
        prefix_ids: tokens of the opening, as in `NameTokens`.
    """
    closing = f"\n{closing_mark(prompt.lead)}\n\n" if prompt.lead else ""
    return prompt.with_turn([*_encode(loaded, closing), *prefix_ids])


def room_after(loaded: LoadedModel, width: int, wanted: int) -> int:
    """Return how many tokens may follow `width`: what is wanted, as far as the context goes."""
    limit = context_of(loaded)
    return wanted if limit is None else min(wanted, limit - width)


def check_room(width: int, new_tokens: int) -> None:
    """Check that an answer fits behind a prompt of `width` tokens.

    Raises:
        ConfigError: if no token may follow.
    """
    if new_tokens < 1:
        raise ConfigError(
            f"a prompt of {width} tokens leaves no room for an answer",
            hint="raise max_new_tokens or max_length, or shorten the conversation",
        )


def context_of(loaded: LoadedModel) -> int | None:
    """Return how many positions the model has, or None if its config does not say."""
    config = loaded.model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None else int(limit)


def left_padded(
    prompts: Sequence[TurnPrompt], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return (rows, width) int64 ids and attention mask of several prompts."""
    width = max(len(prompt.ids) for prompt in prompts)
    gaps = [width - len(prompt.ids) for prompt in prompts]
    rows = list(zip(prompts, gaps, strict=True))
    ids = [[pad] * gap + list(prompt.ids) for prompt, gap in rows]
    mask = [[0] * gap + [1] * (width - gap) for _, gap in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _encode(loaded: LoadedModel, text: str) -> tuple[int, ...]:
    return tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
