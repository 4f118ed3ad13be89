"""Calls written out for votes that need them: the greedy one whole, samples up to the name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.reading.generation import end_tokens, turn_text
from toolguard.calibration.reading.prompts import OnSkip, Prompt
from toolguard.calibration.votes.evidence import WrittenCall
from toolguard.calibration.votes.packed_writing import (
    Continuation,
    PackedWriter,
    Written,
    greedy,
    sampled,
)
from toolguard.calibration.votes.value_tokens import meaningful_tokens

CALL_TOKENS = 96  # most tokens of a call, as in the steering comparison
_NAME_SLACK = 4  # tokens beyond the longest canonical name, for other ways to spell one


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How calls are sampled; temperature: above 0, 1 is the model's own distribution."""

    calls: int = 5
    temperature: float = 1.0
    seed: int = 0


class CallScribe:
    """Writes the calls of records with one model.

    Args:
        loaded: the model.
        wire: how it writes calls.
        writer: runs it.
        on_skip: told of each record that has no prompt.
    """

    def __init__(
        self, loaded: LoadedModel, wire: WireFormat, writer: PackedWriter, on_skip: OnSkip
    ) -> None:
        self._loaded = loaded
        self._ends = frozenset(end_tokens(loaded))
        self._wire = wire
        self._writer = writer
        self._on_skip = on_skip

    def calls(self, records: Sequence[Record], chosen: Mapping[str, str]) -> dict[str, WrittenCall]:
        """Return the greedy call of each record, by its id.

        Args:
            records: whose calls are written.
            chosen: record id -> the name that its call gets.
        """

        def plan(prompt: Prompt) -> Continuation:
            return Continuation(
                opening=prompt.trie.path_of(chosen[prompt.record.id]),
                most=CALL_TOKENS,
                is_done=lambda tokens: self._is_whole(prompt, tokens),
            )

        stream = self._writer.write(records, plan, pick=greedy, on_skip=self._on_skip)
        return {prompt.record.id: self._call(prompt, texts[0]) for prompt, texts in stream}

    def samples(
        self, records: Sequence[Record], sampling: Sampling
    ) -> dict[str, tuple[str | None, ...]]:
        """Return the tools that sampled calls of each record name, by its id; None: no name."""

        def plan(prompt: Prompt) -> Continuation:
            longest = max(len(prompt.trie.path_of(name)) for name in prompt.trie.names)
            return Continuation(
                opening=(),
                most=longest + _NAME_SLACK,
                is_done=lambda tokens: self._has_name(prompt, tokens),
            )

        stream = self._writer.write(
            records,
            plan,
            pick=sampled(sampling.temperature, sampling.seed),
            copies=sampling.calls,
            on_skip=self._on_skip,
        )
        return {
            prompt.record.id: tuple(self._name(self._text(prompt, text.tokens)) for text in texts)
            for prompt, texts in stream
        }

    def _call(self, prompt: Prompt, written: Written) -> WrittenCall:
        text = self._text(prompt, written.tokens)
        turn, _ = self._wire.parse_written(text, menu=prompt.offered.menu)
        if not turn.calls or not self._is_whole(prompt, written.tokens):
            return WrittenCall(call=None, tokens=len(written.tokens), nll=None)
        call = turn.calls[0]
        ends = [
            # Half a character, if a token ends in one, is not text yet.
            len(self._text(prompt, written.tokens[: place + 1]).rstrip("\ufffd"))
            for place in range(len(written.tokens))
        ]
        told = meaningful_tokens(text, ends, call, self._wire)
        nll = -fmean(written.log_probs[token] for token in told) if told else None
        return WrittenCall(call=call, tokens=len(written.tokens), nll=nll)

    def _is_whole(self, prompt: Prompt, tokens: Sequence[int]) -> bool:
        if tokens[-1] in self._ends:
            return True
        text = self._text(prompt, tokens)
        if self._name(text) is None:
            return False
        if not self._wire.writes_arguments:
            return True
        closing = self._wire.call_end().strip()[-1:]
        if not text.rstrip().endswith(closing):  # what closes no call need not be parsed
            return False
        return bool(self._wire.parse_written(text, menu=prompt.offered.menu)[0].calls)

    def _has_name(self, prompt: Prompt, tokens: Sequence[int]) -> bool:
        return tokens[-1] in self._ends or self._name(self._text(prompt, tokens)) is not None

    def _name(self, text: str) -> str | None:
        span = self._wire.find_name(text)
        return None if span is None else span.name

    def _text(self, prompt: Prompt, tokens: Sequence[int]) -> str:
        return turn_text(self._loaded, prompt, tokens)
