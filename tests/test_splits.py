"""Splits: determinism, groups kept whole, strata, and the leak check."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from toolguard.calibration.datasets.records import Record
from toolguard.calibration.datasets.splits import (
    SPLITS,
    SplitFractions,
    SplitItem,
    find_leaks,
    leak_check,
    make_splits,
    query_fingerprint,
    query_fingerprints,
)
from toolguard.guard.errors import CalibrationError, ConfigError, DatasetError
from toolguard.guard.tools import Tool


def items(count=400, tools=8, seed=0):
    """Random five-word queries over tools of unequal frequency."""
    rng = random.Random(seed)
    return [
        SplitItem(
            id=f"own/{n}",
            query=" ".join(f"word{rng.randrange(500)}" for _ in range(5)),
            tool=f"tool{min(rng.randrange(tools), rng.randrange(tools))}",
        )
        for n in range(count)
    ]


def item(identity, query, tool="a"):
    return SplitItem(id=identity, query=query, tool=tool)


def test_shares_are_those_asked_for():
    """The splits have about the sizes of the fractions, and hold every record once."""
    fractions = SplitFractions(fit=0.6, select=0.1, test=0.3)
    splits = make_splits(items(1000), fractions=fractions)
    counts = splits.counts()
    assert sum(counts.values()) == 1000
    assert all(abs(counts[s] / 1000 - fractions.of(s)) < 0.03 for s in SPLITS)


def test_each_tool_has_its_share():
    """The shares hold within a frequent tool, not only in all."""
    given = items(1000)
    splits = make_splits(given)
    found = Counter(splits.of[i.id] for i in given if i.tool == "tool0")
    assert abs(found["fit"] / found.total() - 0.5) < 0.05


def test_order_does_not_matter_and_the_seed_does():
    """The same records in another order are split alike; another seed splits otherwise."""
    given = items()
    splits = make_splits(given)
    assert make_splits(reversed(given)).of == splits.of
    assert make_splits(given, seed=1).of != splits.of


def test_near_duplicates_stay_together():
    """Queries that differ in little are in one split, whatever their tools."""
    words = ["bring", "the", "blue", "ladder", "from", "the", "old", "shed", "to", "the", "yard"]
    similar = [item(f"same/{n}", " ".join([*words, f"{n}"]), f"t{n}") for n in range(30)]
    splits = make_splits([*items(), *similar])
    assert len({splits.of[i.id] for i in similar}) == 1
    assert find_leaks(splits) == ()
    leak_check(splits)


@pytest.mark.parametrize("fit", [0.05, 0.5])
def test_every_tool_with_two_groups_can_be_fitted(fit):
    """However small the fit split, a tool with two distinct queries has one in it."""
    given = [
        item(f"{tool}/{n}", f"alpha{tool} beta{tool}{n} gamma{n}{tool} delta", f"t{tool}")
        for tool in range(40)
        for n in range(2 + tool % 3)
    ]
    fractions = SplitFractions(fit=fit, select=(1 - fit) / 2, test=(1 - fit) / 2)
    splits = make_splits(given, fractions=fractions)
    assert {i.tool for i in given} == {i.tool for i in given if splits.of[i.id] == "fit"}


def test_tools_with_one_query_are_spread():
    """Tools that have only one query do not all go to one split."""
    given = [item(f"{n}", f"only{n} query{n} of{n} its{n} tool{n}", f"t{n}") for n in range(400)]
    assert make_splits(given).counts() == {"fit": 200, "select": 100, "test": 100}


def test_a_split_with_no_share_stays_empty():
    """A fraction of zero gives no record."""
    splits = make_splits(items(), fractions=SplitFractions(fit=0.5, select=0, test=0.5))
    assert splits.counts()["select"] == 0
    assert splits.ids("select") == ()


def test_a_leak_is_found_with_its_records():
    """Moving one record of a group across is reported by both ids."""
    splits = make_splits(
        [*items(), item("x", "so much alike it is"), item("y", "so much alike it is!")]
    )
    of = dict(splits.of) | {"x": "fit", "y": "test"}
    leaky = replace(splits, of=of)
    (leak,) = find_leaks(leaky)
    assert {leak.first, leak.second} == {"x", "y"}
    with pytest.raises(CalibrationError, match=r"x and y|y and x") as caught:
        leak_check(leaky)
    assert caught.value.fields["leaks"] == (leak,)


def test_fingerprints_recognise_what_was_fitted():
    """A later evaluation can tell a query that was in the fit split."""
    given = items()
    splits = make_splits(given)
    fitted = splits.fingerprints("fit")
    seen = {i.id for i in given if query_fingerprint(i.query.upper() + "?") in fitted}
    assert seen == set(splits.ids("fit"))
    assert query_fingerprints(i.query for i in given) >= fitted


@pytest.mark.parametrize(
    "shares",
    [(0.5, 0.5, 0.5), (0, 0.5, 0.5), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)],
)
def test_impossible_fractions_are_refused(shares):
    """Fractions must be shares of one whole, with something to fit on."""
    with pytest.raises(ConfigError):
        SplitFractions(fit=shares[0], select=shares[1], test=shares[2])


def test_no_records_or_ids_used_twice_are_refused():
    """There must be something to split, and every record must have its own id."""
    with pytest.raises(DatasetError, match="no record"):
        make_splits([])
    with pytest.raises(DatasetError, match="twice"):
        make_splits([item("x", "one query"), item("x", "another text")])


def test_records_are_split_as_they_are():
    """Records give their query and right tool; no call is a stratum of its own."""
    fields = {"id": "1", "source": "s", "split": "a", "query": "light", "tools": [Tool(name="on")]}
    record = Record(**fields, call=None)
    assert SplitItem.of(record) == item("1", "light", "")
    assert make_splits([record]).of.keys() == {"1"}
