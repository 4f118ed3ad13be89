"""Packed rows: what they say, and that they compute what separate prompts do."""

from __future__ import annotations

from random import Random

import pytest
import torch
from training_fixtures import catalog_tokenizer, tiny_agent, write_data

from toolguard.adapters.wire.hermes import Hermes
from toolguard.calibration.training.architecture import FAMILIES
from toolguard.calibration.training.catalog import base_menu, load_catalog
from toolguard.calibration.training.examples import Example, catalog_pool, human_pools
from toolguard.calibration.training.packed_attention import visible
from toolguard.calibration.training.packing import (
    DECLINE,
    NAME,
    QUERY,
    REPLY,
    Mix,
    Row,
    RowBuilder,
    collate,
    conversation,
    packed_hidden,
)
from toolguard.guard.tools import Menu, ToolCall

CALL = ToolCall(name="get_weather", arguments={"city": "São Paulo", "date": 'the "9th"'})
CALLED = Example(query="Is it raining in São Paulo?", call=CALL)
SILENT_EXAMPLE = Example(query="hello there", call=None)


@pytest.fixture(scope="module")
def builder():
    return RowBuilder(catalog_tokenizer(), load_catalog().refusals)


def assistant_call(call):
    function = {"name": call.name, "arguments": dict(call.arguments)}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }


CONVERSATIONS = {
    "call": (
        conversation(CALLED, ""),
        [{"role": "user", "content": CALLED.query}, assistant_call(CALL)],
    ),
    "answer": (
        conversation(SILENT_EXAMPLE, "No tool fits."),
        [
            {"role": "user", "content": "hello there"},
            {"role": "assistant", "content": "No tool fits."},
        ],
    ),
    "result": (
        [*conversation(CALLED, "", "sunny, 21 degrees"), *conversation(SILENT_EXAMPLE, "No.")],
        [
            {"role": "user", "content": CALLED.query},
            assistant_call(CALL),
            {"role": "tool", "name": CALL.name, "content": "sunny, 21 degrees"},
            {"role": "assistant", "content": "Done: sunny, 21 degrees"},
            {"role": "user", "content": "hello there"},
            {"role": "assistant", "content": "No."},
        ],
    ),
}


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_the_text_is_what_the_chat_template_writes(builder, kind, system):
    """Menu and conversation together are the template's rendering of the same messages."""
    segments, messages = CONVERSATIONS[kind]
    turns = [{"role": "system", "content": system}] if system else []
    rendered = builder.tokenizer.apply_chat_template(
        [*turns, *messages], tools=base_menu().schemas(), tokenize=False
    )
    text = builder.menu_text(base_menu(), system) + "".join(s.text for s in segments)
    assert text == rendered


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_the_tokens_are_those_of_the_whole_text(builder, kind):
    """Tokenising menu and conversation apart gives the tokens of the rendering in one piece."""
    segments, _ = CONVERSATIONS[kind]
    text = builder.menu_text(base_menu()) + "".join(s.text for s in segments)
    apart = [*builder.menu_ids(base_menu()), *builder.encode(segments)[0]]
    assert apart == builder.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_prompt_is_what_the_wire_format_renders(builder):
    """Training and serving put the same text in front of the agent's turn, and the same call."""
    text = "".join(s.text for s in conversation(CALLED, ""))
    prompt = Hermes().render(
        builder.tokenizer, [{"role": "user", "content": CALLED.query}], base_menu()
    )
    assert (builder.menu_text(base_menu()) + text).startswith(prompt + Hermes().call_text(CALL))


def test_the_weights_mark_name_query_and_reply(builder):
    """Name tokens weigh most; what a user or a tool says is hardly or not learned."""
    ids, weights = builder.encode(conversation(CALLED, ""))
    named = [i for i, w in zip(ids, weights, strict=True) if w == NAME]
    assert builder.tokenizer.decode(named).startswith('get_weather"')
    spoken = [i for i, w in zip(ids, weights, strict=True) if w == QUERY]
    assert builder.tokenizer.decode(spoken).startswith("Is it raining")
    ids, weights = builder.encode(conversation(SILENT_EXAMPLE, "No tool fits."))
    assert REPLY in weights
    assert NAME not in weights
    declined = [i for i, w in zip(ids, weights, strict=True) if w == DECLINE]
    assert builder.tokenizer.decode(declined) == "No"


@torch.inference_mode()
def logits_of(model, ids):
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_computes_what_separate_prompts_do(builder, family):
    """Every conversation of a padded batch of rows has the logits of its own plain prompt."""
    model = tiny_agent(family=family)
    pool = catalog_pool()
    menus = [Menu(tuple(pool.draw_menu(Random(n), 2 + 3 * n))) for n in range(2)]
    rows, wanted = [], []
    for number, menu in enumerate(menus):
        row = Row()
        row.append_menu(builder.menu_ids(menu))
        for name in menu.names:
            ids, weights = builder.encode(
                conversation(pool.draw_example(name, Random(name)), "", "ok")
            )
            plain = torch.tensor([[*builder.menu_ids(menu), *ids]])
            wanted.append((number, len(row.ids), logits_of(model, plain)[0, -len(ids) :]))
            row.append_conversation(ids, weights)
        rows.append(row)
    batch = builder.collate(rows)
    with torch.inference_mode():
        packed = model.lm_head(packed_hidden(model, batch))
    for number, start, plain in wanted:
        found = packed[number, start : start + len(plain)]
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


def test_padding_is_seen_by_nobody_and_weighs_nothing():
    """Rows are padded to a multiple; padding has no weight and no conversation attends to it."""
    row = Row()
    row.append_menu([5, 6])
    row.append_conversation([7, 8, 9], [1.0, 1.0, 1.0])
    batch = collate([row], pad_id=0, multiple=8)
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9, 0, 0, 0]]
    assert batch.weights[0, 5:].tolist() == [0.0, 0.0, 0.0]
    seen = visible(torch.tensor([0, 0, 1, 1, 1, -1, -1, -1]))
    assert not seen[:5, 5:].any()
    assert not seen[5:, :5].any()
    assert seen.diagonal().all()


def test_conversations_are_blind_to_each_other():
    """A conversation attends to the menu and to its own past, and counts on from the menu."""
    row = Row()
    row.append_menu([5, 6])
    row.append_conversation([7, 8], [1.0, 1.0])
    row.append_conversation([9], [1.0])
    assert row.positions == [0, 1, 2, 3, 2]
    assert row.blocks == [0, 0, 1, 1, 2]
    assert visible(torch.tensor(row.blocks)).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_rows_keep_to_the_budget_and_repeat(builder):
    """A row is no longer than the budget, and the same random state gives it again."""
    mix = Mix(budget=512)
    for seed in range(6):
        row = builder.build(catalog_pool(), Random(seed), mix)
        assert len(row.ids) <= 512
        assert row.blocks.count(0) * 5 <= 4 * 512
        assert row == builder.build(catalog_pool(), Random(seed), mix)


def test_shortened_conversations_end_with_the_tokens_of_the_whole_call(builder, tmp_path):
    """A human conversation that ends at the name has the tokens that a whole call begins with.

    The quote that closes a name, the comma behind it and the space are one token: a conversation
    cut in its text would teach a quote that never stands in a call.
    """
    (pool,) = human_pools(write_data(tmp_path), range(6), ("snips",))
    texts = [builder.tokenizer.decode([token]) for token in range(len(builder.tokenizer))]
    last = []
    for seed in range(20):
        row = builder.build(pool, Random(seed))
        named = [texts[i] for i, w in zip(row.ids, row.weights, strict=True) if w == NAME]
        last += [text for text in named if '"' in text]
    assert len(last) > 100
    assert set(last) == {'", "'}
