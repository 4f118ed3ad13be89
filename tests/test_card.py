"""The agent's model card: what is measured on what, and what the card says of it."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
from click.testing import CliRunner
from public_records import DATA, needs_public_records
from training_fixtures import catalog_tokenizer, tiny_agent, write_data

from toolguard.adapters.loading import wrap_model
from toolguard.adapters.wire.hermes import Hermes
from toolguard.calibration.cli import toolguard
from toolguard.calibration.training.attribution import SOURCES
from toolguard.calibration.training.card import figure_table, render_card
from toolguard.calibration.training.card_records import (
    absent_tool_records,
    capped,
    curated_records,
    frame_records,
    hwu64_records,
    silent_records,
    unseen_records,
)
from toolguard.calibration.training.catalog import base_menu, load_catalog
from toolguard.calibration.training.examples import tenth_of
from toolguard.calibration.training.facts import TrainingFacts
from toolguard.calibration.training.measurement import (
    Bar,
    Figure,
    Measurement,
    MeasurementOptions,
    _is_valid,
    measure_agent,
    opened_calls,
    tool_accuracy,
)
from toolguard.guard.errors import ConfigError
from toolguard.guard.rate import wilson

FACTS = {
    "parameters": 5_771_264,
    "recipe": {
        "steps": 2,
        "rate": 0.002,
        "seed": 3,
        "stages": [
            {
                "length": 3,
                "shares": [["catalog", 0.34]],
                "mix": {"cut": 0.25},
                "dropout": 0.1,
                "rate": 0.5,
            }
        ],
    },
    "tenths": [0, 1, 2, 3, 4, 5],
    "records_sha256": {source.name: "0" * 64 for source in SOURCES},
    "seconds": 5025,
    "cpu_seconds": 6100,
    "device": "cpu",
    "threads": 2,
}
ACCURACY = {"curated", "frames", "snips", "clinc150", "hwu64"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def loaded():
    return wrap_model(tiny_agent(), catalog_tokenizer())


@pytest.fixture(scope="module")
def measurement(loaded, data):
    options = MeasurementOptions(data=data, limit=12, generated=4)
    return measure_agent(loaded, Hermes(), options)


@pytest.fixture
def folder(tmp_path):
    """Give an agent's folder as training leaves it."""
    tiny_agent().bfloat16().save_pretrained(tmp_path / "agent")
    catalog_tokenizer().save_pretrained(tmp_path / "agent")
    (tmp_path / "agent" / "training.json").write_text(json.dumps(FACTS))
    return tmp_path / "agent"


def run(*args):
    return CliRunner().invoke(toolguard, ["train", "card", *map(str, args)], prog_name="toolguard")


def figure(value, n, bar=None):
    rate = wilson(round(value * n), n)
    return Figure(quantity="tool_accuracy", source="clinc150", rate=rate, bar=bar)


def test_curated_records():
    """All 500 curated queries stand over the base menu."""
    records = curated_records()
    assert len({record.id for record in records}) == 500
    assert {record.menu.names for record in records} == {load_catalog().base}


def test_frame_records():
    """Test frames cover all 50 tools over shuffled menus of ten that hold the right one."""
    records = frame_records(seed=0)
    assert Counter(record.call.name for record in records) == dict.fromkeys(
        load_catalog().tools, 20
    )
    assert {len(record.menu) for record in records} == {10}
    assert len({record.menu.names for record in records}) > 100
    assert records == frame_records(seed=0)
    assert records != frame_records(seed=1)


def test_no_tool_records():
    """No-tool queries are all different; near misses never offer the tool they ask for."""
    silent, absent = silent_records(0, 120), absent_tool_records(0, 120)
    assert len({record.query for record in silent}) == len(silent) == 120
    assert {len(record.menu) for record in (*silent, *absent)} == {10}
    assert not any(record.is_call for record in (*silent, *absent))
    names = list(load_catalog().tools)
    for number, record in enumerate(absent):
        assert record.menu.get(names[number % len(names)]) is None


def test_human_records_are_those_not_learned_from(data):
    """Measured are the tenths that training left alone, calls and no-calls apart."""
    calls = unseen_records(data, "clinc150", range(6))
    silent = unseen_records(data, "clinc150", range(6), calls=False)
    assert calls
    assert silent
    assert all(record.is_call for record in calls)
    assert not any(record.is_call for record in silent)
    assert all(tenth_of(record.id) >= 6 for record in (*calls, *silent))


@needs_public_records
def test_hwu64_menus():
    """Menus have 16 of the 64 tools, the right one and up to eight more from its scenario."""
    records = hwu64_records(DATA, range(6), 0)
    assert len(records) > 900
    scenario = {
        record.call.name: tag
        for record in records
        for tag in record.tags
        if tag.startswith("scenario:")
    }
    sizes = Counter(scenario.values())
    for record in records:
        assert len(record.menu) == 16
        own = scenario[record.call.name]
        near = [name for name in record.menu.names if scenario.get(name) == own]
        assert record.call.name in near
        assert len(near) >= min(9, sizes[own])
        assert tenth_of(record.id) >= 6


def test_caps_keep_the_order():
    """A cap draws by seed and leaves the records in their order."""
    records = curated_records()
    some = capped(records, 50, seed=1)
    assert len(some) == 50
    assert [record for record in records if record in some] == some
    assert capped(records, None, seed=1) is records


def test_everything_is_measured(measurement):
    """Each source has its accuracy, validity and call rate; words have theirs; all with bars."""
    numbers = measurement.to_dict()
    assert set(numbers["tool_accuracy"]) == ACCURACY
    assert set(numbers["arguments_valid"]) == {*ACCURACY, "all"}
    assert set(numbers["calls"]) == ACCURACY
    assert set(numbers["answers_in_words"]) == {
        "no_tool", "absent_tool", "clinc150_out_of_scope"
    }  # fmt: skip
    for rate in numbers["tool_accuracy"].values():
        assert rate["n"] == 12
        assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
        assert rate["met"] == (rate["value"] >= rate["bar"])
    assert numbers["arguments_valid"]["all"]["n"] == 4 * len(ACCURACY)
    assert numbers["tool_accuracy"]["hwu64"]["bar"] == 0.75
    assert numbers["tool_accuracy"]["hwu64"]["aim"] == 0.85


def test_the_same_seed_measures_the_same(loaded, data, measurement):
    """Measuring again with the same options gives the same numbers."""
    again = measure_agent(loaded, Hermes(), measurement.options)
    assert again.figures == measurement.figures


def test_without_data_the_own_tools_are_measured(loaded):
    """Without a data folder there are no rows for public sources."""
    numbers = measure_agent(loaded, Hermes(), MeasurementOptions(limit=6, generated=2)).to_dict()
    assert set(numbers["tool_accuracy"]) == {"curated", "frames"}
    assert set(numbers["answers_in_words"]) == {"no_tool", "absent_tool"}


def test_an_agent_that_learned_everything_cannot_be_measured(loaded, data):
    """If no tenth is left, measuring on human records is refused."""
    options = MeasurementOptions(data=data, learned=tuple(range(10)))
    with pytest.raises(ConfigError, match="none are left"):
        measure_agent(loaded, Hermes(), options)


def test_tool_accuracy_counts_every_record(loaded):
    """The accuracy is over all records given."""
    assert tool_accuracy(loaded, Hermes(), curated_records()[:30]).n == 30


def test_an_untrained_agent_opens_no_calls(loaded):
    """Random weights write no call of their own accord."""
    assert opened_calls(loaded, Hermes(), curated_records()[:3], 8) == 0


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>', True),
        ('{"name": "get_weather", "arguments": {"city": 3}}\n</tool_call><|im_end|>', False),
        ('{"name": "get_weather", "arguments": {}}\n</tool_call><|im_end|>', False),
        ('{"name": "no_such_tool", "arguments": {}}\n</tool_call><|im_end|>', False),
        ('{"name": "get_weather" "arguments": {"city": "Oslo"}}\n</tool_call>', False),
        ('{"name": "get_weather", "arguments": {"city": "Os', False),
    ],
)
def test_what_counts_as_a_valid_call(text, valid):
    """A call is valid if it is whole, of a tool on the menu, and fits that tool's schema."""
    record = curated_records()[0]
    assert record.menu == base_menu()
    assert _is_valid(Hermes(), f"<tool_call>\n{text}", record) == valid


def test_bars():
    """Met, met without the aim, not met, and no bar are told apart."""
    bar = Bar(least=0.75, aim=0.84)
    rows = [figure(v, 100, bar) for v in (0.9, 0.8, 0.7)] + [figure(0.5, 100), figure(0, 0, bar)]
    assert [row.met for row in rows] == [True, True, False, None, None]
    table = figure_table(rows).splitlines()[2:]
    assert table[0].endswith("| 90.0 % | 82.6 % to 94.5 % | >= 75.0 %, aim 84.0 % | met |")
    assert table[1].endswith("| met, aim not reached |")
    assert table[2].endswith("| **not met** |")
    assert table[3].endswith("| none |  |")
    assert "| 0 | - | - |" in table[4]


def test_the_card_says_what_the_licences_ask(loaded):
    """Authors, title, source, licence, its address and the changes stand in the card."""
    facts = TrainingFacts.model_validate(FACTS)
    empty = Measurement(figures=(), options=MeasurementOptions(), seconds=0.0)
    card = render_card(loaded, Hermes(), facts, empty)
    for source in SOURCES:
        for words in (source.title, source.authors, source.url, source.licence_url):
            assert words in card
    assert "CC BY 4.0" in card
    assert "CC BY 3.0" in card
    assert "CC0 1.0" in card
    assert "60 %" in card
    assert "tenths 0, 1, 2, 3, 4, 5" in card
    assert "1 h 24 min" in card
    assert "seed 3" in card
    stage = "3 parts of the steps: rows from catalog 0.34; cut 0.25, dropout 0.1, rate times 0.5."
    assert stage in card


def test_a_card_without_public_data_names_none(loaded):
    """An agent of the catalogue alone credits nobody."""
    facts = TrainingFacts.model_validate({**FACTS, "records_sha256": {}})
    empty = Measurement(figures=(), options=MeasurementOptions(), seconds=0.0)
    card = render_card(loaded, Hermes(), facts, empty)
    assert "No public data set was used." in card
    assert not any(source.title in card for source in SOURCES)


def test_the_command_writes_card_and_numbers(folder, data):
    """README.md and numbers.json lie beside the weights, and --json gives the same numbers."""
    result = run("--model", folder, "--data", data, "--limit", 6, "--generated", 2, "--json", "-")
    assert result.exit_code == 0, result.output
    numbers = json.loads(result.stdout)
    assert json.loads((folder / "numbers.json").read_text()) == numbers
    card = (folder / "README.md").read_text()
    assert "### Tool accuracy" in card
    assert "CLINC150, 15-tool domain menus | 6 |" in card
    assert str(folder) not in card


def test_a_folder_without_training_facts(folder):
    """An agent without training.json is refused with what to name instead."""
    (folder / "training.json").unlink()
    result = run("--model", folder)
    assert result.exit_code == 2
    assert "training.json" in result.stderr
    assert "OUT/agent" in result.stderr


def test_broken_training_facts(folder):
    """A training.json with unknown keys is refused, not half read."""
    (folder / "training.json").write_text(json.dumps({**FACTS, "more": 1}))
    result = run("--model", folder)
    assert result.exit_code == 2
    assert "more" in result.stderr
    shutil.rmtree(folder)
