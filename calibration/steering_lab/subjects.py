"""Which records give the means and which are steered; no query, nor a near duplicate, does both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from toolguard.calibration.datasets.near_duplicates import (
    group_near_duplicates,
    query_fingerprint,
    query_fingerprints,
    query_tokens,
)
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.datasets.splits import SplitFractions, make_splits
from toolguard.guard.errors import CalibrationError, DatasetError

Turns = Literal["single", "multi"]
"""Whether something was said before the query."""

_HALVES = SplitFractions(fit=0.5, select=0, test=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The records of one laboratory.

    Args:
        donors: their states give the means.
        subjects: they are steered.
        seen: whether the donors are what calibration saw; else they are half of the data.
        near_duplicates: records left out, because their query is nearly one of a donor.

    Raises:
        CalibrationError: if a query is among both.
    """

    donors: tuple[Record, ...]
    subjects: tuple[Record, ...]
    seen: bool
    near_duplicates: int

    def __post_init__(self) -> None:
        both = query_fingerprints(r.query for r in self.donors) & query_fingerprints(
            r.query for r in self.subjects
        )
        if both:
            raise CalibrationError(
                f"{len(both)} queries would give the means and be steered",
                hint="a steered query must not be in the means; take it out of one of the two",
            )


def part_records(
    records: Iterable[Record], seen_queries: frozenset[int], *, donors_a_tool: int, seed: int
) -> Parts:
    """Return which records give the means and which are steered.

    What calibration saw gives the means. Where the data hold nothing of that, half of them does,
    near duplicates kept together.

    Args:
        records: those without a call or without tools are left out.
        seen_queries: fingerprints of the queries that calibration used.
        donors_a_tool: most donors with the same right tool.
        seed: of the draws.

    Raises:
        DatasetError: if no record is left to steer.
    """
    calls = [record for record in records if record.is_call and record.tools]
    donors = [record for record in calls if query_fingerprint(record.query) in seen_queries]
    fresh = [record for record in calls if query_fingerprint(record.query) not in seen_queries]
    seen = bool(donors)
    if not seen and fresh:
        splits = make_splits(fresh, fractions=_HALVES, seed=seed)
        donors = [record for record in fresh if splits.of[record.id] == "fit"]
        fresh = [record for record in fresh if splits.of[record.id] == "test"]
    subjects = _apart_from(donors, fresh)
    if not subjects:
        raise DatasetError(
            f"no record is left to steer: {len(calls)} have a call, {len(donors)} give the means",
            hint="pass data that calibration did not see, beside what it saw",
        )
    return Parts(
        donors=tuple(_some_of_each_tool(donors, donors_a_tool, seed)),
        subjects=tuple(subjects),
        seen=seen,
        near_duplicates=len(fresh) - len(subjects),
    )


def turns_of(record: Record) -> Turns:
    """Return whether the record's query is the first thing that is said."""
    said = [turn for turn in record.conversation if turn["role"] != "system"]
    return "multi" if len(said) > 1 else "single"


def sample_subjects(subjects: Sequence[Record], turns: Turns, most: int, seed: int) -> list[Record]:
    """Return at most `most` of the subjects of one kind, drawn by the seed."""
    own = [record for record in subjects if turns_of(record) == turns]
    return Random(seed).sample(own, min(most, len(own)))


def _apart_from(donors: Sequence[Record], fresh: Sequence[Record]) -> list[Record]:
    """Return the fresh records that no chain of near duplicates ties to a donor."""
    both = [*donors, *fresh]
    groups = group_near_duplicates([frozenset(query_tokens(record.query)) for record in both])
    taken = set(groups[: len(donors)])
    return [
        record
        for record, group in zip(fresh, groups[len(donors) :], strict=True)
        if group not in taken
    ]


def _some_of_each_tool(records: Sequence[Record], most: int, seed: int) -> list[Record]:
    order = sorted(records, key=lambda record: record.id)
    Random(seed).shuffle(order)
    taken: Counter[str] = Counter()
    kept = []
    for record in order:
        name = record.call.name if record.call else ""
        if taken[name] < most:
            taken[name] += 1
            kept.append(record)
    return kept
