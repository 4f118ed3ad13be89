"""The free walk: the wanted name token by token, other names where they part."""

from __future__ import annotations

import pytest
import torch

from toolguard.calibration.steering_lab.free_walk import (
    name_begun_by,
    name_singled_out_by,
    walk_freely,
)
from toolguard.guard.trie import NameTrie

# one: 1 2 3 9   two: 1 2 4 9   six: 5 6 9
TRIE = NameTrie({"one": (1, 2, 3, 9), "two": (1, 2, 4, 9), "six": (5, 6, 9)})


class Told:
    """Rows whose favourites are given: for each row those behind its first one, in order."""

    def __init__(self, *favourites):
        self.favourites = [list(row) for row in favourites]
        self.fed = []

    def feed(self, rows, tokens):
        self.fed.append({row: list(piece) for row, piece in zip(rows, tokens, strict=True)})
        return logits_of([self.favourites[row].pop(0) for row in rows])


def logits_of(favourites):
    logits = torch.zeros(len(favourites), 12)
    for row, token in enumerate(favourites):
        logits[row, token] = 1.0
    return logits


def walk(rows, first, openings=None, wanted=None, trie=TRIE):
    many = len(first)
    openings = openings or [()] * many
    return walk_freely(rows, logits_of(first), [trie] * many, openings, wanted or [None] * many)


def test_a_wanted_name_is_asked_for_token_by_token():
    """Each token must be the favourite, the terminator too; any other ends the walk."""
    rows = Told([2, 4, 9], [2, 4, 7])
    told = walk(rows, [1, 1], wanted=["two", "two"])
    assert told == [[1, 2, 4, 9], [1, 2, 4, 7]]
    assert [name_begun_by(TRIE, tokens) for tokens in told] == ["two", None]
    assert rows.fed == [{0: [1], 1: [1]}, {0: [2], 1: [2]}, {0: [4], 1: [4]}]


def test_what_cannot_be_the_wanted_name_is_asked_where_names_part_alone():
    """The shared second token is fed with the first, and the rest of a settled name not at all."""
    rows = Told([4], [])
    told = walk(rows, [1, 5], wanted=["six", "one"])
    assert told == [[1, 2, 4, 9], [5, 6, 9]]
    assert rows.fed == [{0: [1, 2]}]
    assert [name_begun_by(TRIE, tokens) for tokens in told] == ["two", "six"]


def test_without_a_wanted_name_every_token_counts():
    """Whatever name it is, a favourite that leaves it ends the walk."""
    assert walk(Told([6, 9], [6, 8]), [5, 5]) == [[5, 6, 9], [5, 6, 8]]


def test_a_favourite_that_goes_on_with_no_name_ends_the_walk():
    """At the first place or a later one: what was written is no name."""
    told = walk(Told([7], []), [1, 8], wanted=["six", "six"])
    assert told == [[1, 2, 7], [8]]
    assert [name_begun_by(TRIE, tokens) for tokens in told] == [None, None]


def test_a_name_alone_on_its_menu_must_be_begun():
    """The token after the decision is asked for even where the menu leaves no choice."""
    assert walk(Told([]), [5], trie=NameTrie({"one": (1, 2, 9)})) == [[5]]


@pytest.mark.parametrize(("opening", "rest"), [((1, 2), [3, 9]), ((1, 2, 3, 9), [])])
def test_a_walk_goes_on_from_an_opening(opening, rest):
    """Behind a whole name there is nothing to ask."""
    assert walk(Told([9]), [3], openings=[opening], wanted=["one"]) == [rest]


@pytest.mark.parametrize(
    ("tokens", "name"),
    [((1, 2, 3, 9), "one"), ((1, 2, 3, 8), "one"), ((1, 2, 8), None), ((5,), "six"), ((8,), None)],
)
def test_a_name_is_singled_out_where_all_others_are_left(tokens, name):
    """Whether it is then spelled to its end does not matter."""
    assert name_singled_out_by(TRIE, tokens) == name
