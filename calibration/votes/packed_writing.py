"""Writing on from many prompts at once, greedily or by sampling, each token with its probability.

What prompts share goes through the model once, and so do all copies of one prompt: five samples of
a call cost one prompt and five calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.reading.generation import write_rows
from toolguard.calibration.reading.packed_rows import Rows
from toolguard.calibration.reading.prompt_groups import prompt_groups
from toolguard.calibration.reading.prompts import OnSkip, Prompt, PromptWriter, context_length
from toolguard.calibration.reading.row_packs import BATCH_TOKENS, RowPacker

Pick = Callable[[Tensor], Tensor]
"""Chooses a token a row: from (rows, vocab) float32 logits, (rows,) int64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """What is to be written after one prompt.

    Args:
        opening: tokens that come first whatever the model prefers.
        most: most tokens in all.
        is_done: tells from all tokens so far whether the last one was the last.
    """

    opening: tuple[int, ...]
    most: int
    is_done: Callable[[Sequence[int]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written after a prompt.

    Args:
        tokens: ids.
        log_probs: log-probability of each over the whole vocabulary, before any temperature.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]


def greedy(logits: Tensor) -> Tensor:
    """Return the likeliest token of each row."""
    return logits.argmax(dim=-1)


def sampled(temperature: float, seed: int) -> Pick:
    """Return what draws from the model's distribution at a temperature above 0."""
    draw = torch.Generator().manual_seed(seed)

    def pick(logits: Tensor) -> Tensor:
        probabilities = torch.softmax(logits.cpu() / temperature, dim=-1)
        return torch.multinomial(probabilities, 1, generator=draw)[:, 0]

    return pick


class PackedWriter:
    """Writes calls of records.

    Args:
        loaded: the model.
        wire: how it writes calls.
        names_only: as in `collect`.
        batch_tokens: as in `collect`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        wire: WireFormat,
        *,
        names_only: bool = False,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self._writer = PromptWriter(loaded, wire, names_only=names_only)
        self._packer = RowPacker(loaded, batch_tokens=batch_tokens)
        self._context = context_length(loaded)

    def write(
        self,
        records: Sequence[Record],
        plan: Callable[[Prompt], Continuation],
        *,
        pick: Pick,
        copies: int = 1,
        on_skip: OnSkip,
    ) -> Iterator[tuple[Prompt, list[Written]]]:
        """Yield each record's prompt with what was written after its decision token, once a copy.

        Args:
            records: whose calls are written; those with one menu run together.
            plan: what is to be written after a prompt.
            pick: chooses the tokens.
            copies: continuations of each prompt.
            on_skip: told of each record that has no prompt.
        """
        for group in prompt_groups(self._writer, records, on_skip):
            suffixes = [prompt.suffix for prompt in group.prompts for _ in range(copies)]
            written: dict[int, list[Written]] = {}
            for batch in self._packer.batches(group.shared, suffixes):
                owners = [member // copies for member in batch.members]
                own = [suffixes[member] for member in batch.members]
                plans = [
                    self._bounded(plan(group.prompts[owner]), len(group.shared) + len(suffix))
                    for owner, suffix in zip(owners, own, strict=True)
                ]
                rows = self._packer.rows(group.shared, own, batch.kept)
                for owner, text in zip(owners, _write(rows, plans, pick), strict=True):
                    written.setdefault(owner, []).append(text)
            for owner, texts in sorted(written.items()):
                yield group.prompts[owner], texts

    def _bounded(self, plan: Continuation, prompt_tokens: int) -> Continuation:
        """Return the plan with no more tokens than the model's context has room for."""
        if self._context is None:
            return plan
        return replace(plan, most=min(plan.most, self._context - prompt_tokens))


@torch.inference_mode()
def _write(rows: Rows, plans: Sequence[Continuation], pick: Pick) -> list[Written]:
    """Start the rows and write on after each until it is done."""
    log_probs: list[list[float]] = [[] for _ in plans]

    def choose(writing: Sequence[int], logits: Tensor) -> list[int]:
        told = logits.float()
        tokens = [
            _opening_token(plans[row], len(log_probs[row]), token)
            for row, token in zip(writing, pick(told).tolist(), strict=True)
        ]
        index = torch.tensor(tokens, device=told.device)[:, None]
        found = torch.log_softmax(told, dim=-1).gather(1, index)[:, 0].tolist()
        for row, log_prob in zip(writing, found, strict=True):
            log_probs[row].append(log_prob)
        return tokens

    texts = write_rows(rows, rows.start(), lambda row, tokens: _goes_on(plans[row], tokens), choose)
    return [
        Written(tokens=tuple(tokens), log_probs=tuple(own))
        for tokens, own in zip(texts, log_probs, strict=True)
    ]


def _opening_token(plan: Continuation, place: int, picked: int) -> int:
    """Return the token of the opening at this place, or the one picked behind its end."""
    return plan.opening[place] if place < len(plan.opening) else picked


def _goes_on(plan: Continuation, tokens: Sequence[int]) -> bool:
    if len(tokens) < len(plan.opening):
        return True
    return len(tokens) < plan.most and not (tokens and plan.is_done(tokens))
