"""Comparing arguments with a label: the known traps, in both directions."""

from __future__ import annotations

import pytest

from toolguard.calibration.labels.argument_match import (
    accepted_arguments,
    same_arguments,
    same_value,
    standard_text,
)

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "default": 3},
        "unit": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
}


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("april 1 2024", "April 1, 2024"),
        ("NEW-YORK", "new york"),
        ("it's", 'it"s'),
        ("a/b*c^d_e", "abcde"),
        ("Caf\u00e9", "cafe\u0301"),
        ("STRASSE", "straße"),
        (5, 5.0),
        (["A b", 1], ["ab", 1.0]),
        ({"a": {"b": ["X"]}}, {"a": {"b": ["x"]}}),
        (None, None),
        (0, 0.0),
        ([], []),
    ],
)
def test_what_says_the_same_is_the_same(value, label):
    """Spelling of texts and numbers does not count, at any depth, in either direction."""
    assert same_value(value, label)
    assert same_value(label, value)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (["x"], "x"),  # a list of one is not its element
        ([["x"]], ["x"]),
        (["a", "b"], ["b", "a"]),  # lists are in order
        (["a"], ["a", "a"]),
        ("5", 5),
        (True, 1),
        (False, 0),
        ("true", True),
        (None, ""),
        (None, False),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1}, [1]),
        ("café", "cafe"),
        ("x²", "x2"),
    ],
)
def test_what_differs_differs(value, label):
    """No unwrapping of lists, no texts for numbers, no numbers for truth, in either direction."""
    assert not same_value(value, label)
    assert not same_value(label, value)


def test_spelling_is_taken_off_a_text_alone():
    """Signs that carry meaning elsewhere stay: plus, colon, brackets."""
    assert standard_text(" A-b_c, d. ") == "abcd"
    assert standard_text("3+4:(5)") == "3+4:(5)"


@pytest.mark.parametrize(
    ("arguments", "label", "same"),
    [
        ({"city": "rome"}, {"city": "Rome"}, True),
        ({"city": "Rome", "days": 3}, {"city": "Rome"}, True),
        ({"city": "Rome"}, {"city": "Rome", "days": 3}, True),
        ({"city": "Rome", "days": 4}, {"city": "Rome"}, False),
        ({"city": "Rome"}, {"city": "Rome", "days": 4}, False),
        ({"city": "Rome", "unit": ""}, {"city": "Rome"}, False),
        ({}, {"city": "Rome"}, False),
        ({}, {}, True),
        ({"tags": ["a"]}, {"tags": "a"}, False),
    ],
)
def test_a_label_without_alternatives_wants_just_its_arguments(arguments, label, same):
    """Only an argument at its schema's default may stand on one side alone."""
    assert same_arguments(arguments, label, SCHEMA) is same


@pytest.mark.parametrize(
    ("accepted", "arguments", "right"),
    [
        # accepted values are alternatives, the argument is one of them and no list of them
        ({"city": ["Rome", "Roma"]}, {"city": "roma"}, True),
        ({"city": ["Rome"]}, {"city": ["Rome"]}, False),
        ({"city": ["Rome", "Roma"]}, {"city": ["Rome", "Roma"]}, False),
        # an accepted list is one value, as a whole and in order
        (
            {"city": ["r"], "tags": [["a", "b"], ["b", "a"]]},
            {"city": "r", "tags": ["B", "A"]},
            True,
        ),
        ({"city": ["r"], "tags": [["a", "b"]]}, {"city": "r", "tags": ["b", "a"]}, False),
        ({"city": ["r"], "tags": [["a", "b"]]}, {"city": "r", "tags": "a"}, False),
        ({"city": ["r"], "tags": [["a"]]}, {"city": "r", "tags": "a"}, False),
        ({"city": ["r"], "tags": [["a"]]}, {"city": "r", "tags": [["a"]]}, False),
        ({"city": ["r"], "tags": [[], ""]}, {"city": "r", "tags": []}, True),
        # "" means that the argument may be left out, where the schema does not require it
        ({"city": ["r"], "unit": ["", "C"]}, {"city": "r"}, True),
        ({"city": ["r"], "unit": ["", "C"]}, {"city": "r", "unit": "c"}, True),
        ({"city": ["r"], "unit": ["", "C"]}, {"city": "r", "unit": ""}, True),
        ({"city": ["r"], "unit": ["", "C"]}, {"city": "r", "unit": "F"}, False),
        ({"city": ["r"], "unit": ["C"]}, {"city": "r"}, False),
        ({"city": ["", "r"]}, {}, False),
        ({"city": ["r"], "days": ["", 5]}, {"city": "r", "days": ""}, False),
        ({"city": ["r"], "days": ["", "dontcare"]}, {"city": "r", "days": "dontcare"}, True),
        ({"city": ["r"], "unit": ["", None]}, {"city": "r", "unit": None}, True),
        ({"city": ["r"], "unit": [""]}, {"city": "r", "unit": None}, False),
        # numbers and truth
        ({"city": ["r"], "days": [5]}, {"city": "r", "days": 5.0}, True),
        ({"city": ["r"], "days": [1]}, {"city": "r", "days": True}, False),
        ({"city": ["r"], "days": [5]}, {"city": "r", "days": "5"}, False),
        # an argument nobody listed
        ({"city": ["r"]}, {"city": "r", "days": 3}, False),
        # a value that stands alone
        ({"city": "Rome"}, {"city": "rome"}, True),
    ],
)
def test_each_argument_must_have_an_accepted_value(accepted, arguments, right):
    """The accepted values of BFCL: alternatives, whole lists, arguments that may be left out."""
    assert accepted_arguments(arguments, accepted, SCHEMA) is right


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ({"mode": "cool", "wind": "HIGH"}, True),
        ({"mode": "cool"}, True),
        ({"wind": "high"}, False),
        ({"mode": "cool", "wind": "low"}, False),
        ({"mode": ["cool"]}, False),
        ({"mode": "cool", "more": 1}, False),
        ("cool", False),
    ],
)
def test_objects_hold_alternatives_too(value, right):
    """Inside an accepted object each key has its own accepted values, and "" lets it go."""
    accepted = {"body": [{"mode": ["COOL"], "wind": ["HIGH", ""]}]}
    assert accepted_arguments({"body": value}, accepted, {}) is right


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ([{"field": "age"}, {"field": "job"}], True),
        ([{"field": "job"}, {"field": "age"}], False),
        ([{"field": "age"}], False),
        ({"field": "age"}, False),
        ([["age"], ["job"]], False),
    ],
)
def test_lists_of_objects_are_whole_and_in_order(value, right):
    """Each object of an accepted list is compared with the one at its place."""
    accepted = {"where": [[{"field": ["age"]}, {"field": ["job"]}]]}
    assert accepted_arguments({"where": value}, accepted, {}) is right


def test_an_object_that_is_no_list_of_alternatives_is_a_value():
    """One plain value inside says that the object is meant as it stands."""
    accepted = {"ego": [{"at": [{"x": 10.5, "y": 50}], "turn": [30]}]}
    assert accepted_arguments({"ego": {"at": {"x": 10.5, "y": 50.0}, "turn": 30}}, accepted, {})
    assert not accepted_arguments({"ego": {"at": {"x": 10.5}, "turn": 30}}, accepted, {})


def test_a_schema_that_says_nothing_is_no_obstacle():
    """Schemas of public data hold booleans and lists where objects belong."""
    for schema in ({}, {"properties": []}, {"properties": {"a": True}}):
        assert same_arguments({"a": "X"}, {"a": "x"}, schema)
        assert accepted_arguments({"a": "X"}, {"a": ["x"]}, schema)
