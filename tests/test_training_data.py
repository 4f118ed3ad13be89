"""What the agent learns from: pools, menus, tenths, and the prompts they become."""

from __future__ import annotations

import hashlib
import json
from random import Random

import pytest
from public_records import DATA, ROOT, needs_public_records
from training_fixtures import INTENTS, catalog_tokenizer, write_data
from transformers import PreTrainedTokenizerFast

from toolguard.adapters.decision_token import name_tokens
from toolguard.adapters.wire.detection import detect_format
from toolguard.adapters.wire.hermes import Hermes
from toolguard.calibration.datasets.dataset import open_dataset
from toolguard.calibration.training.agent import held_out_cases, tokenizer_texts, training_pools
from toolguard.calibration.training.architecture import CONTEXT, VOCABULARY
from toolguard.calibration.training.catalog import base_menu, load_catalog
from toolguard.calibration.training.examples import (
    Example,
    Pool,
    catalog_pool,
    human_pools,
    tenth_of,
)
from toolguard.calibration.training.held_out import draw_cases
from toolguard.calibration.training.variation import fit_call, vary_query, vary_tools, vary_values
from toolguard.guard.errors import DatasetError
from toolguard.guard.tools import Menu, Tool, ToolCall

SHIPPED = ROOT / "adapters" / "reference"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tokenizer():
    if (SHIPPED / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(SHIPPED)
    return catalog_tokenizer()


def ids_by_query(folder):
    return {record.query: record.id for record in open_dataset([folder])}


def test_what_a_recipe_is_chosen_on_is_not_learned():
    """Templates of held-out tenths leave the training pool, and only they are read for progress."""
    (kept,) = training_pools(None, range(6), (5,))
    held = catalog_pool("train", (5,))
    for name, entry in load_catalog().tools.items():
        assert not set(kept.templates[name]) & set(held.templates[name])
        assert {*kept.templates[name], *held.templates[name]} == set(entry.train)
    cases = held_out_cases(None, (5,), 60, seed=0)["catalog"]
    assert sum(len(case.examples) for case in cases) == 60


def test_tenths_follow_the_published_rule():
    """A record's tenth is the last decimal digit of the hash of its id."""
    digest = hashlib.sha256(b"snips/train/1").hexdigest()
    assert tenth_of("snips/train/1") == int(digest, 16) % 10


def test_only_the_first_six_tenths_are_learned_from(data):
    """No example of a training pool comes from a record of tenths 6 to 9; all others are there."""
    for pool in training_pools(data, range(6))[1:]:
        ids = ids_by_query(data / pool.name)
        examples = [e for found in pool.examples.values() for e in found] + pool.silent
        assert {ids[e.query] for e in examples} == {i for i in ids.values() if tenth_of(i) < 6}


def test_held_out_queries_are_of_the_other_tenths(data):
    """What progress is read on was never learned from."""
    cases = held_out_cases(data, (6, 7, 8, 9), count=50, seed=0)
    for source in INTENTS:
        ids = ids_by_query(data / source)
        drawn = [e for case in cases[source] for e in case.examples]
        assert drawn
        assert all(tenth_of(ids[e.query]) >= 6 for e in drawn)


def test_a_missing_source_is_an_error(tmp_path):
    """A data folder without snips/ is refused."""
    with pytest.raises(DatasetError, match="snips"):
        human_pools(tmp_path, range(6))


def test_a_source_without_a_training_record_is_an_error(data):
    """A source none of whose records is of these tenths is refused with what to pass."""
    with pytest.raises(DatasetError, match="no training record"):
        human_pools(data, ())


def test_menus_are_shuffled_subsets(data):
    """Menus hold 2 to 20 different tools of one pool, in any order."""
    for pool in training_pools(data, range(6)):
        rng, low_high = Random(0), pool.sizes
        menus = [pool.draw_menu(rng) for _ in range(300)]
        for menu in menus:
            names = [tool.name for tool in menu]
            assert len(set(names)) == len(names)
            assert min(low_high[0], len(pool.tools)) <= len(names) <= min(20, low_high[1])
        assert len({menu[0].name for menu in menus}) > min(2, len(pool.tools) - 1)
    assert {len(catalog_pool().draw_menu(Random(n))) for n in range(300)} == set(range(2, 21))


def test_half_of_the_distractors_share_the_topic(data):
    """A menu around one tool takes half of the others from its topic, as far as they go."""
    (pool,) = human_pools(data, range(6), ("hwu64",))
    for seed in range(30):
        names = {t.name for t in pool.draw_menu(Random(seed), 3, "lamp_on")}
        assert {"lamp_on", "lamp_off"} < names


def test_a_query_for_an_absent_tool_calls_none():
    """A near miss asks for a tool that the menu does not offer, and has no call."""
    pool = catalog_pool()
    menu = pool.draw_menu(Random(0), 5)
    drawn = [pool.draw_silent(menu, Random(seed)) for seed in range(50)]
    assert all(example.call is None for example in drawn)
    assert len({example.query for example in drawn}) > 40


def test_out_of_scope_queries_call_none(data):
    """Silent examples of a human source are its own no-call queries or another topic's."""
    (pool,) = human_pools(data, range(6), ("clinc150",))
    menu = [pool.tools["boil_rice"]]
    queries = {pool.draw_silent(menu, Random(seed)).query for seed in range(80)}
    assert any("nothing" in query for query in queries)
    assert any("pay_rent" in query or "move_money" in query for query in queries)
    assert not any("boil_rice" in query for query in queries)


def test_menus_come_with_and_without_descriptions():
    """Three styles of menu are drawn: everything, no descriptions, names alone."""
    tools, rng = base_menu().tools, Random(0)
    styles = set()
    for _ in range(100):
        first = vary_tools(tools, rng, names_only=0.4, undescribed=0.2).tools[0]
        styles.add((bool(first.description), bool(first.parameters["properties"])))
    assert styles == {(True, True), (False, True), (False, False)}


def test_a_call_keeps_what_its_schema_declares():
    """A tool shown without parameters is called without arguments."""
    call = ToolCall(name="a", arguments={"x": 1, "y": 2})
    schema = {"type": "object", "properties": {"x": {}}}
    assert fit_call(call, Menu((Tool(name="a", parameters=schema),))).arguments == {"x": 1}
    assert fit_call(call, Menu((Tool(name="a"),))).arguments == {}


def test_a_call_gives_its_arguments_in_the_order_of_the_schema():
    """Whatever the query says first, calls of one tool are written alike."""
    schema = {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}}
    call = ToolCall(name="t", arguments={"c": 3, "a": 1})
    fitted = fit_call(call, Menu((Tool(name="t", parameters=schema),)))
    assert list(fitted.arguments) == ["a", "c"]


def test_dropped_words_are_never_argument_words():
    """Words may be left out of a query, but those that the call needs stay."""
    call = ToolCall(name="a", arguments={"city": "New York"})
    example = Example(query="please tell me about New York right now", call=call)
    varied = [vary_query(example, Random(seed), noise=0.5) for seed in range(50)]
    assert all("New York" in e.query and e.call == call for e in varied)
    assert len({e.query for e in varied}) > 10


def test_changed_values_stand_in_the_query():
    """A changed value is changed in query and call alike; closed lists and parts of others stay."""
    properties = {"to": {"type": "string"}, "body": {"type": "string"}, "box": {"enum": ["in"]}}
    tool = Tool(name="mail", parameters={"type": "object", "properties": properties})
    arguments = {"to": "Ana", "body": "Ana is late", "box": "in"}
    pool = Pool(name="own", tools={"mail": tool}, groups={"mail": "own"})
    query = "tell Bo and the box in that Ana is late"
    pool.examples["mail"] = [Example(query=query, call=ToolCall(name="mail", arguments=arguments))]
    drawn = [
        vary_values(pool.examples["mail"][0], pool, tool, Random(seed), share=1.0)
        for seed in range(40)
    ]
    assert len({example.call.arguments["body"] for example in drawn}) > 5
    for example in drawn:
        assert example.call.arguments["body"] in example.query
        assert example.call.arguments["box"] == "in"
        assert example.call.arguments["to"] == "Ana"


def test_held_out_cases_hold_the_right_tool():
    """Each query is asked over a menu that offers its tool, and none is asked twice."""
    cases = draw_cases(catalog_pool("test"), size=10, count=120, seed=1)
    assert sum(len(case.examples) for case in cases) == 120
    for case in cases:
        assert len(case.menu) == 10
        assert all(case.menu.get(e.call.name) for e in case.examples)


def test_the_template_is_detected_as_hermes(tokenizer):
    """The agent's chat template needs no --format."""
    assert detect_format(tokenizer).name == "hermes"


def test_the_vocabulary_is_bounded_and_text_survives(tokenizer):
    """Any text comes back from its tokens, within the vocabulary the model has."""
    text = 'Grüße aus 東京 🎌\n{"a": [1.5, null]} <tool_call>'
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert len(tokenizer) <= VOCABULARY


def test_calls_survive_skipping_special_tokens(tokenizer):
    """The marks of a call are ordinary text, so a parser sees them in decoded output."""
    call = ToolCall(name="get_weather", arguments={"city": "Oslo"})
    ids = tokenizer(f"{Hermes().call_text(call)}<|im_end|>", add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert Hermes().parse(text).calls == (call,)


def test_every_catalogue_name_has_a_path(tokenizer):
    """The decision token is the same for all tools: the quote in front of the name."""
    menu = Menu(tuple(entry.tool for entry in load_catalog().tools.values()))
    prompt = Hermes().render(tokenizer, [{"role": "user", "content": "hello"}], menu)
    tokens = name_tokens(tokenizer, Hermes(), menu.names, prompt)
    assert tokenizer.decode(tokens.prefix_ids) == Hermes().prefix()
    assert set(tokens.paths) == set(menu.names)


@needs_public_records
@pytest.mark.parametrize(
    ("source", "tools"), [("hwu64", 64), ("tau_airline", 14)], ids=["hwu64", "airline"]
)
def test_long_menus_fit_into_the_context(tokenizer, source, tools):
    """The 64-tool menu and the airline menu with its policy leave room for a conversation."""
    (menu,) = json.loads((DATA / source / "menus.json").read_text()).values()
    turns = [{"role": "system", "content": menu["system"]}] if menu.get("system") else []
    turns.append({"role": "user", "content": "hello"})
    assert len(menu["tools"]) == tools
    prompt = Hermes().render(tokenizer, turns, Menu.of(menu["tools"]))
    assert len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) < CONTEXT - 1024


@needs_public_records
def test_public_training_examples_are_of_the_first_tenths():
    """Of the public records too, only those of tenths 0 to 5 reach a pool."""
    for pool in human_pools(DATA, range(6)):
        seen, unseen = set(), set()
        for record in open_dataset([DATA / pool.name]):
            (seen if tenth_of(record.id) < 6 else unseen).add((record.query, record.is_call))
        drawn = {(e.query, True) for found in pool.examples.values() for e in found}
        drawn |= {(e.query, False) for e in pool.silent}
        assert drawn == seen


def test_the_tokenizer_learns_from_training_text_only(data):
    """No held-out query of a human source is among the texts of the tokenizer."""
    texts = set(tokenizer_texts(training_pools(data, range(6)), load_catalog(), 0))
    for source in INTENTS:
        queries = ids_by_query(data / source).items()
        assert not [query for query, i in queries if query in texts and tenth_of(i) >= 6]
        assert any(query in texts for query, _ in queries)
