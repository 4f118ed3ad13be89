"""Made-up tools: queries hold all that a call needs, and nothing about them can be known before."""

from __future__ import annotations

from random import Random

from jsonschema import Draft202012Validator

from toolguard.calibration.training.made_up import made_up_pool
from toolguard.calibration.training.made_up_words import made_up_result, made_up_value

POOL = made_up_pool(0, count=200)


def test_queries_hold_name_and_values():
    """Every word of the name and every value stand in the query, and the call fits its schema."""
    rng = Random(0)
    for name, tool in POOL.tools.items():
        example = POOL.draw_example(name, rng)
        assert example.call.name == name
        assert all(word in example.query for word in name.split("_"))
        assert all(value in example.query for value in example.call.arguments.values())
        Draft202012Validator(dict(tool.parameters)).validate(dict(example.call.arguments))


def test_silent_queries_ask_for_a_tool_that_is_not_there():
    """A query without a call names no tool of the menu."""
    rng = Random(1)
    for _ in range(50):
        menu = POOL.draw_menu(rng, 5)
        silent = POOL.draw_silent(menu, rng)
        assert silent.call is None
        assert not any(" ".join(tool.name.split("_")) == silent.query for tool in menu)


def test_tools_and_values_depend_on_the_seed_alone():
    """The same seed gives the same tools; another seed gives others."""
    assert list(made_up_pool(0, count=20).tools) == list(POOL.tools)[:20]
    assert set(made_up_pool(1, count=200).tools) != set(POOL.tools)
    assert made_up_value(Random(5)) == made_up_value(Random(5))


def test_some_values_hold_signs_beyond_ascii():
    """Copying must work for accents and typographic quotes, too, so some values have them."""
    values = [made_up_value(Random(seed)) for seed in range(2000)]
    strange = sum(not value.isascii() for value in values)
    assert 0.02 < strange / len(values) < 0.2


def test_results_are_hardly_ever_the_same():
    """What a tool answers is not one of a few texts, and it stays on one line."""
    results = [made_up_result(Random(seed)) for seed in range(2000)]
    assert len(set(results)) > 1200
    assert all(result and "\n" not in result for result in results)
    assert any(result.startswith("error: ") for result in results)
    assert any(result.startswith("{") for result in results)
