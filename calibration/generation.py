"""Greedy continuations of many prompts, with an optional edit of the last prompt position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from toolguard.adapters.blocks import tap_blocks
from toolguard.adapters.loading import LoadedModel


@torch.no_grad()
def continue_prompts(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    batch_tokens: int,
    layer: int = 0,
    vectors: Tensor | None = None,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, in order, up to its end-of-turn token.

    Args:
        loaded: the model.
        prompts: token ids; the last one is where `vectors` act.
        new_tokens: most tokens to write.
        batch_tokens: bound on rows times (longest prompt + new tokens) of one batch.
        layer: block whose output the vectors are added to.
        vectors: (prompts, dim) float32 added to the last prompt position, once; None edits nothing.
    """
    written: list[list[int]] = [[] for _ in prompts]
    for rows in _batches([len(prompt) + new_tokens for prompt in prompts], batch_tokens):
        added = None if vectors is None else vectors[rows]
        for row, tokens in zip(
            rows,
            _continue_batch(loaded, [prompts[row] for row in rows], new_tokens, layer, added),
            strict=True,
        ):
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
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    layer: int,
    vectors: Tensor | None,
) -> list[list[int]]:
    ends = end_tokens(loaded)
    width = max(len(prompt) for prompt in prompts)
    pad = ends[0] if ends else 0
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=loaded.device)
    mask = torch.tensor(
        [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=loaded.device
    )
    waiting = vectors

    def add(_layer: int, hidden: Tensor) -> Tensor | None:
        nonlocal waiting
        if waiting is None:
            return None
        edited = hidden.clone()  # (rows, positions, dim)
        edited[:, -1] += waiting.to(device=hidden.device, dtype=hidden.dtype)
        waiting = None  # the first forward alone: later ones have no prompt position
        return edited

    with tap_blocks(loaded.view, [layer], add):
        output = loaded.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=list(ends) or None,
        )
    return [_until_end(row, ends) for row in output[:, width:].tolist()]


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
