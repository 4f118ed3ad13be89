"""Changes to a pass of packed rows: vectors added to hidden states, numbers added to logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolguard.adapters.blocks import tap_blocks
from toolguard.adapters.loading import LoadedModel
from toolguard.calibration.reading.packed_rows import Rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Push:
    """What is added to one block's output; vector: (dim,) float32."""

    layer: int
    vector: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitBias:
    """What is added to one token's logit."""

    token: int
    value: float


Change = Push | LogitBias


class Pushes:
    """The pushes of some rows, each at its own layer.

    Args:
        changes: of each row; None, and a bias, pushes nothing.
    """

    def __init__(self, changes: Sequence[Change | None]) -> None:
        self._rows: dict[int, list[int]] = {}
        self._vectors: dict[int, list[Tensor]] = {}
        for row, change in enumerate(changes):
            if isinstance(change, Push):
                self._rows.setdefault(change.layer, []).append(row)
                self._vectors.setdefault(change.layer, []).append(change.vector)

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that are pushed, rising."""
        return tuple(sorted(self._rows))

    def added(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Return the rows' (rows, dim) states after their pushes; None if there are none here."""
        if layer not in self._rows:
            return None
        places = torch.tensor(self._rows[layer], device=hidden.device)
        vectors = torch.stack(self._vectors[layer])  # (pushed rows, dim)
        return hidden.index_add(0, places, vectors.to(hidden.device, hidden.dtype))


def with_biases(logits: Tensor, changes: Sequence[Change | None]) -> Tensor:
    """Return (rows, vocab) logits with each row's bias added."""
    biases = [(row, change) for row, change in enumerate(changes) if isinstance(change, LogitBias)]
    if not biases:
        return logits
    changed = logits.clone()
    for row, bias in biases:
        changed[row, bias.token] += bias.value
    return changed


class SteeredRows:
    """Rows that have started, and what is changed where they come by; they are `Rows` themselves.

    Args:
        loaded: the model.
        rows: stand at the ends of their openings.
        openings: what each row has written.
        changes: of each row, by all that it has written when it is changed.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        rows: Rows,
        openings: Sequence[Sequence[int]],
        changes: Sequence[Mapping[tuple[int, ...], Change]],
    ) -> None:
        self._loaded = loaded
        self._rows = rows
        self._written = [tuple(opening) for opening in openings]
        self._changes = changes

    @property
    def last(self) -> Tensor:
        """(rows of the pass now running,) int64: where each ends, on the axis of positions."""
        return self._rows.last

    def start(self) -> Tensor:
        """Run the rows' own tokens; return (rows, vocab) logits after each row's last one."""
        return self._rows.start()

    def feed(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens to some rows; return (len(rows), vocab) logits after their last ones."""
        for row, piece in zip(rows, tokens, strict=True):
            self._written[row] += tuple(piece)
        changes = [self._changes[row].get(self._written[row]) for row in rows]
        pushes = Pushes(changes)

        def push(layer: int, hidden: Tensor) -> Tensor | None:
            last = self._rows.last.to(hidden.device)
            changed = pushes.added(layer, hidden[0].index_select(0, last))
            return None if changed is None else hidden.index_copy(1, last, changed[None])

        with tap_blocks(self._loaded.view, pushes.layers, push):
            logits = self._rows.feed(rows, tokens)
        return with_biases(logits, changes)
