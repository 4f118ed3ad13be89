"""The project's own tools and sentences: what training, calibration and the demo draw from."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest
from jsonschema import Draft202012Validator

from toolguard.calibration.training.catalog import (
    Catalog,
    base_menu,
    curated_queries,
    load_catalog,
)
from toolguard.calibration.training.examples import catalog_pool
from toolguard.calibration.training.packing import Mix, RowBuilder
from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import Menu

CATALOG = load_catalog()
SLOT = re.compile(r"\{[^{}]*\}")
UNFILLED = re.compile(r"\{\w*:\w+\}")  # code in a query may hold other braces


def frame(text):
    """Return what a template says apart from slots and the choice of alternatives."""
    return " ".join(re.findall(r"\w+|<slot>", SLOT.sub(" <slot> ", text).lower()))


def catalog_of(**lexicons):
    return Catalog(
        tools={}, base=(), lexicons=lexicons, no_tool_train=(), no_tool_test=(), refusals=()
    )


def test_fifty_tools_ten_of_them_base():
    """There are 50 tools with different names and descriptions; the base menu offers ten."""
    assert len(CATALOG.tools) == 50
    assert len({entry.tool.description for entry in CATALOG.tools.values()}) == 50
    assert base_menu().names == CATALOG.base
    assert base_menu().names == (
        "get_weather", "search_web", "read_file", "write_file", "run_code",
        "send_email", "get_calendar", "create_reminder", "search_database", "translate_text",
    )  # fmt: skip


@pytest.mark.parametrize("name", CATALOG.tools)
def test_schemas_are_strict_json_schema(name):
    """Each tool's parameters are a valid schema of draft 2020-12 that refuses unknown arguments."""
    schema = dict(CATALOG.tools[name].tool.parameters)
    Draft202012Validator.check_schema(schema)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert set(schema.get("required", ())) <= set(schema["properties"])


@pytest.mark.parametrize("name", CATALOG.tools)
def test_every_template_gives_valid_arguments(name):
    """Whatever a template of the tool expands to, its arguments fit the tool's schema."""
    entry, rng = CATALOG.tools[name], Random(name)
    validator = Draft202012Validator(dict(entry.tool.parameters))
    for template in (*entry.train, *entry.test):
        for _ in range(8):
            expansion = CATALOG.expand(template, rng)
            assert not list(validator.iter_errors(expansion.arguments)), (template, expansion)
            assert expansion.query
            assert not UNFILLED.search(expansion.query), expansion.query


def test_no_frame_is_in_training_and_test():
    """No train and test template are equal up to slots, case and punctuation, over all tools."""
    train = [t for entry in CATALOG.tools.values() for t in entry.train]
    test = [t for entry in CATALOG.tools.values() for t in entry.test]
    seen = {frame(template) for template in (*train, *CATALOG.no_tool_train)}
    again = [t for t in (*test, *CATALOG.no_tool_test) if frame(t) in seen]
    assert again == []


def test_expanded_test_frames_are_not_training_frames():
    """Sampled test queries share no wording with sampled training queries of fixed text."""
    rng = Random(1)
    train = {CATALOG.expand(t, rng).query for t in CATALOG.no_tool_train for _ in range(20)}
    test = {CATALOG.expand(t, rng).query for t in CATALOG.no_tool_test for _ in range(20)}
    assert len(test & train) <= 0.01 * len(test)


def test_curated_queries():
    """There are 50 curated queries for each base tool, all different, with valid arguments."""
    curated = curated_queries()
    assert Counter(tool for tool, _ in curated) == dict.fromkeys(CATALOG.base, 50)
    assert len({item.query.casefold() for _, item in curated}) == 500
    for tool, item in curated:
        schema = dict(CATALOG.tools[tool].tool.parameters)
        assert Draft202012Validator(schema).is_valid(dict(item.arguments)), item


def test_curated_queries_are_never_generated():
    """A large training sample contains no curated query."""
    pool, rng = catalog_pool("train"), Random(2)
    drawn = {pool.draw_example(name, rng).query for name in CATALOG.base for _ in range(300)}
    assert not drawn & {item.query for _, item in curated_queries()}


def test_expansions_are_unique():
    """Of 2,500 expansions, 50 a tool, at least 95 % are different."""
    pool, rng = catalog_pool("train"), Random(3)
    drawn = [pool.draw_example(name, rng).query for name in pool.tools for _ in range(50)]
    assert len(set(drawn)) >= 0.95 * len(drawn)


def test_training_queries_are_unique():
    """Of 10,000 queries as training shows them, wording varied, at least 95 % are different."""
    pool, rng = catalog_pool("train"), Random(3)
    builder, menu = RowBuilder(None, ()), Menu(tuple(pool.tools.values()))
    drawn = [builder._example(pool, menu, rng, Mix(silent=0.0)).query for _ in range(10_000)]
    assert len(set(drawn)) >= 0.95 * len(drawn)


def test_slots_alternatives_and_constants():
    """Alternatives nest, a slot gives text and value, a constant gives a value and no text."""
    catalog = catalog_of(day=("Monday => 1",), who=("Ann",))
    template = "(a (b|b)|a b) {day:day} {:who}{loud=true}  !"
    expansion = catalog.expand(template, Random(0))
    assert expansion.query == "a b Monday Ann !"
    assert expansion.arguments == {"day": 1, "loud": True}


def test_unknown_lexicon():
    """A template that names a lexicon that does not exist is an error that says both."""
    with pytest.raises(ConfigError, match="nowhere"):
        catalog_of().expand("go {place:nowhere}", Random(0))


def test_the_same_random_state_gives_the_same_query():
    """Expansion depends on the template and the random state alone."""
    template = CATALOG.tools["get_weather"].train[0]
    assert CATALOG.expand(template, Random(5)) == CATALOG.expand(template, Random(5))
