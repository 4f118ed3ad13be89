"""Attention over packed rows that leaves out what no conversation may see.

Dense attention with a mask spends most of its time on pairs of tokens from different conversations.
Here the front of a row, which holds the menu, attends to itself, and the rest goes in chunks: each
sees the front, the chunk before it and itself. A chunk is at least as long as the longest
conversation, so nothing that is visible is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

NAME = "toolguard_packed_rows"
CHUNK = 128  # tokens; the chunks of a batch are the smallest multiple that holds a conversation


@dataclass(frozen=True, slots=True)
class RowMask:
    """What the tokens of one row see, added to attention scores: 0 or minus infinity.

    Args:
        front: (f, f) bfloat16; from and to the first f tokens, the menu among them.
        chunks: (n, c, f + 2 c) bfloat16; from each later chunk of c tokens to the front, to the
            chunk before it and to itself.
    """

    front: Tensor
    chunks: Tensor

    def to(self, device: torch.device) -> RowMask:
        """Return the mask on `device`."""
        return RowMask(self.front.to(device), self.chunks.to(device))


def visible(blocks: Tensor) -> Tensor:
    """Return (length, length) bool: whether a token, in rows, sees another, in columns.

    Args:
        blocks: (length,) int64; the conversation of each token from 1, 0 the menu, -1 padding.
    """
    same = blocks[:, None] == blocks[None, :]
    shared = (blocks == 0)[None, :] & (blocks != -1)[:, None]
    return (same | shared).tril()


def chunk_length(rows: Sequence[Sequence[int]]) -> int:
    """Return the tokens of a chunk for rows with these blocks: a multiple of `CHUNK`."""
    longest = max(
        (row.count(block) for row in rows for block in set(row) - {0}),
        default=1,
    )
    return -(-longest // CHUNK) * CHUNK


def row_mask(blocks: Tensor, chunk: int) -> RowMask:
    """Return the mask of a row.

    Args:
        blocks: (length,) int64, as in `visible`, padding included.
        chunk: tokens of a chunk, no fewer than those of any conversation.
    """
    length = len(blocks)
    menu = int((blocks == 0).sum())
    front = length - (length - menu) // chunk * chunk
    seen = visible(blocks)
    parts = []
    for start in range(front, length, chunk):
        rows = seen[start : start + chunk]
        before = (
            rows[:, start - chunk : start] if start > front else torch.zeros_like(rows[:, :chunk])
        )
        parts.append(torch.cat([rows[:, :front], before, rows[:, start : start + chunk]], dim=1))
    chunks = torch.stack(parts) if parts else seen.new_zeros(0, chunk, front + 2 * chunk)
    return RowMask(_bias(seen[:front, :front]), _bias(chunks))


def _bias(seen: Tensor) -> Tensor:
    # Both values are exact in bfloat16, and a sum with scores keeps the wider type of the two.
    return torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(~seen, float("-inf"))


def packed_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    scaling: float,
    row_masks: Sequence[RowMask],
    **_: Any,
) -> tuple[Tensor, None]:
    """Return (rows, length, heads, head size): attention as transformers' interface defines it.

    Args:
        query: (rows, heads, length, head size).
        key: (rows, key heads, length, head size).
        value: (rows, key heads, length, head size); its dtype is computed in.
        scaling: factor on the scores.
        row_masks: one a row.
    """
    dtype = value.dtype
    query, key = (query * scaling).to(dtype), key.to(dtype)
    with torch.autocast(value.device.type, enabled=False):
        rows = [
            _row_attention(query[n], key[n], value[n], mask) for n, mask in enumerate(row_masks)
        ]
        return torch.stack(rows).transpose(1, 2), None


def _row_attention(query: Tensor, key: Tensor, value: Tensor, mask: RowMask) -> Tensor:
    """Return (heads, length, head size) for one row."""
    count, chunk, _ = mask.chunks.shape
    front = len(mask.front)
    sizes = [front, query.shape[1] - front]
    (q, q_rest), (k, k_rest), (v, v_rest) = (x.split(sizes, dim=1) for x in (query, key, value))
    first = _attend(q[None], k[None], v[None], mask.front[None])[0]
    if not count:
        return first
    rest = _attend(
        q_rest.unflatten(1, (count, chunk)).transpose(0, 1),
        _seen_by_chunks(k, k_rest, count),
        _seen_by_chunks(v, v_rest, count),
        mask.chunks,
    )
    return torch.cat([first, rest.transpose(0, 1).flatten(1, 2)], dim=1)


def _seen_by_chunks(front: Tensor, rest: Tensor, count: int) -> Tensor:
    """Return (chunks, heads, front + 2 chunk, size): keys or values that each chunk looks at."""
    own = rest.unflatten(1, (count, -1)).transpose(0, 1)  # (chunks, heads, chunk, size)
    before = torch.cat([own[:1], own[:-1]])  # the first chunk's is masked
    return torch.cat([front.expand(count, *front.shape), before, own], dim=2)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Return (n, heads, queries, size); the heads that share keys go through one product."""
    n, heads, queries, size = query.shape
    shared = key.shape[1]
    folded = query.reshape(n, shared, heads // shared * queries, size)
    scores = (folded @ key.mT).view(n, shared, heads // shared, queries, -1)
    weights = (scores + bias[:, None, None]).softmax(-1).view(n, shared, -1, key.shape[2])
    return (weights @ value).view(n, heads, queries, size)


AttentionInterface.register(NAME, packed_attention)


@contextmanager
def packed_rows_on(model: PreTrainedModel) -> Iterator[None]:
    """Let the model attend by row masks, passed to its forward as `row_masks`."""
    config: Any = model.config
    usual = config._attn_implementation  # noqa: SLF001 - there is no public getter
    config._attn_implementation = NAME  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation = usual  # noqa: SLF001
