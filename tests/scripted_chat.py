"""A guarded chat model whose tokens are scripted, so that a tiny random model answers sensibly.

Everything but the choice of tokens is the real thing: the template, the forward passes, the guard's
readings, the parser. What such a test shows is the interface, never the model's skill.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from fakes import fake_profile, quiet_guard
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from toolguard.adapters.chat.chat_model import GuardedChatModel
from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire.hermes import Hermes
from toolguard.guard.guard import Guard
from toolguard.guard.tools import Menu, ToolCall

HEADER = "<|im_start|>assistant\n"

Answer = Callable[[str, str], str]
"""From the prompt and the turn so far to the whole turn."""


class ScriptedAnswers(LogitsProcessor):
    """Makes each row write what `answer` says and then end; keeps no state, so threads share it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, answer: Answer) -> None:
        self.tokenizer, self.answer = tokenizer, answer
        self.header = self._ids(HEADER)
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores that leave one token possible a row."""
        self.calls += 1
        forced = torch.full_like(scores, -torch.inf)
        for row, tokens in enumerate(input_ids.tolist()):
            forced[row, self._next(tokens)] = 0.0
        return forced

    def _next(self, tokens: list[int]) -> int:
        start = len(tokens) - tokens[::-1].index(self.header[0]) - 1
        written = tokens[start + len(self.header) :]
        prompt = self.tokenizer.decode(tokens[:start])
        wanted = self._ids(self.answer(prompt, self.tokenizer.decode(written)))
        goes_on = written == wanted[: len(written)] and len(written) < len(wanted)
        return wanted[len(written)] if goes_on else self.tokenizer.eos_token_id

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def says(text: str) -> Answer:
    """Return the answer that is always this text."""
    return lambda _prompt, _turn: text


def call_text(name: str, /, **arguments: Any) -> str:
    """Return one call in the tiny tokenizer's format."""
    return Hermes().call_text(ToolCall(name=name, arguments=arguments))


def last_user_text(prompt: str) -> str:
    """Return what the user said last, or the tool result that stands in its place."""
    return prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]


def helpful(prompt: str, _turn: str) -> str:
    """Call the first tool with what the user said; without one, or after a result, use words."""
    asked = last_user_text(prompt)
    tools = [json.loads(line) for line in prompt.splitlines() if line.startswith('{"type"')]
    if not tools or asked.startswith("<tool_response>"):
        return "It is all done, as far as a script can do anything."
    function = tools[0]["function"]
    properties = function["parameters"].get("properties", {})
    arguments = {
        name: 3 if schema.get("type") == "integer" else asked for name, schema in properties.items()
    }
    return call_text(function["name"], **arguments)


def guard_of(
    loaded: LoadedModel, menu: Menu, *, threshold: float | None = 1.0, **policy: Any
) -> Guard:
    """Return a guard in enforce mode over a profile of `menu` up to `threshold`."""
    profile = fake_profile(loaded, menu, threshold=threshold)
    return quiet_guard(profile, **{"mode": "enforce", **policy})


def chat_over(loaded: LoadedModel, guard: Guard, answer: Answer, **fields: Any) -> GuardedChatModel:
    """Return a chat model over `loaded` that writes what `answer` says."""
    script = ScriptedAnswers(loaded.tokenizer, answer)
    return GuardedChatModel(
        agent=GuardedAgent.of(loaded, guard),
        generate_kwargs={"logits_processor": [script]},
        **fields,
    )
