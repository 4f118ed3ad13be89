"""A turn that is offered no tools: plain text, in which nothing is a call and nothing can run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from toolguard.adapters.generate_options import GenerateOptions
from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.turn_prompt import TurnPrompt, check_room, left_padded, room_after
from toolguard.adapters.turn_result import GuardedResult
from toolguard.guard.errors import ConfigError


def write_text(
    loaded: LoadedModel,
    prompts: Sequence[TurnPrompt],
    options: GenerateOptions,
    must_call: Collection[str],
    on_text: Callable[[str], None] | None,
) -> list[GuardedResult]:
    """Return one turn a prompt, without calls and without decisions.

    Raises:
        ConfigError: if the prompt leaves no room, or a call is wanted that nothing offers.
    """
    if must_call:
        raise ConfigError(
            "a call is wanted but no tools are offered", hint="offer the tool that must be called"
        )
    ids, mask = left_padded(prompts, options.pad_token, loaded.device)
    width = ids.shape[1]
    room = room_after(loaded, width, options.room(width))
    check_room(width, room)
    settings = options.settings(room)
    criteria = [*(settings.pop("stopping_criteria", None) or [])]
    watch = _TextWatch(loaded, prompts[0], on_text, options.end_tokens)
    if on_text is not None:
        criteria.append(watch)
    model: Any = loaded.model
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            stopping_criteria=StoppingCriteriaList(criteria),
            **settings,
        )
    rows = [_own_tokens(row, options) for row in output.sequences[:, width:].tolist()]
    results = [
        _result(loaded, prompt, tokens, options)
        for prompt, tokens in zip(prompts, rows, strict=True)
    ]
    watch.finish(results[0].message["content"])
    return results


def _own_tokens(row: list[int], options: GenerateOptions) -> list[int]:
    """Return the row without the padding behind its end."""
    for index, token in enumerate(row):
        if token in options.end_tokens:
            return row[: index + 1]
    while row and row[-1] == options.pad_token:  # another criterion ended it before the others
        row = row[:-1]
    return row


def _result(
    loaded: LoadedModel, prompt: TurnPrompt, written: Sequence[int], options: GenerateOptions
) -> GuardedResult:
    tokens = (*prompt.written, *written)
    ended = bool(tokens) and tokens[-1] in options.end_tokens
    content = prompt.lead + _text(loaded, tokens[:-1] if ended else tokens)
    return GuardedResult(
        message={"role": "assistant", "content": content},
        calls=(),
        judged=(),
        text=prompt.lead + _text(loaded, tokens),
        tokens=tokens,
        prompt_tokens=len(prompt.before),
        finish_reason="stop" if ended else "length",
    )


def _text(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    return str(
        loaded.tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    )


class _TextWatch(StoppingCriteria):
    """Passes text on as it is written, whole characters only; never stops anything."""

    def __init__(
        self,
        loaded: LoadedModel,
        prompt: TurnPrompt,
        on_text: Callable[[str], None] | None,
        end_tokens: frozenset[int],
    ) -> None:
        self._loaded, self._lead, self._on_text = loaded, prompt.lead, on_text
        self._tokens = list(prompt.written)
        self._end_tokens = end_tokens
        self._sent = 0

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # noqa: ARG002
        """Return (rows,) bool, all False."""
        token = int(input_ids[0, -1])
        if token not in self._end_tokens:
            self._tokens.append(token)
            text = self._lead + _text(self._loaded, self._tokens)
            if not text.endswith("\ufffd"):  # half a character is not text yet
                self.finish(text)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def finish(self, content: str) -> None:
        """Pass on what of `content` was not passed on before."""
        piece, self._sent = content[self._sent :], max(self._sent, len(content))
        if piece and self._on_text is not None:
            self._on_text(piece)
