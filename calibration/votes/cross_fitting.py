"""Votes that learn, measured on calls that they did not learn from.

The evaluated calls are divided into folds, near duplicates in one; each fold is scored by what was
fitted on the others. That no call is scored by a fit that saw it, or a near duplicate, is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from toolguard.calibration.datasets.near_duplicates import crossing_near_duplicates, query_tokens
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.datasets.splits import SplitItem
from toolguard.calibration.fitting.layer_choice import assign_folds
from toolguard.calibration.votes.evidence import CallEvidence, Indices, VoteEvidence
from toolguard.calibration.votes.vote import FREE, Cost, Need, Risks
from toolguard.guard.errors import CalibrationError

FOLDS = 5

Scorer = Callable[[Sequence[CallEvidence]], Sequence[float | None]]
"""Gives each call's risk by what was fitted; None for a call it cannot read."""

Fit = Callable[[Sequence[CallEvidence], Indices], Scorer]
"""Fits to calls, whose folds come with them for a choice among penalties.

Raises CalibrationError if the calls do not suffice.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedVote:
    """A risk by something fitted on other calls.

    Where a fold's fit fails, its calls cannot be read.
    """

    name: str
    fit: Fit
    needs: frozenset[Need]
    cost: Cost = FREE

    def risks(self, evidence: VoteEvidence) -> Risks:
        """Return the risks of the calls, each from the fit of the other folds.

        Raises:
            CalibrationError: if a call, or a near duplicate of it, is in the fit that scores it.
        """
        folds = evidence.folds
        if folds is None:
            return Risks.of([None] * len(evidence.calls))
        check_folds([call.judged.record for call in evidence.calls], folds)
        found: list[float | None] = [None] * len(evidence.calls)
        for fold in np.unique(folds):
            rest = np.flatnonzero(folds != fold).tolist()
            own = np.flatnonzero(folds == fold).tolist()
            try:
                score = self.fit([evidence.calls[place] for place in rest], folds[rest])
            except CalibrationError:
                continue
            told = score([evidence.calls[place] for place in own])
            for place, value in zip(own, told, strict=True):
                found[place] = value
        return Risks.of(found)


def fold_calls(records: Sequence[Record], seed: int, folds: int = FOLDS) -> Indices | None:
    """Return (records,) a fold for each; None if all queries are near duplicates of each other."""
    items = [SplitItem.of(record) for record in records]
    try:
        placed = assign_folds(items, folds, seed)
    except CalibrationError:
        return None
    return np.array([placed[record.id] for record in records], dtype=np.int64)


def check_folds(records: Sequence[Record], folds: Indices) -> None:
    """Check that neither a record nor a near duplicate of its query lies in two folds.

    Raises:
        CalibrationError: names the two records.
    """
    seen: dict[str, int] = {}
    for record, fold in zip(records, folds.tolist(), strict=True):
        if seen.setdefault(record.id, fold) != fold:
            raise _leak(record.id, record.id)
    queries = [frozenset(query_tokens(record.query)) for record in records]
    for first, second in crossing_near_duplicates(queries, folds.tolist()):
        raise _leak(records[first].id, records[second].id)


def _leak(first: str, second: str) -> CalibrationError:
    return CalibrationError(
        f"records {first!r} and {second!r} are near duplicates in two folds: "
        "one would be scored by a fit that saw the other",
        hint="make the folds with fold_calls",
        records=(first, second),
    )
