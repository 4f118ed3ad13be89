"""The checker of labels: every outcome, one call and whole turns, with and without an order."""

from __future__ import annotations

import pytest
from public_records import DATA, needs_public_records

from toolguard.adapters.wire import get_format
from toolguard.calibration.datasets.dataset import open_dataset
from toolguard.calibration.datasets.records import UNORDERED, Record
from toolguard.calibration.labels.call_check import (
    OUTCOMES,
    check_call,
    check_name,
    check_text,
    check_turn,
)
from toolguard.guard.tools import ToolCall

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"name": name, "parameters": CITY} for name in ("weather", "time", "map")]


def record(*calls, accept=(), tags=()):
    made = [{"name": name, "arguments": {"city": city}} for name, city in calls]
    return Record.model_validate(
        {
            "id": "r",
            "source": "made",
            "split": "all",
            "query": "?",
            "tools": TOOLS,
            "call": made[0] if made else None,
            "calls": made if len(made) > 1 else [],
            "accept": list(accept),
            "tags": list(tags),
        }
    )


def call(name, city="Rome", **more):
    return ToolCall(name=name, arguments={"city": city, **more})


@pytest.mark.parametrize(
    ("made", "outcome"),
    [
        (call("weather", "rome"), "right"),
        (call("time"), "wrong_tool"),
        (call("elsewhere"), "wrong_tool"),
        (call("weather", "Oslo"), "wrong_arguments"),
        (call("weather", days=3), "wrong_arguments"),
        (ToolCall(name="weather"), "wrong_arguments"),
        (None, "missing_call"),
    ],
)
def test_one_call_is_held_against_its_record(made, outcome):
    """Right, another tool, other values and no call are told apart."""
    wanted = record(("weather", "Rome"))
    assert check_call(wanted, made) == outcome
    assert check_turn(wanted, [made] if made else []) == outcome


def test_where_no_tool_is_right_any_call_is_unwanted():
    """Silence is right, whatever was called is not."""
    silent = record()
    assert check_call(silent, None) == check_turn(silent, []) == "right"
    assert check_call(silent, call("weather")) == check_turn(silent, [call("time")])
    assert check_call(silent, call("weather")) == "unwanted_call"


def test_a_name_is_checked_without_its_arguments():
    """The choice at the decision token has no arguments yet."""
    wanted = record(("weather", "Rome"))
    assert check_name(wanted, "weather") == "right"
    assert check_name(wanted, "time") == "wrong_tool"
    assert check_name(wanted, None) == "missing_call"
    assert check_name(record(), "time") == "unwanted_call"
    assert check_name(record(), None) == "right"


@pytest.mark.parametrize(
    ("calls", "outcome"),
    [
        ([call("weather"), call("time")], "right"),
        ([call("weather")], "right"),
        ([call("time"), call("weather")], "wrong_tool"),
        ([call("weather"), call("time", "Oslo")], "wrong_arguments"),
        ([call("weather"), call("time"), call("map")], "unwanted_call"),
        ([], "missing_call"),
    ],
)
def test_calls_in_order_may_wait_for_results(calls, outcome):
    """A turn may hold the first of several steps, never another order."""
    assert check_turn(record(("weather", "Rome"), ("time", "Rome")), calls) == outcome


def test_the_next_of_ordered_calls_is_the_first():
    """A later step is a wrong tool now."""
    steps = record(("weather", "Rome"), ("time", "Rome"))
    assert check_call(steps, call("weather")) == "right"
    assert check_call(steps, call("time")) == "wrong_tool"


@pytest.mark.parametrize(
    ("calls", "outcome"),
    [
        ([call("weather", "Oslo"), call("weather", "Rome")], "right"),
        ([call("weather", "Rome")], "missing_call"),
        ([call("weather", "Rome"), call("weather", "Rome")], "wrong_arguments"),
        ([call("weather", "Rome"), call("time")], "wrong_tool"),
        ([call("weather", "Rome"), call("weather", "Oslo"), call("time")], "unwanted_call"),
        # the faults in the order in which they count
        ([call("time")], "wrong_tool"),
        ([call("weather", "Bern")], "wrong_arguments"),
    ],
)
@pytest.mark.parametrize("labelled_by", ["accept", "tag"])
def test_calls_without_an_order_are_matched_as_well_as_can_be(labelled_by, calls, outcome):
    """Each right call is used once, wherever it stands, and all have to be there."""
    cities = ("Rome", "Oslo")
    accept = [{"weather": {"city": [city]}} for city in cities] if labelled_by == "accept" else ()
    tags = () if accept else (UNORDERED,)
    wanted = record(*(("weather", city) for city in cities), accept=accept, tags=tags)
    assert check_turn(wanted, calls) == outcome


def test_a_greedy_match_would_be_wrong_here():
    """The first call fits both labels and must leave the first label to the second call."""
    accept = [{"weather": {"city": ["Rome", "Oslo"]}}, {"weather": {"city": ["Oslo"]}}]
    wanted = record(("weather", "Rome"), ("weather", "Oslo"), accept=accept)
    assert check_turn(wanted, [call("weather", "Oslo"), call("weather", "Rome")]) == "right"
    assert check_turn(wanted, [call("weather", "Rome"), call("weather", "Rome")]) != "right"


def test_any_of_the_unordered_calls_may_come_next():
    """Names and arguments must belong to one and the same call."""
    accept = [{"weather": {"city": ["Rome"]}}, {"time": {"city": ["Oslo"]}}]
    wanted = record(("weather", "Rome"), ("time", "Oslo"), accept=accept)
    assert check_call(wanted, call("time", "oslo")) == "right"
    assert check_call(wanted, call("time", "Rome")) == "wrong_arguments"
    assert check_call(wanted, call("map", "Rome")) == "wrong_tool"


def test_accepted_tools_of_one_entry_are_alternatives():
    """Either tool is right, each with its own values."""
    wanted = record(
        ("weather", "Rome"), accept=[{"weather": {"city": ["Rome"]}, "map": {"city": ["Roma"]}}]
    )
    assert check_call(wanted, call("map", "Roma")) == "right"
    assert check_call(wanted, call("map", "Rome")) == "wrong_arguments"


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>', "right"),
        (
            '<tool_call>\n{"name": "time", "arguments": {"city": "Rome"}}\n</tool_call>',
            "wrong_tool",
        ),
        ('<tool_call>\n{"name": "weather", "arguments": {"city": ', "malformed"),
        ('<tool_call>\n{"name": "weather", "arguments": "Rome"}\n</tool_call>', "malformed"),
        ("It is sunny.", "missing_call"),
    ],
)
def test_a_turn_is_checked_as_it_was_written(text, outcome):
    """Text that opens a call is a whole call or malformed, never skipped."""
    assert check_text(record(("weather", "Rome")), text, get_format("hermes")) == outcome
    assert outcome in OUTCOMES


def test_a_format_without_arguments_is_checked_by_name():
    """What it cannot write is not held against it."""
    wanted = record(("weather", "Rome"))
    assert check_text(wanted, "weather", get_format("name_only")) == "right"
    assert check_text(wanted, "time", get_format("name_only")) == "wrong_tool"


@needs_public_records
def test_every_public_label_is_right_by_itself():
    """The calls of each record, made from its accepted values, pass its own check."""
    found = [path.parent for path in sorted(DATA.glob("*/records.jsonl"))]
    for one in open_dataset(found):
        if one.tools:
            labels = one.calls or ((one.call,) if one.call else ())
            calls = [label.to_tool_call() for label in labels]
            assert check_turn(one, calls) == "right", one.id
            assert check_call(one, calls[0] if calls else None) == "right", one.id
