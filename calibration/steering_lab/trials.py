"""Small changes to one forward pass, each tried on a row of its own, many rows at once.

Trials of one prompt share all its tokens but the last (`packed_rows`), so that a sweep over
hundreds of vectors costs about as much as one prompt of some hundred tokens more. What a row writes
afterwards is free: the favourite of the whole vocabulary at each step, not of the names alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from toolguard.adapters.loading import LoadedModel
from toolguard.calibration.reading.decisions import read_decisions
from toolguard.calibration.reading.generation import end_tokens, write_greedily
from toolguard.calibration.reading.packed_rows import Rows
from toolguard.calibration.reading.prompts import Prompt, context_length
from toolguard.calibration.reading.row_packs import BATCH_TOKENS, RowPacker
from toolguard.calibration.reading.shared_text import Ids, as_ids
from toolguard.calibration.steering_lab.changes import Change, Pushes, SteeredRows, with_biases
from toolguard.calibration.steering_lab.free_walk import (
    name_begun_by,
    name_singled_out_by,
    walk_freely,
)

Until = Literal["start", "name", "end"]
"""How far a trial writes: not at all, a name (or off all names, `free_walk`), the whole turn."""

TOGETHER: Mapping[Until, int] = {"start": 512, "name": 512, "end": 64}
"""Trials in one pass: more only look at each other, the more so the more they write."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """A prompt, the beginning of a name forced behind it, and what is changed where.

    Args:
        prompt: ends at the decision token.
        opening: tokens of a name that are written for the model, after the decision token.
        changes: what is changed at a token, by what of a name stands there: nothing at the decision
            token. One that the trial does not come by changes nothing.
        wanted: see `walk_freely`.
    """

    prompt: Prompt
    opening: tuple[int, ...] = ()
    changes: Mapping[tuple[int, ...], Change] = field(default_factory=dict)
    wanted: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Written:
    """What came of one trial.

    Args:
        tokens: the opening and all that was written behind it.
        name: the tool whose name they begin with, in the canonical spelling; None if there is none.
        singled_out: the tool whose name they won at each place where names part, be it written to
            its end or not.
        hidden: (layers read, dim) float32 at the end of the opening, before any push there.
    """

    tokens: tuple[int, ...]
    name: str | None
    singled_out: str | None
    hidden: Tensor


class TrialBench:
    """Runs trials on one model.

    Args:
        loaded: the model.
        batch_tokens: most new tokens in one forward.
        new_tokens: most tokens of a turn written to its end.
        share_prefix: False runs each trial whole and alone, which is what the fast way must equal.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        batch_tokens: int = BATCH_TOKENS,
        new_tokens: int = 96,
        share_prefix: bool = True,
    ) -> None:
        self._loaded = loaded
        self._packer = RowPacker(loaded, batch_tokens=batch_tokens, share_prefix=share_prefix)
        self._new_tokens = new_tokens
        self._context = context_length(loaded)
        self._ends = frozenset(end_tokens(loaded))

    def run(
        self, shared: Ids, trials: Sequence[Trial], until: Until, read: Sequence[int] = ()
    ) -> list[Written]:
        """Return what each trial writes, in the order given.

        Args:
            shared: what all the prompts begin with, as `PromptGroup` has it.
            trials: their prompts come from that group.
            until: how far they write.
            read: blocks whose outputs are wanted.

        Raises:
            ReadoutError: if a hidden state is not finite; names the record.
        """
        written: list[Written] = []
        for start in range(0, len(trials), TOGETHER[until]):
            some = trials[start : start + TOGETHER[until]]
            written += self._run(shared, some, until, read)
        return written

    def _run(
        self, shared: Ids, trials: Sequence[Trial], until: Until, read: Sequence[int]
    ) -> list[Written]:
        suffixes = [
            np.concatenate([trial.prompt.suffix, as_ids(trial.opening)]) for trial in trials
        ]
        found: dict[int, Written] = {}
        for batch in self._packer.batches(shared, suffixes):
            members = [trials[member] for member in batch.members]
            own = [suffixes[member] for member in batch.members]
            told = self._batch(shared, members, own, batch.kept, until, read)
            found |= zip(batch.members, told, strict=True)
        return [found[place] for place in range(len(trials))]

    @torch.inference_mode()
    def _batch(
        self,
        shared: Ids,
        trials: Sequence[Trial],
        suffixes: Sequence[Ids],
        kept: tuple[int, ...] | None,
        until: Until,
        read: Sequence[int],
    ) -> list[Written]:
        lengths = [len(shared) + len(suffix) for suffix in suffixes]
        changes = [trial.changes.get(trial.opening) for trial in trials]
        pushes = Pushes(changes)
        rows = self._packer.rows(shared, suffixes, kept)
        state = read_decisions(
            self._loaded,
            rows,
            layers=list(dict.fromkeys([*read, *pushes.layers])),
            record_ids=[trial.prompt.record.id for trial in trials],
            edit=lambda layer, hidden, _ids: pushes.added(layer, hidden),
        )
        steered = SteeredRows(
            self._loaded,
            rows,
            [trial.opening for trial in trials],
            [trial.changes for trial in trials],
        )
        logits = with_biases(state.logits, changes)
        told = self._write(steered, logits, trials, lengths, until)
        with torch.inference_mode(mode=False):
            return [
                _written(trial, tokens, hidden[: len(read)].clone())
                for trial, tokens, hidden in zip(trials, told, state.hidden.unbind(), strict=True)
            ]

    def _write(
        self,
        rows: Rows,
        logits: Tensor,
        trials: Sequence[Trial],
        lengths: Sequence[int],
        until: Until,
    ) -> list[list[int]]:
        """Return what the trials, whose prompts have these lengths, write behind their openings."""
        if until == "start":
            return [[] for _ in trials]
        if until == "name":
            return walk_freely(
                rows,
                logits,
                [trial.prompt.trie for trial in trials],
                [trial.opening for trial in trials],
                [trial.wanted for trial in trials],
            )

        def goes_on(row: int, tokens: Sequence[int]) -> bool:
            ended = bool(tokens) and tokens[-1] in self._ends
            return not ended and len(tokens) < self._room(lengths[row])

        return write_greedily(rows, logits, goes_on)

    def _room(self, length: int) -> int:
        """Return how many tokens may follow a prompt of this length."""
        if self._context is None:
            return self._new_tokens
        return min(self._new_tokens, self._context - length)


def _written(trial: Trial, tokens: Sequence[int], hidden: Tensor) -> Written:
    whole = (*trial.opening, *tokens)
    trie = trial.prompt.trie
    return Written(
        tokens=whole,
        name=name_begun_by(trie, whole),
        singled_out=name_singled_out_by(trie, whole),
        hidden=hidden,
    )
