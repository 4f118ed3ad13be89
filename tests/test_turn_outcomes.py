"""Whole turns: every outcome counted apart, by source, over what fits the context."""

from __future__ import annotations

import pytest

from toolguard.adapters.loading import load_model
from toolguard.adapters.wire import get_format
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.call_check import OUTCOMES
from toolguard.calibration.labels.turn_outcomes import measure_turns, write_turns

HERMES = get_format("hermes")


def record(menu, query, *, source="made", call=None):
    return Record(
        id=query[:20], source=source, split="all", query=query, tools=menu.tools, call=call
    )


def weather(menu, city, **more):
    call = {"name": "get_weather", "arguments": {"city": city}}
    return record(menu, f"What is the weather in {city}?", call=call, **more)


@pytest.fixture(scope="module")
def agent():
    """Give the bundled agent, which writes whole calls."""
    return load_model("reference", device="cpu")


def test_turns_are_written_freely_to_their_end(agent, tiny_menu):
    """The opening of the call is the model's own, and the turn is whole."""
    (turn,) = write_turns(agent, HERMES, [weather(tiny_menu, "Paris")])
    assert turn.startswith(HERMES.prefix())
    assert HERMES.parse(turn).calls


def test_outcomes_add_up_and_are_kept_by_source(agent, tiny_menu):
    """Each turn is one outcome; a call where none is right is unwanted, whatever it says."""
    told = [weather(tiny_menu, city, source="a") for city in ("Paris", "London", "Rome")]
    silent = [record(tiny_menu, "What is the weather in Berlin?", source="b")]
    found = measure_turns(agent, HERMES, [*told, *silent], most=10)
    assert found["n"] == 4
    assert set(found["outcomes"]) == set(OUTCOMES)
    assert sum(rate["value"] for rate in found["outcomes"].values()) == pytest.approx(1)
    assert found["by_source"]["a"]["n"] == 3
    assert found["by_source"]["a"]["outcomes"]["right"]["value"] > 0
    assert found["by_source"]["b"]["outcomes"]["unwanted_call"]["value"] == 1


def test_wrong_arguments_are_not_wrong_tools(agent, tiny_menu):
    """The same turns under a label with another city have another fault."""
    call = {"name": "get_weather", "arguments": {"city": "Oslo"}}
    wrong = [
        record(tiny_menu, f"What is the weather in {city}?", call=call)
        for city in ("Paris", "London", "Rome")
    ]
    found = measure_turns(agent, HERMES, wrong, most=10)["outcomes"]
    assert found["right"]["value"] == found["wrong_tool"]["value"] == 0
    assert found["wrong_arguments"]["value"] > 0


def test_a_sample_hangs_on_the_seed(agent, tiny_menu):
    """At most as many turns as wanted are written."""
    records = [weather(tiny_menu, city) for city in ("Paris", "London", "Rome", "Berlin")]
    assert measure_turns(agent, HERMES, records, most=2)["n"] == 2


def test_a_prompt_without_room_is_counted(tiny_loaded, tiny_menu):
    """What the context cannot hold is no turn and no fault."""
    long = record(tiny_menu, "word " * 5000)
    assert write_turns(tiny_loaded, HERMES, [long]) == [None]
    found = measure_turns(tiny_loaded, HERMES, [long], most=5)
    assert (found["n"], found["without_room"]) == (0, 1)
    assert found["outcomes"]["right"]["value"] is None


def test_nothing_to_write_is_no_error(tiny_loaded):
    """No record, no rate."""
    assert measure_turns(tiny_loaded, HERMES, [], most=5)["n"] == 0
