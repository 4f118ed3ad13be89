"""Rows of tokens on their way into a model: packed behind what they share, or one by one.

Whoever has prompts that begin alike and wants to read, or go on writing, at their ends, asks here.
How rows are laid out in one pass is `packed_rows`, which of them go together `pack_plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from toolguard.adapters.loading import LoadedModel
from toolguard.calibration.reading.decisions import PrefixStore, unpackable
from toolguard.calibration.reading.pack_plan import PackPlan, plan_packs
from toolguard.calibration.reading.packed_rows import PackedRows, PlainRow, Rows
from toolguard.calibration.reading.shared_text import Ids
from toolguard.guard.errors import ConfigError

BATCH_TOKENS = 4096
# On a CPU, packs of unlike rows gain nothing beyond this or a quarter of the prefix (measured on
# one core, 6 blocks of width 256): each token looks at the whole pack, whatever the mask hides.
_CPU_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBatch:
    """Rows to run together.

    Args:
        members: indices of the rows, in the order in which they are laid out.
        kept: see `pack_plan.Pack`; None runs the one row plainly, whole and alone.
    """

    members: tuple[int, ...]
    kept: tuple[int, ...] | None


class RowPacker:
    """Plans which rows run together, and gives them ready to start.

    Args:
        loaded: the model.
        batch_tokens: most new tokens in one forward; a longer row goes alone. Also the most prefix
            tokens kept. On a CPU smaller packs are used where they are faster.
        share_prefix: False runs each row whole and alone, which is what the fast way must equal.

    Raises:
        ConfigError: if `batch_tokens` is below 1.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        batch_tokens: int = BATCH_TOKENS,
        share_prefix: bool = True,
    ) -> None:
        if batch_tokens < 1:
            raise ConfigError(f"batch_tokens must be at least 1, found {batch_tokens}")
        self._loaded = loaded
        self._batch_tokens = batch_tokens
        self._prefixes = PrefixStore(loaded, batch_tokens)
        self.plain_because = unpackable(loaded) if share_prefix else None
        self._packed = share_prefix and self.plain_because is None

    def batches(self, shared: Ids, suffixes: Sequence[Ids]) -> Iterator[RowBatch]:
        """Yield all rows in batches.

        Args:
            shared: (tokens,) int32 that stand before every row; may be empty.
            suffixes: what follows in each row; none is empty.
        """
        if not self._packed:
            yield from (RowBatch(members=(row,), kept=None) for row in range(len(suffixes)))
            return
        for pack in plan_packs(suffixes, self._plan(len(shared))):
            # A whole row alone needs no mask, which for a long one is large.
            plain = len(pack.members) == 1 and not len(shared)
            yield RowBatch(members=pack.members, kept=None if plain else pack.kept)

    def rows(self, shared: Ids, suffixes: Sequence[Ids], kept: tuple[int, ...] | None) -> Rows:
        """Return the rows of one batch, not started: their suffixes, in the batch's order."""
        if kept is None:
            return PlainRow(self._loaded, np.concatenate([shared, suffixes[0]]))
        return PackedRows(self._loaded, self._prefixes.get(shared), suffixes, kept)

    def _plan(self, prefix_length: int) -> PackPlan:
        on_cpu = self._loaded.device.type == "cpu"
        return PackPlan(
            most=self._batch_tokens,
            enough=max(_CPU_TOKENS, prefix_length // 4) if on_cpu else self._batch_tokens,
            # A block's matrices hold about 12 width² weights, against 2 width a key looked at.
            token_cost=prefix_length + 6 * self._loaded.view.hidden_size,
        )
