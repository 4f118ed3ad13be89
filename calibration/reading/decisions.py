"""The state of a model at the decision tokens of a few prompts, read and, if asked for, changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toolguard.adapters.blocks import tap_blocks
from toolguard.adapters.loading import LoadedModel
from toolguard.calibration.reading.packed_rows import (
    PackedRows,
    PlainRow,
    Prefix,
    Rows,
    run_prefix,
    sliding_windows,
)
from toolguard.calibration.reading.shared_text import Ids
from toolguard.guard.errors import ReadoutError, ShapeError

Edit = Callable[[int, Tensor, list[str]], Tensor | None]
"""Changes what a tapped block gives at the decision tokens before the next block sees it.

Gets the block index, (rows, dim) hidden states in the model's dtype and on its device, and the ids
of the rows' records; returns what replaces them, of the same shape, or None to leave them.
"""

_KNOWN_TYPES = frozenset({"full_attention", "sliding_attention"})
# How far positions turn depends on the longest position of a pass, so passes cannot be split.
_UNSPLITTABLE_ROPES = frozenset({"dynamic", "longrope"})
_LONGEST_CHECK = 1024  # tokens; a longer window is taken on trust
# Relative to the largest logit; a wrong mask is off by the size of the logits themselves.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecisionState:
    """Where a model stands at the decision tokens of some rows.

    Args:
        rows: can go on from there on the same cache.
        logits: (rows, vocab) after the decision token, on the model's device.
        hidden: (rows, layers, dim) float32 on the CPU: what each tapped block gave at the decision
            token, before any edit of that block.
    """

    rows: Rows
    logits: Tensor
    hidden: Tensor


@torch.inference_mode()
def read_decisions(
    loaded: LoadedModel,
    rows: Rows,
    *,
    layers: Sequence[int],
    record_ids: Sequence[str],
    edit: Edit | None = None,
    fed: Sequence[Sequence[int]] | None = None,
) -> DecisionState:
    """Run rows and return their state at their last tokens.

    Args:
        loaded: the model.
        rows: new, unless `fed` is given; their last tokens are those that are read.
        layers: distinct block indices, in the order wanted.
        record_ids: one a row.
        edit: see `Edit`; applied in this pass only.
        fed: tokens that rows which have started go on with, one piece a row; None starts them.

    Raises:
        ConfigError: if a layer is no block.
        ReadoutError: if a hidden state is not finite; the row is in the field `record_id`.
        ShapeError: if `edit` returns another shape.
    """
    taken: dict[int, Tensor] = {}

    def tap(layer: int, hidden: Tensor) -> Tensor | None:
        last = rows.last.to(hidden.device)
        read = hidden[0].index_select(0, last)  # (rows, dim)
        taken[layer] = read.to("cpu", torch.float32, copy=True)
        changed = edit(layer, read, list(record_ids)) if edit else None
        if changed is None:
            return None
        return _with_rows(hidden, last, changed)

    with tap_blocks(loaded.view, layers, tap):
        logits = rows.start() if fed is None else rows.feed(range(len(fed)), fed)
    shape = (len(record_ids), 0, loaded.view.hidden_size)
    hidden = torch.stack([taken[layer] for layer in layers], 1) if taken else torch.empty(shape)
    _require_finite(hidden, record_ids)
    return DecisionState(rows=rows, logits=logits, hidden=hidden)


def _with_rows(hidden: Tensor, places: Tensor, changed: Tensor) -> Tensor:
    """Return (1, positions, dim) with the rows at `places` replaced."""
    if changed.shape != (len(places), hidden.shape[2]):
        raise ShapeError(
            f"an edit must keep the shape {(len(places), hidden.shape[2])}, "
            f"found {tuple(changed.shape)}"
        )
    return hidden.index_copy(1, places, changed[None].to(hidden.device, hidden.dtype))


def _require_finite(hidden: Tensor, record_ids: Sequence[str]) -> None:
    finite = torch.isfinite(hidden).flatten(1).all(dim=1)
    if bool(finite.all()):
        return
    record_id = record_ids[int((~finite).nonzero()[0])]
    raise ReadoutError(
        f"record {record_id!r}: its hidden states are not finite",
        hint="check the weights for NaN, or try --dtype float32",
        record_id=record_id,
    )


def unpackable(loaded: LoadedModel) -> str | None:
    """Return why rows cannot be packed with this model, or None if a trial run shows they can.

    The trial compares two packed rows with the same rows alone, on a few tokens, or on as many as
    it takes to pass the end of a sliding window of at most 1,024.
    """
    config = loaded.model.config.get_text_config(decoder=True)
    if kinds := set(getattr(config, "layer_types", None) or ()) - _KNOWN_TYPES:
        return f"it has layers of type {', '.join(sorted(kinds))}"
    if ropes := _rope_types(getattr(config, "rope_parameters", None)) & _UNSPLITTABLE_ROPES:
        return f"its positions are scaled by length (rope_type {', '.join(sorted(ropes))})"
    attention = getattr(loaded.model.config, "_attn_implementation", None)
    if attention not in {"sdpa", "eager"}:
        return f"its attention ({attention}) takes no mask of its own"
    try:
        error = _packing_error(loaded)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as failure:
        return f"a trial run failed: {type(failure).__name__}"
    if error <= _TOLERANCE.get(loaded.model.dtype, _HALF_TOLERANCE):
        return None
    return f"a trial run differs from a plain one by {error:.1e} of the largest logit"


def _rope_types(parameters: object) -> set[str]:
    """Return the rope types in a config's parameters, which may be nested by layer type."""
    if not isinstance(parameters, dict):
        return set()
    found = {str(parameters["rope_type"])} if "rope_type" in parameters else set()
    return found.union(*(_rope_types(value) for value in parameters.values()))


@torch.inference_mode()
def _packing_error(loaded: LoadedModel) -> float:
    """Return how far packed logits are from plain ones, as a part of the largest."""
    windows = sliding_windows(loaded)
    length = windows.window + 8 if windows and windows.window <= _LONGEST_CHECK else 24
    vocabulary = loaded.view.unembedding.shape[0]
    tokens: Ids = (np.arange(length + 16, dtype=np.int32) * 7 + 3) % vocabulary
    shared, rest = tokens[:length], tokens[length:]
    suffixes = [rest[:6], np.concatenate([rest[:2], rest[7:16]])]
    packed = PackedRows(loaded, run_prefix(loaded, shared), suffixes, (0, 2))
    plain = [PlainRow(loaded, np.concatenate([shared, suffix])) for suffix in suffixes]
    found = [packed.start(), packed.feed((1, 0), ((5, 6), (7,)))]
    expected = [
        torch.cat([row.start() for row in plain]),
        torch.cat([plain[1].feed((0,), ((5, 6),)), plain[0].feed((0,), ((7,),))]),
    ]
    pairs = zip(found, expected, strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


class PrefixStore:
    """The prefixes used last, as far as they fit.

    Args:
        loaded: the model they belong to.
        tokens: how many tokens are kept in all; the prefix asked for last is kept in any case.
    """

    def __init__(self, loaded: LoadedModel, tokens: int) -> None:
        self._loaded = loaded
        self._tokens = tokens
        self._kept: dict[bytes, Prefix] = {}

    def get(self, ids: Ids) -> Prefix:
        """Return the state after `ids`, run now if it is not there."""
        key = ids.tobytes()
        prefix = self._kept.pop(key, None) or run_prefix(self._loaded, ids)
        self._kept[key] = prefix  # last in order
        while sum(kept.length for kept in self._kept.values()) > max(self._tokens, prefix.length):
            del self._kept[next(iter(self._kept))]
        return prefix
