"""Greedy continuations: of whole prompts, and of rows that stand in the middle of a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from toolguard.adapters.loading import LoadedModel
from toolguard.calibration.reading.packed_rows import Rows
from toolguard.calibration.reading.prompts import Prompt


@torch.no_grad()
def continue_prompts(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    batch_tokens: int,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, in order, up to its end-of-turn token.

    Args:
        loaded: the model.
        prompts: token ids.
        new_tokens: most tokens to write.
        batch_tokens: bound on rows times (longest prompt + new tokens) of one batch.
    """
    written: list[list[int]] = [[] for _ in prompts]
    for rows in _batches([len(prompt) + new_tokens for prompt in prompts], batch_tokens):
        told = _continue_batch(loaded, [prompts[row] for row in rows], new_tokens)
        for row, tokens in zip(rows, told, strict=True):
            written[row] = tokens
    return written


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices of neighbouring lengths, so that little is padded."""
    rows: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if rows and (len(rows) + 1) * lengths[index] > batch_tokens:
            yield rows
            rows = []
        rows.append(index)
    if rows:
        yield rows


def _continue_batch(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[list[int]]:
    ends = end_tokens(loaded)
    width = max(len(prompt) for prompt in prompts)
    pad = ends[0] if ends else 0
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=loaded.device)
    mask = torch.tensor(
        [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=loaded.device
    )
    output = loaded.model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=list(ends) or None,
    )
    return [_until_end(row, ends) for row in output[:, width:].tolist()]


def write_greedily(
    rows: Rows, logits: Tensor, goes_on: Callable[[int, Sequence[int]], bool]
) -> list[list[int]]:
    """Return what each row writes, always the model's favourite token of the whole vocabulary.

    Args:
        rows: stand where `logits` were read.
        logits: (rows, vocab).
        goes_on: tells from a row and its tokens so far whether it writes another one.
    """
    return write_rows(rows, logits, goes_on, lambda _rows, told: told.argmax(dim=1).tolist())


def write_rows(
    rows: Rows,
    logits: Tensor,
    goes_on: Callable[[int, Sequence[int]], bool],
    choose: Callable[[Sequence[int], Tensor], Sequence[int]],
) -> list[list[int]]:
    """Return what each row writes, its tokens chosen one by one.

    Args:
        rows: stand where `logits` were read.
        logits: (rows, vocab).
        goes_on: tells from a row and its tokens so far whether it writes another one.
        choose: gives the next token of each of some rows from their (rows, vocab) logits.
    """
    written: list[list[int]] = [[] for _ in range(len(logits))]
    writing = [row for row, tokens in enumerate(written) if goes_on(row, tokens)]
    logits = logits[writing]
    while writing:
        for row, token in zip(writing, choose(writing, logits), strict=True):
            written[row].append(token)
        writing = [row for row in writing if goes_on(row, written[row])]
        if writing:
            logits = rows.feed(writing, [written[row][-1:] for row in writing])
    return written


def turn_text(loaded: LoadedModel, prompt: Prompt, tokens: Sequence[int]) -> str:
    """Return the assistant's turn: the opening of the call in the prompt, and what was written."""
    decoded = loaded.tokenizer.decode(
        [*prompt.prefix_ids, *tokens],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    return str(decoded)


def end_tokens(loaded: LoadedModel) -> tuple[int, ...]:
    """Return the ids that end a turn, the model's own first."""
    config = loaded.model.generation_config
    ends = getattr(config, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    ids = [i for i in [*listed, loaded.tokenizer.eos_token_id] if i is not None]
    return tuple(dict.fromkeys(ids))


def _until_end(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    kept: list[int] = []
    for token in tokens:
        kept.append(token)
        if token in ends:
            break
    return kept
