"""Whole turns as a user would get them, and what they are: right, or wrong in one of five ways."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from random import Random
from typing import Any

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.call_check import OUTCOMES, Outcome, check_text
from toolguard.calibration.reading.generation import continue_prompts
from toolguard.calibration.reading.prompts import PromptWriter, context_length
from toolguard.guard.rate import wilson

NEW_TOKENS = 96  # a call takes about 30
_BATCH_TOKENS = 16_384


def write_turns(
    loaded: LoadedModel,
    wire: WireFormat,
    records: Sequence[Record],
    *,
    names_only: bool = False,
    new_tokens: int = NEW_TOKENS,
    batch_tokens: int = _BATCH_TOKENS,
) -> list[str | None]:
    """Return what the model freely writes on each record, greedily; nothing is forced.

    None for a record whose prompt leaves no room for `new_tokens` in the model's context.

    Args:
        loaded: the model.
        wire: how it writes calls.
        records: each offers a tool at least.
        names_only: tell the model the tools' names alone.
        new_tokens: most tokens of a turn.
        batch_tokens: bound on rows times (longest prompt + new tokens) of one batch.

    Raises:
        ConfigError: if a record offers no tools or the template refuses its conversation.
    """
    writer = PromptWriter(loaded, wire, names_only=names_only)
    context = context_length(loaded)
    prompts = [_ids(loaded, writer.text(record)) for record in records]
    fit = [
        place
        for place, prompt in enumerate(prompts)
        if context is None or len(prompt) + new_tokens <= context
    ]
    written = continue_prompts(
        loaded,
        [prompts[place] for place in fit],
        new_tokens=new_tokens,
        batch_tokens=batch_tokens,
    )
    turns: list[str | None] = [None] * len(records)
    for place, tokens in zip(fit, written, strict=True):
        turns[place] = _text(loaded, tokens)
    return turns


def measure_turns(
    loaded: LoadedModel,
    wire: WireFormat,
    records: Sequence[Record],
    *,
    most: int,
    seed: int = 0,
    names_only: bool = False,
    batch_tokens: int = _BATCH_TOKENS,
) -> dict[str, Any]:
    """Return how often a freely written turn is what, overall and by source, as plain JSON values.

    Args:
        loaded: the model.
        wire: how it writes calls.
        records: labelled; at most `most` of them are drawn.
        most: turns to write.
        seed: of the draw.
        names_only: tell the model the tools' names alone.
        batch_tokens: bound on one batch.
    """
    sample = Random(seed).sample(list(records), min(len(records), most))
    turns = write_turns(loaded, wire, sample, names_only=names_only, batch_tokens=batch_tokens)
    found: defaultdict[str, list[Outcome]] = defaultdict(list)
    for record, text in zip(sample, turns, strict=True):
        if text is not None:
            found[record.source].append(check_text(record, text, wire))
    return {
        **_rates([outcome for outcomes in found.values() for outcome in outcomes]),
        "without_room": turns.count(None),
        "by_source": {source: _rates(found[source]) for source in sorted(found)},
    }


def _rates(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    counts = Counter(outcomes)
    n = len(outcomes)
    return {"n": n, "outcomes": {name: wilson(counts[name], n).to_dict() for name in OUTCOMES}}


def _ids(loaded: LoadedModel, text: str) -> list[int]:
    return list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def _text(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    decoded = loaded.tokenizer.decode(
        list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(decoded)
