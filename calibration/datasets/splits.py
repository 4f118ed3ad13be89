"""Fit, select and test splits that share no query, and the check of that.

Records whose queries are near duplicates form one group; a group lies in one split. Splits depend
on the texts and the seed, not on the order. Turns of one conversation are told apart by their
queries: tying whole conversations together would, through replies as common as "yes, please",
make most of a dialogue data set one group.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from toolguard.calibration.datasets.draw_key import draw_key
from toolguard.calibration.datasets.near_duplicates import (
    crossing_near_duplicates,
    group_near_duplicates,
    query_fingerprint,
    query_fingerprints,
    query_tokens,
)
from toolguard.calibration.datasets.records import Record
from toolguard.guard.errors import CalibrationError, ConfigError, DatasetError

__all__ = [
    "SPLITS",
    "Leak",
    "Split",
    "SplitFractions",
    "SplitItem",
    "Splits",
    "find_leaks",
    "leak_check",
    "make_splits",
    "query_fingerprint",
    "query_fingerprints",
]

Split = Literal["fit", "select", "test"]
SPLITS: tuple[Split, ...] = ("fit", "select", "test")

_SHOWN_LEAKS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFractions:
    """Share of the records wanted in each split, in [0, 1], together 1.

    Raises:
        ConfigError: if they are not that, or nothing is left for fitting.
    """

    fit: float = 0.5
    select: float = 0.25
    test: float = 0.25

    def __post_init__(self) -> None:
        shares = (self.fit, self.select, self.test)
        # Written so that NaN fails.
        valid = all(0 <= share <= 1 for share in shares) and math.isclose(sum(shares), 1)
        if not valid or self.fit == 0:
            raise ConfigError(
                f"split fractions must lie in [0, 1] and add up to 1, found {shares}",
                hint="give fit more than 0, as 0.5, 0.25, 0.25",
            )

    def of(self, split: Split) -> float:
        """Return the share of one split."""
        return {"fit": self.fit, "select": self.select, "test": self.test}[split]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitItem:
    """What splitting needs of a record.

    Args:
        id: the record's.
        query: the text that must not be in two splits.
        tool: name of the right tool; empty if there is no call.
    """

    id: str
    query: str
    tool: str

    @classmethod
    def of(cls, record: Record) -> Self:
        """Return the item of a record."""
        tool = record.call.name if record.call else ""
        return cls(id=record.id, query=record.query, tool=tool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Ids of two records in different splits whose queries are near duplicates."""

    first: str
    second: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """A split for each record.

    Args:
        items: what was split, in the order given.
        of: split by record id.
        groups: number of groups.
        seed: what it was made with.
    """

    items: tuple[SplitItem, ...]
    of: Mapping[str, Split]
    groups: int
    seed: int

    def ids(self, split: Split) -> tuple[str, ...]:
        """Return the ids in one split, in the order given."""
        return tuple(item.id for item in self.items if self.of[item.id] == split)

    def counts(self) -> dict[Split, int]:
        """Return the number of records in each split."""
        found = Counter(self.of[item.id] for item in self.items)
        return {split: found[split] for split in SPLITS}

    def fingerprints(self, split: Split) -> frozenset[int]:
        """Return the 64-bit fingerprints of the queries in one split."""
        return query_fingerprints(i.query for i in self.items if self.of[i.id] == split)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Items that stay together; `key` orders groups as if by chance, by content and seed alone."""

    key: bytes
    members: tuple[int, ...]
    tools: frozenset[str]


def make_splits(
    records: Iterable[Record | SplitItem],
    *,
    fractions: SplitFractions | None = None,
    seed: int = 0,
) -> Splits:
    """Return deterministic splits, stratified by the right tool's name.

    A tool with at least two groups has one in `fit`, whatever the fractions; one with a single
    group may lie anywhere.

    Args:
        records: read once; only ids, queries and tools are kept.
        fractions: shares of the records wanted; by default a half, a quarter, a quarter.
        seed: another seed gives other splits of the same groups.

    Raises:
        DatasetError: if there is no record, or two have the same id.
    """
    items = tuple(r if isinstance(r, SplitItem) else SplitItem.of(r) for r in records)
    if not items:
        raise DatasetError(
            "there is no record to split", hint="check the data with `data validate`"
        )
    if len({item.id for item in items}) < len(items):
        twice = Counter(item.id for item in items).most_common(1)[0][0]
        raise DatasetError(f"record id {twice!r} occurs twice", hint="make ids unique")
    groups = _groups(items, seed)
    places = _assign(groups, fractions or SplitFractions())
    of = {
        items[member].id: place
        for group, place in zip(groups, places, strict=True)
        for member in group.members
    }
    return Splits(items=items, of=of, groups=len(groups), seed=seed)


def find_leaks(splits: Splits) -> tuple[Leak, ...]:
    """Return near duplicates in different splits, one pair or more for each that has any.

    The search is exact and does not use the groups the splits were made from.
    """
    items = splits.items
    parts = [SPLITS.index(splits.of[item.id]) for item in items]
    sets = [frozenset(query_tokens(item.query)) for item in items]
    pairs = crossing_near_duplicates(sets, parts)
    return tuple(Leak(first=items[one].id, second=items[two].id) for one, two in pairs)


def leak_check(splits: Splits) -> None:
    """Check that no query, nor a near duplicate of one, lies in two splits.

    Raises:
        CalibrationError: if one does; `fields["leaks"]` has them all.
    """
    leaks = find_leaks(splits)
    if leaks:
        shown = "; ".join(f"{leak.first} and {leak.second}" for leak in leaks[:_SHOWN_LEAKS])
        raise CalibrationError(
            f"{len(leaks)} pairs of near duplicates lie in different splits: {shown}",
            hint="make the splits with make_splits, which keeps near duplicates together",
            leaks=leaks,
        )


def _groups(items: Sequence[SplitItem], seed: int) -> list[_Group]:
    """Return the groups in the order of their keys."""
    members = defaultdict(list)
    numbers = group_near_duplicates([frozenset(query_tokens(item.query)) for item in items])
    for place, number in enumerate(numbers):
        members[number].append(place)
    return sorted((_group(items, own, seed) for own in members.values()), key=lambda g: g.key)


def _group(items: Sequence[SplitItem], members: Sequence[int], seed: int) -> _Group:
    smallest = min(query_fingerprint(items[member].query) for member in members)
    return _Group(
        key=draw_key(smallest, seed),
        members=tuple(members),
        tools=frozenset(items[member].tool for member in members),
    )


def _assign(groups: Sequence[_Group], fractions: SplitFractions) -> list[Split]:
    """Return a split for each group: first one of each tool to fit, then what each split lacks."""
    by_tool = defaultdict(list)
    for place, group in enumerate(groups):
        for tool in group.tools:
            by_tool[tool].append(place)
    chosen: dict[int, Split] = {}
    # Rarest tools first: a group that serves a rare tool may serve a common one too.
    for _, tool in sorted((len(places), tool) for tool, places in by_tool.items()):
        if len(by_tool[tool]) > 1 and not any(place in chosen for place in by_tool[tool]):
            chosen[by_tool[tool][0]] = "fit"
    rarity = {tool: (len(places), tool) for tool, places in by_tool.items()}
    stock = _Stock(fractions)
    strata = [_stratum(group, rarity) for group in groups]
    for place, split in chosen.items():
        stock.add(strata[place], split, len(groups[place].members))
    for place, group in enumerate(groups):
        if place not in chosen:
            chosen[place] = stock.neediest(strata[place], len(group.members))
            stock.add(strata[place], chosen[place], len(group.members))
    return [chosen[place] for place in range(len(groups))]


def _stratum(group: _Group, rarity: Mapping[str, tuple[int, str]]) -> str | None:
    """Return the group's rarest tool; None, one stratum for all, if no tool has another group."""
    groups_of_tool, tool = min(rarity[tool] for tool in group.tools)
    return tool if groups_of_tool > 1 else None


class _Stock:
    """Records in each split so far, per stratum and in all, against the shares wanted."""

    def __init__(self, fractions: SplitFractions) -> None:
        self._fractions = fractions
        self._strata: dict[str | None, Counter[Split]] = defaultdict(Counter)
        self._all: Counter[Split] = Counter()

    def add(self, stratum: str | None, split: Split, records: int) -> None:
        """Count a group's records."""
        self._strata[stratum][split] += records
        self._all[split] += records

    def neediest(self, stratum: str | None, records: int) -> Split:
        """Return the split that lacks most once `records` more are there; ties go by the whole."""
        own, wanted = self._strata[stratum], [s for s in SPLITS if self._fractions.of(s) > 0]

        def lack(counts: Counter[Split], split: Split) -> float:
            return self._fractions.of(split) * (counts.total() + records) - counts[split]

        return max(wanted, key=lambda s: (round(lack(own, s), 9), round(lack(self._all, s), 9)))
