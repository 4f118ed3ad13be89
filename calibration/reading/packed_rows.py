"""Many prompts in one forward pass: rows laid end to end behind a prefix that all of them share.

    keys      prefix (cached once)     | row 0      | row 1      | row 2    | ...
    row 1     sees all of it           |            | its past   |          |

Each token sees the prefix and its own row's past, by a mask; positions count as if the row stood
alone. Nothing is padded, and the prefix is neither repeated nor copied for each row. Rows that
begin alike (steps of one conversation) share those tokens too. Every row owns its last token, so a
change made there reaches no other row.

A pass can be followed by more for some of the rows, on the same cache. `PlainRow` is the same for
one row without any of this: what packed rows must equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from toolguard.adapters.loading import LoadedModel
from toolguard.calibration.reading.shared_text import Ids

LayerState = tuple[Tensor, Tensor]
"""Keys and values of one block: (1, heads, tokens, head width) each."""


class Rows(Protocol):
    """Rows of tokens inside a model that can go on, some of them or all."""

    @property
    def last(self) -> Tensor:
        """(rows of the pass now running,) int64: where each ends, on the axis of positions."""

    def start(self) -> Tensor:
        """Run the rows' own tokens; return (rows, vocab) logits after each row's last one."""

    def feed(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens to some rows; return (len(rows), vocab) logits after their last ones."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefix:
    """Tokens that went through the model once.

    Args:
        length: number of tokens.
        states: for each block what it cached; empty if the length is 0.
    """

    length: int
    states: tuple[LayerState, ...]

    def new_cache(self) -> DynamicCache:
        """Return a cache that begins with the prefix; growing it leaves the prefix as it is."""
        cache = DynamicCache()
        for keys, values in self.states:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return cache


@torch.inference_mode()
def run_prefix(loaded: LoadedModel, ids: Ids) -> Prefix:
    """Return the state of the model after `ids`, (tokens,) int32, which may be empty."""
    if not len(ids):
        return Prefix(length=0, states=())
    # Without a config every layer keeps all its tokens; windows are left to the masks.
    cache = DynamicCache()
    loaded.model(
        input_ids=torch.from_numpy(ids)[None].to(loaded.device, torch.int64),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    layers = cast("list[Any]", cache.layers)
    return Prefix(length=len(ids), states=tuple((layer.keys, layer.values) for layer in layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Which blocks see only so many tokens back.

    Args:
        window: a token sees itself and `window - 1` tokens before it.
        types: the config's distinct layer types if they differ, else empty: then all blocks slide.
    """

    window: int
    types: tuple[str, ...]


def sliding_windows(loaded: LoadedModel) -> Windows | None:
    """Return the model's sliding windows, or None if all blocks see everything."""
    config: Any = loaded.model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    types = tuple(sorted(set(getattr(config, "layer_types", None) or ())))
    if not window or types == ("full_attention",):
        return None
    return Windows(window=int(window), types=types if len(types) > 1 else ())


class PackedRows:
    """The rows of one pack.

    Args:
        loaded: the model.
        prefix: what comes before every row.
        rows: (tokens,) int32 each, in the pack's order, whole.
        kept: see `pack_plan.Pack`.
    """

    def __init__(
        self, loaded: LoadedModel, prefix: Prefix, rows: Sequence[Ids], kept: Sequence[int]
    ) -> None:
        self._loaded = loaded
        self._prefix = prefix.length
        self._cache = prefix.new_cache()
        self._windows = sliding_windows(loaded)
        self._rows = [torch.from_numpy(row).to(torch.int64) for row in rows]
        self._kept = tuple(kept)
        self._paths: list[Tensor] = []  # for each row the packed places of its tokens, in order
        self._positions = torch.empty(0, dtype=torch.int64)  # of all packed tokens
        self.last = torch.empty(0, dtype=torch.int64)

    def start(self) -> Tensor:
        """Run the rows' own tokens; return (rows, vocab) logits after each row's last one."""
        past: list[Tensor] = []
        place = 0
        for row, kept in zip(self._rows, self._kept, strict=True):
            past.append(self._paths[-1][:kept] if kept else torch.empty(0, dtype=torch.int64))
            fresh = torch.arange(place, place + len(row) - kept)
            self._paths.append(torch.cat([past[-1], fresh]))
            place += len(fresh)
        tokens = [row[kept:] for row, kept in zip(self._rows, self._kept, strict=True)]
        return self._forward(tokens, past)

    def feed(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens to some rows; return (len(rows), vocab) logits after their last ones."""
        past = [self._paths[row] for row in rows]
        place = len(self._positions)
        for row, piece in zip(rows, tokens, strict=True):
            self._paths[row] = torch.cat(
                [self._paths[row], torch.arange(place, place + len(piece))]
            )
            place += len(piece)
        return self._forward([torch.tensor(piece) for piece in tokens], past)

    def _forward(self, tokens: Sequence[Tensor], past: Sequence[Tensor]) -> Tensor:
        """Run `tokens`, one piece a row, each of which sees its `past` and itself."""
        positions = torch.cat(
            [
                torch.arange(len(piece)) + (self._prefix + len(seen))
                for piece, seen in zip(tokens, past, strict=True)
            ]
        )
        seen_before = len(self._positions)
        self._positions = torch.cat([self._positions, positions])
        mask = self._mask(_allowed(tokens, past, seen_before), positions)
        device = self._loaded.device
        self.last = torch.tensor([len(piece) for piece in tokens]).cumsum(0) - 1
        output = self._loaded.model(
            input_ids=torch.cat(list(tokens))[None].to(device),
            attention_mask=mask,
            position_ids=positions[None].to(device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=self.last.to(device),
        )
        return cast("Tensor", output.logits[0])  # (rows, vocab)

    def _mask(self, allowed: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the additive mask (1, 1, new tokens, prefix and packed tokens), by layer type."""
        device, dtype = self._loaded.device, self._loaded.model.dtype
        hidden = torch.zeros(len(positions), self._prefix + len(self._positions), dtype=torch.bool)
        hidden[:, self._prefix :] = ~allowed
        windows = self._windows
        if windows is None or int(positions.max()) < windows.window:
            return _additive(hidden, dtype, device)
        keys = torch.cat([torch.arange(self._prefix), self._positions])
        beyond = hidden | (positions[:, None] - keys[None] >= windows.window)
        if not windows.types:
            return _additive(beyond, dtype, device)
        full, sliding = _additive(hidden, dtype, device), _additive(beyond, dtype, device)
        return {kind: full if kind == "full_attention" else sliding for kind in windows.types}


def _allowed(tokens: Sequence[Tensor], past: Sequence[Tensor], before: int) -> Tensor:
    """Return (new tokens, packed tokens) bool: what each new token sees of the packed ones."""
    count = sum(len(piece) for piece in tokens)
    allowed = torch.zeros(count, before + count, dtype=torch.bool)
    start = 0
    for piece, seen in zip(tokens, past, strict=True):
        end = start + len(piece)
        allowed[start:end, seen] = True
        allowed[start:end, before + start : before + end] = torch.ones(
            len(piece), len(piece), dtype=torch.bool
        ).tril_()
        start = end
    return allowed


def _additive(hidden: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)
    return mask[None, None].to(device)


class PlainRow:
    """One row alone, whole, as its user would run it: no mask, no shared prefix.

    Args:
        loaded: the model.
        ids: (tokens,) int32.
    """

    def __init__(self, loaded: LoadedModel, ids: Ids) -> None:
        self._loaded = loaded
        self._ids = ids
        self._cache = DynamicCache(config=loaded.model.config)
        self.last = torch.empty(0, dtype=torch.int64)

    def start(self) -> Tensor:
        """Run the row; return (1, vocab) logits after its last token."""
        return self._forward(torch.from_numpy(self._ids).to(torch.int64))

    def feed(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:  # noqa: ARG002
        """Append tokens to the row; return (1, vocab) logits after the last one."""
        return self._forward(torch.tensor(tokens[0]))

    def _forward(self, tokens: Tensor) -> Tensor:
        self.last = torch.tensor([len(tokens) - 1])
        output = self._loaded.model(
            input_ids=tokens[None].to(self._loaded.device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cast("Tensor", output.logits[0])  # (1, vocab)
