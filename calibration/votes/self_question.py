"""P(True): the model is shown the call it would make and asked whether it is right.

Source: Kadavath et al. (2022), "Language models (mostly) know what they know", arXiv 2207.05221.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.records import Message, Record
from toolguard.calibration.reading.prompt_groups import prompt_groups, without_openings
from toolguard.calibration.reading.prompts import OnSkip, PromptWriter
from toolguard.calibration.reading.row_packs import BATCH_TOKENS, RowPacker
from toolguard.guard.errors import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION = (
    "Proposed: a call of the tool {name}. Is this the right tool to call now? Answer yes or no."
)
_YES = ("Yes", "yes", " Yes", " yes", "YES")
_NO = ("No", "no", " No", " no", "NO")


def ask_about_calls(
    loaded: LoadedModel,
    wire: WireFormat,
    records: Sequence[Record],
    chosen: Mapping[str, str],
    *,
    names_only: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    on_skip: OnSkip,
) -> dict[str, float]:
    """Return, by record id, the log-odds of yes against no as the first token of the answer.

    The question stands at the end of the conversation, behind the same tools. A model too small
    to understand it answers all the same: then the log-odds tell nothing, which is a finding.

    Args:
        loaded: the model.
        wire: puts the conversation to it.
        records: whose calls are asked about.
        chosen: record id -> name of the tool that would be called.
        names_only: as in `collect`.
        batch_tokens: as in `collect`.
        on_skip: told of each record that has no prompt.

    Raises:
        UnsupportedModel: if the tokenizer begins yes and no with the same token.
    """
    answers = first_tokens(loaded.tokenizer)
    writer = PromptWriter(loaded, wire, names_only=names_only)
    packer = RowPacker(loaded, batch_tokens=batch_tokens)
    asked = [with_question(record, chosen[record.id]) for record in records]
    return {
        record_id: float(_log_mass(logits, answers[0]) - _log_mass(logits, answers[1]))
        for record_id, logits in _answers(packer, writer, asked, on_skip)
    }


def with_question(record: Record, name: str) -> Record:
    """Return the record with the question about a call at the end of its conversation."""
    question = QUESTION.format(name=name)
    messages = list(record.messages or (Message(role="user", content=record.query),))
    if messages[-1].role == "user":
        # Most templates want turns to take turns, so the question goes into the last one.
        content = f"{messages[-1].content or ''}\n\n{question}"
        messages[-1] = messages[-1].model_copy(update={"content": content})
    else:
        messages.append(Message(role="user", content=question))
    return record.model_copy(update={"messages": tuple(messages)})


def first_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Return the tokens that yes and no, however they are spelled, can begin with.

    A token that begins both, as a lone space may, tells nothing and is left out.

    Raises:
        UnsupportedModel: if nothing is left of one of them.
    """
    yes, no = (
        {tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words}
        for words in (_YES, _NO)
    )
    if not yes - no or not no - yes:
        raise UnsupportedModel(
            "the tokenizer begins yes and no with the same token, so the answer cannot be read",
            hint="leave p_true out of --votes",
        )
    return torch.tensor(sorted(yes - no)), torch.tensor(sorted(no - yes))


@torch.inference_mode()
def _answers(
    packer: RowPacker, writer: PromptWriter, records: Sequence[Record], on_skip: OnSkip
) -> Iterator[tuple[str, Tensor]]:
    """Yield record ids with (vocab,) float32 logits of the turn's first token."""
    for group in prompt_groups(writer, records, on_skip):
        shared, suffixes = without_openings(group)
        for batch in packer.batches(shared, suffixes):
            rows = packer.rows(shared, [suffixes[member] for member in batch.members], batch.kept)
            for member, logits in zip(batch.members, rows.start().float(), strict=True):
                yield group.prompts[member].record.id, logits.cpu()


def _log_mass(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.logsumexp(logits[tokens], dim=0)
