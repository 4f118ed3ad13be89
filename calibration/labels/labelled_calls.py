"""Labelled calls as fitting sees them: small facts in memory, hidden states a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolguard.calibration.datasets.splits import Split
from toolguard.guard.errors import ShapeError
from toolguard.guard.readout import Readout, margins, top_gaps
from toolguard.guard.signals import ACTIVATION, ACTIVATION_GAP, ENTROPY, LOGPROB

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCall:
    """One labelled call and what the model chose, without its hidden states.

    Args:
        record_id: of the record it comes from.
        split: where it may be used.
        fold: cross-validation fold within `fit`; -1 elsewhere.
        tools: the menu, as indices on the profile's tools axis.
        chosen: position in `tools` of the model's own choice.
        right: positions in `tools` that count as right.
        logprob_margin: natural log; +inf on a menu of one tool.
        entropy: of the model's distribution over the menu, in nats.
    """

    record_id: str
    split: Split
    fold: int
    tools: tuple[int, ...]
    chosen: int
    right: frozenset[int]
    logprob_margin: float
    entropy: float

    @property
    def wrong(self) -> bool:
        """Whether the model's choice is not among the right ones."""
        return self.chosen not in self.right

    @property
    def tool(self) -> int:
        """The chosen tool, on the profile's tools axis."""
        return self.tools[self.chosen]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HiddenBatch:
    """Hidden states of some calls at one layer.

    Args:
        calls: indices of the calls.
        hidden: (calls, dim) float32, in that order.
    """

    calls: tuple[int, ...]
    hidden: Tensor

    def pick(self, wanted: Sequence[bool]) -> HiddenBatch:
        """Return the calls for which `wanted`, one flag a call, is true."""
        places = [place for place, keep in enumerate(wanted) if keep]
        return HiddenBatch(
            calls=tuple(self.calls[place] for place in places), hidden=self.hidden[places]
        )


LayerPass = Callable[[int], Iterator[HiddenBatch]]
"""Gives all calls' hidden states at one layer (a block index), batch by batch, in equal order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readings:
    """What a readout says of some calls; arrays (calls,).

    Args:
        margin: of the model's choice over its best rival in the menu.
        gap: best score minus second best.
        right: whether the readout's own best tool counts as right.
    """

    margin: Floats
    gap: Floats
    right: Booleans

    @classmethod
    def empty(cls, calls: int) -> Readings:
        """Return room for this many calls: NaN until `put`."""
        return cls(
            margin=np.full(calls, np.nan),
            gap=np.full(calls, np.nan),
            right=np.zeros(calls, dtype=bool),
        )

    def put(self, readout: Readout, calls: Sequence[LabelledCall], batch: HiddenBatch) -> None:
        """Read the batch's calls and write what is found at their places."""
        if not batch.calls:
            return
        own = [calls[index] for index in batch.calls]
        scores = menu_scores(readout, [call.tools for call in own], batch.hidden)
        places = list(batch.calls)
        chosen = torch.tensor([call.chosen for call in own])
        self.margin[places] = margins(scores, chosen).double().numpy()
        self.gap[places] = top_gaps(scores).double().numpy()
        best = scores.argmax(dim=1).tolist()
        self.right[places] = [top in call.right for top, call in zip(best, own, strict=True)]

    def at(self, places: Sequence[int]) -> Readings:
        """Return the readings of these calls."""
        rows = list(places)
        return Readings(margin=self.margin[rows], gap=self.gap[rows], right=self.right[rows])


def menu_scores(readout: Readout, menus: Sequence[tuple[int, ...]], hidden: Tensor) -> Tensor:
    """Return each row's scores over its own menu.

    Args:
        readout: of all tools.
        menus: for each row its tools, as indices on the readout's tools axis.
        hidden: (rows, dim).

    Returns: (rows, longest menu) float32; -inf behind the end of a shorter menu.

    Raises:
        ShapeError: if the rows are not as many, or a menu is empty.
    """
    if len(menus) != len(hidden) or not all(menus):
        raise ShapeError(f"{len(menus)} menus do not fit {len(hidden)} hidden states")
    present = sorted({tool for menu in menus for tool in menu})
    place = {tool: column for column, tool in enumerate(present)}
    found = readout.for_menu(present).scores(hidden)  # (rows, tools present)
    width = max(len(menu) for menu in menus)
    columns = [[place[tool] for tool in menu] + [-1] * (width - len(menu)) for menu in menus]
    index = torch.tensor(columns)  # (rows, width)
    return found.gather(1, index.clamp(min=0)).masked_fill(index < 0, -torch.inf)


def wrong_of(calls: Iterable[LabelledCall]) -> Booleans:
    """Return (calls,) whether each call was wrong."""
    return np.array([call.wrong for call in calls], dtype=bool)


def logprob_margins_of(calls: Iterable[LabelledCall]) -> Floats:
    """Return (calls,) log-prob margins."""
    return np.array([call.logprob_margin for call in calls], dtype=np.float64)


def signals_of(calls: Sequence[LabelledCall], readings: Readings) -> dict[str, Floats]:
    """Return each signal as (calls,), larger is safer, as `guard.signals` reads it at run time.

    A call without a reading counts nowhere; zero keeps its place without a NaN.
    """
    return {
        LOGPROB: logprob_margins_of(calls),
        ACTIVATION: np.nan_to_num(readings.margin, nan=0.0, posinf=np.inf, neginf=-np.inf),
        ENTROPY: np.array([-call.entropy for call in calls], dtype=np.float64),
        ACTIVATION_GAP: np.nan_to_num(readings.gap, nan=0.0, posinf=np.inf, neginf=-np.inf),
    }


def places_of(calls: Sequence[LabelledCall], split: Split) -> list[int]:
    """Return the indices of the calls in one split."""
    return [index for index, call in enumerate(calls) if call.split == split]
