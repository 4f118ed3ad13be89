"""Near duplicates: the normal form, and the search against the definition."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from toolguard.calibration.datasets.near_duplicates import (
    crossing_near_duplicates,
    group_near_duplicates,
    query_fingerprint,
    query_tokens,
)


def similar(one, two):
    return 5 * len(one & two) >= 4 * len(one | two)


def random_sets(seed, count, vocabulary, longest):
    """Small vocabularies make many pairs near the limit."""
    rng = random.Random(seed)
    sets = []
    for _ in range(count):
        base = set(rng.choice(sets)) if sets and rng.random() < 0.6 else set()
        for _ in range(rng.randint(1, longest // 5) if base else rng.randint(1, longest)):
            base ^= {f"w{rng.randrange(vocabulary)}"}
        sets.append(frozenset(base or {"w0"}))
    return sets


def connected(sets):
    """Group numbers by comparing all pairs."""
    number = list(range(len(sets)))
    for one, two in itertools.combinations(range(len(sets)), 2):
        if similar(sets[one], sets[two]):
            old, new = number[two], number[one]
            number = [new if n == old else n for n in number]
    return number


def partition(numbers):
    members = {}
    for place, number in enumerate(numbers):
        members.setdefault(number, set()).add(place)
    return {frozenset(group) for group in members.values()}


SHAPES = [(12, 8), (30, 20), (60, 45), (200, 120), (300, 160)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("vocabulary", "longest"), SHAPES)
def test_groups_are_those_of_comparing_all_pairs(seed, vocabulary, longest):
    """The index finds exactly the groups that the definition gives, at every size of set."""
    sets = random_sets(seed, 150, vocabulary, longest)
    assert partition(group_near_duplicates(sets)) == partition(connected(sets))


@pytest.mark.parametrize(("vocabulary", "longest"), SHAPES)
def test_every_pair_across_parts_shows_in_the_search(vocabulary, longest):
    """Whatever has a partner in another part is found, and nothing else."""
    sets = random_sets(7, 150, vocabulary, longest)
    parts = [place % 3 for place in range(len(sets))]
    found = list(crossing_near_duplicates(sets, parts))
    assert all(similar(sets[a], sets[b]) and parts[a] != parts[b] for a, b in found)
    expected = [
        (a, b)
        for a, b in itertools.combinations(range(len(sets)), 2)
        if parts[a] != parts[b] and similar(sets[a], sets[b])
    ]
    linked = {place for pair in found for place in pair}
    assert bool(found) == bool(expected)
    assert all(a in linked or b in linked for a, b in expected)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Dim the LAMP, please!", "dim the lamp please"),
        ("caf\u00e9 open?", "cafe\u0301 open"),
        ("\uff2c\uff21\uff2d\uff30", "lamp"),
        ("Stra\u00dfe", "STRASSE"),
        ("  two\tblanks ", "two blanks"),
    ],
)
def test_fingerprints_see_through_writing(one, two):
    """Case, punctuation, blanks and Unicode forms do not change a fingerprint."""
    assert query_fingerprint(one) == query_fingerprint(two)


def test_fingerprints_are_stable_and_distinct():
    """A fingerprint is the same in every run, 64 bits, and tells orders of words apart."""
    assert query_fingerprint("dim the lamp") == 5127459683102907234
    assert query_fingerprint("dim the lamp") != query_fingerprint("the lamp dim")


def test_text_without_words_is_one_token():
    """Signs alone are told apart, and empty text has a token too."""
    assert query_tokens(" ?! ") == ["?!"]
    assert query_tokens("") == [""]


def test_scripts_without_spaces_are_cut():
    """Han and kana are compared by character, words of other scripts as a whole."""
    assert query_tokens("\u5f00\u706f now") == ["\u5f00", "\u706f", "now"]


def template(rng, slots):
    words = ["please", "bring", "me", "from", "to", "on", "with", "for"]
    return frozenset([*words, *(f"{kind}{rng.randrange(50)}" for kind in slots)])


@pytest.mark.parametrize("kind", ["templates", "one sentence", "one long theme"])
def test_twenty_thousand_queries_take_seconds(kind):
    """Neither templates nor masses of near duplicates make the search quadratic."""
    rng = random.Random(0)
    theme = [f"t{n}" for n in range(60)]
    makers = {
        "templates": lambda n: template(rng, "abcde"),
        "one sentence": lambda n: frozenset(theme[:10]),
        "one long theme": lambda n: frozenset([*rng.sample(theme, 57), f"u{n}"]),
    }
    sets = [makers[kind](n) for n in range(20_000)]
    started = time.process_time()
    groups = group_near_duplicates(sets)
    assert time.process_time() - started < 15  # seconds; measured 1 to 3
    assert (len(set(groups)) == 1) == (kind != "templates")
