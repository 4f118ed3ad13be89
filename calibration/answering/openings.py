"""What a model is about to do where a call could start, read on labelled records.

A prompt runs up to its last token before a call's opening: there the model goes on with a call or
with words. The opening is then fed, so that the decision token of the call it would make is read
too, for the few tokens that this takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.answering.labels import NextStep, next_step
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.reading.decisions import read_decisions
from toolguard.calibration.reading.packed_rows import Rows
from toolguard.calibration.reading.prompt_groups import prompt_groups
from toolguard.calibration.reading.prompts import OnSkip, Prompt, PromptGroup, PromptWriter
from toolguard.calibration.reading.row_packs import BATCH_TOKENS, RowPacker
from toolguard.calibration.reading.shared_text import Ids
from toolguard.guard.answer_gate import opening_log_odds, opening_tokens

WINDOW = 2048  # records looked at together; bounds the memory


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opening:
    """What was read of one record where a call could start.

    Args:
        record_id: the record's.
        source: data set it comes from.
        query: its text, to keep near duplicates together.
        step: what is right to do next.
        tool: name of the right tool; empty if no call is right.
        menu_size: number of tools offered.
        prompt_tokens: tokens up to here.
        log_odds: natural log, of the opening of a call against everything else.
        starts: whether the likeliest next token opens a call.
        hidden: (layers, dim) float32, the tapped blocks' outputs here.
        decision: (layers, dim) float32, the same at the decision token of a call opened here;
            (0, dim) if it was not read.
    """

    record_id: str
    source: str
    query: str
    step: NextStep
    tool: str
    menu_size: int
    prompt_tokens: int
    log_odds: float
    starts: bool
    hidden: Tensor
    decision: Tensor


def read_openings(  # noqa: PLR0913 - all but three have defaults
    loaded: LoadedModel,
    wire: WireFormat,
    records: Iterable[Record],
    *,
    layers: Sequence[int],
    on_skip: OnSkip,
    batch_tokens: int = BATCH_TOKENS,
    names_only: bool = False,
    share_prefix: bool = True,
    decisions: bool = True,
    on_done: Callable[[int], object] | None = None,
) -> Iterator[Opening]:
    """Yield what was read of each record that tells what is right to do next.

    Within a window of records those that run together come together.

    Args:
        loaded: the model.
        wire: how it writes calls.
        records: read lazily, a window at a time.
        layers: distinct block indices to read.
        on_skip: told of each record that has no prompt.
        batch_tokens: most new tokens in one forward.
        names_only: tell the model the tools' names alone.
        share_prefix: False runs each prompt whole and alone, which is what the fast way must equal.
        decisions: whether to read the decision tokens too.
        on_done: told how many more records were read.

    Raises:
        ConfigError: if a layer is no block of the model.
        ReadoutError: if a reading is not finite; names the record.
    """
    writer = PromptWriter(loaded, wire, names_only=names_only)
    packer = RowPacker(loaded, batch_tokens=batch_tokens, share_prefix=share_prefix)
    telling = (record for record in records if next_step(record) is not None)
    while window := list(itertools.islice(telling, WINDOW)):
        for group in prompt_groups(writer, window, on_skip):
            shared, rows = _cut(group)
            for batch in packer.batches(shared, rows):
                members = [group.prompts[member] for member in batch.members]
                own = [rows[member] for member in batch.members]
                ready = packer.rows(shared, own, batch.kept)
                state = _read(loaded, ready, members, tuple(layers), decisions=decisions)
                lengths = [len(shared) + len(row) for row in own]
                yield from _openings(members, lengths, *state)
                if on_done is not None:
                    on_done(len(members))


def _cut(group: PromptGroup) -> tuple[Ids, list[Ids]]:
    """Return what the prompts share, and the rest of each without the opening of a call."""
    whole = [np.concatenate([group.shared, prompt.suffix]) for prompt in group.prompts]
    cut = [
        ids[: len(ids) - len(prompt.prefix_ids)]
        for ids, prompt in zip(whole, group.prompts, strict=True)
    ]
    # Equal queries may share all of their prompts: each row keeps a token of its own.
    length = min([len(group.shared), *(len(ids) - 1 for ids in cut)])
    return group.shared[:length], [ids[length:] for ids in cut]


@torch.inference_mode()
def _read(
    loaded: LoadedModel,
    rows: Rows,
    prompts: Sequence[Prompt],
    layers: tuple[int, ...],
    *,
    decisions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (rows, vocab) logits and (rows, layers, dim) states here and at decision tokens."""
    ids = [prompt.record.id for prompt in prompts]
    here = read_decisions(loaded, rows, layers=layers, record_ids=ids)
    fed = [prompt.prefix_ids for prompt in prompts]
    if not decisions:
        return here.logits, here.hidden, here.hidden[:, :0]
    if not all(fed):  # a call opens with its name: the decision token is this one
        return here.logits, here.hidden, here.hidden
    there = read_decisions(loaded, rows, layers=layers, record_ids=ids, fed=fed)
    return here.logits, here.hidden, there.hidden


def _openings(
    prompts: Sequence[Prompt],
    lengths: Sequence[int],
    logits: Tensor,
    hidden: Tensor,
    decision: Tensor,
) -> Iterator[Opening]:
    for place, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        record, step = prompt.record, next_step(prompt.record)
        if step is None:
            continue
        tokens = opening_tokens(prompt.prefix_ids, prompt.trie)
        yield Opening(
            record_id=record.id,
            source=record.source,
            query=record.query,
            step=step,
            tool=record.call.name if record.call else "",
            menu_size=len(record.tools),
            prompt_tokens=length,
            log_odds=opening_log_odds(logits[place], tokens),
            starts=int(logits[place].argmax()) in tokens,
            # Copied off the inference-mode tensors of the whole batch.
            hidden=hidden[place].clone(),
            decision=decision[place].clone(),
        )
