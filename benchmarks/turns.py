"""One assistant turn, guarded and plain, that writes the same tokens both times.

Both sides do what an application does: from messages and tools to the turn's text. Only the guarded
one judges and parses; the plain one stops at the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.turn_result import GuardedResult
from toolguard.adapters.wire import detect_format
from toolguard.guard.tools import Menu, ToolCall


class WrittenTokens(LogitsProcessor):
    """Makes `generate` write given tokens, one row, at next to no cost.

    Args:
        tokens: the turn, its end token included.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._next = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Return the scores, (1, vocab), with the next token's the highest."""
        scores[0, self._tokens[self._next]] = torch.finfo(scores.dtype).max
        self._next += 1
        return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A request and what the model answers.

    Args:
        messages: the conversation.
        tokens: the answer, its end token included.
    """

    messages: list[dict[str, Any]]
    tokens: tuple[int, ...]

    @classmethod
    def calling(cls, loaded: LoadedModel, query: str, call: ToolCall) -> Turn:
        """Return the turn that answers `query` with one call and nothing else."""
        text = detect_format(loaded.tokenizer).render_calls([call])
        ids = cast("list[int]", loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
        end = cast("int", loaded.tokenizer.eos_token_id)
        return cls(messages=[{"role": "user", "content": query}], tokens=(*ids, end))

    def options(self) -> dict[str, Any]:
        """Return options of `generate` that make it write the answer."""
        return {
            "logits_processor": LogitsProcessorList([WrittenTokens(self.tokens)]),
            "max_new_tokens": len(self.tokens),
            "do_sample": False,
        }


def guarded(agent: GuardedAgent, menu: Menu, turn: Turn) -> GuardedResult:
    """Return the turn as the guarded agent writes it."""
    return agent.generate(turn.messages, menu.tools, **turn.options())


@torch.no_grad()
def plain(loaded: LoadedModel, menu: Menu, turn: Turn) -> str:
    """Return the turn's text as HF `generate` writes it."""
    tokenizer, model = cast("Any", loaded.tokenizer), cast("Any", loaded.model)
    prompt = detect_format(tokenizer).render(tokenizer, turn.messages, menu)
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(loaded.device)
    output = model.generate(**inputs, pad_token_id=tokenizer.pad_token_id, **turn.options())
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
