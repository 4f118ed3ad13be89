"""A readout fitted to hidden states with tool names: nothing else is known of the calls."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolguard.calibration.fitting.statistics import ShrinkageTarget, ToolStatistics
from toolguard.guard.errors import CalibrationError
from toolguard.guard.readout import Readout, ReadoutKind, build_readout

_SHRUNK_TOWARDS: ShrinkageTarget = "diagonal"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NamedStates:
    """Hidden states and what each stands for.

    Args:
        ids: (rows,) records they come from, which fix the order in which they are taken.
        names: (rows,) tool names.
        states: (rows, dim) float32.
    """

    ids: Sequence[str]
    names: Sequence[str]
    states: Tensor

    def first(self, most: int) -> NamedStates:
        """Return at most this many rows a name, in an order fixed by the records' ids."""
        taken: Counter[str] = Counter()
        kept: list[int] = []
        for row in sorted(range(len(self.ids)), key=lambda row: _shuffle_key(self.ids[row])):
            if taken[self.names[row]] < most:
                taken[self.names[row]] += 1
                kept.append(row)
        return self.at(kept)

    def at(self, rows: Sequence[int]) -> NamedStates:
        """Return these rows."""
        return NamedStates(
            ids=[self.ids[row] for row in rows],
            names=[self.names[row] for row in rows],
            states=self.states[list(rows)],
        )


def _shuffle_key(record_id: str) -> bytes:
    return hashlib.blake2b(record_id.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NamedReadout:
    """A readout that knows its tools by name."""

    names: tuple[str, ...]
    readout: Readout

    def menu_scores(self, states: Tensor, menus: Sequence[Sequence[str]]) -> list[Tensor]:
        """Return each state's scores over its own menu, (menu,) float32; -inf without a mean.

        Args:
            states: (rows, dim).
            menus: tool names, one menu a row.
        """
        column = {name: place for place, name in enumerate(self.names)}
        rows: list[list[float]] = self.readout.scores(states).tolist()
        return [
            torch.tensor([row[column[name]] if name in column else -math.inf for name in menu])
            for row, menu in zip(rows, menus, strict=True)
        ]


def fit_named(kind: ReadoutKind, given: NamedStates) -> NamedReadout:
    """Return the readout by the names' means.

    Args:
        kind: `cosine` is the published readout; `lda` shrinks the pooled covariance towards its
            diagonal, so its margin is half a difference of squared Mahalanobis distances.
        given: what the means are made of.

    Raises:
        CalibrationError: if the states do not determine it.
    """
    if not len(given.ids):
        raise CalibrationError("there is no hidden state to make a mean from")
    names = tuple(sorted(set(given.names)))
    place = {name: at for at, name in enumerate(names)}
    statistics = ToolStatistics(len(names), given.states.shape[1], pooled=kind == "lda")
    statistics.update(given.states, torch.tensor([place[name] for name in given.names]))
    covariance = statistics.shrunk_covariance(_SHRUNK_TOWARDS).matrix if kind == "lda" else None
    readout = build_readout(kind, statistics.means, statistics.global_mean(), covariance)
    return NamedReadout(names=names, readout=readout)
