"""Collection: a packed run over shared prefixes must read what one plain forward a record reads."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from tiny_tokenizers import MISTRAL, with_template

from toolguard.adapters.decision_token import name_tokens
from toolguard.adapters.loading import LoadedModel, wrap_model
from toolguard.adapters.wire import get_format
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.reading.collect import collect
from toolguard.calibration.reading.decisions import PrefixStore, unpackable
from toolguard.calibration.reading.pack_plan import PackPlan, plan_packs
from toolguard.calibration.reading.prompts import PromptWriter, close_thought
from toolguard.guard.errors import ConfigError, ReadoutError, ShapeError
from toolguard.guard.tools import Menu
from toolguard.guard.trie import NameTrie, TrieScorer

HERMES = get_format("hermes")
LAYERS = (0, 2)
QUERIES = (
    "What is the weather in Rome today?",
    "Search the web for cheap flights to Lisbon in May, and tell me the best of them.",
    "time?",
    "What is the weather in Oslo today?",
    "Send an email to a@b.example and say hello",
    "call me a taxi",
)


def record(index, menu, query, **fields):
    tools = fields.pop("tools", menu.tools)
    call = fields.pop("call", {"name": tools[0].name} if tools else None)
    made = Record(
        id=f"r{index}", source="s", split="t", query=query, tools=tools, call=call, **fields
    )
    return made.with_menu(menu) if tools is menu.tools else made


def conversation(turns):
    """Return a conversation of `turns` user turns with a call after each but the last."""
    messages = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Search for item {turn}."})
        call = {"function": {"name": "search", "arguments": {"query": f"item {turn}"}}}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "name": "search", "content": "nothing"})
    return [*messages, {"role": "user", "content": "Now mail it."}]


@pytest.fixture(scope="module")
def other_menu():
    """Give a menu whose names part late: at inner tokens and at the closing quote."""
    names = ("update_flights", "update_flight", "update_passengers", "list", "update_bags")
    return Menu.of([{"name": name, "description": f"Tool {name}."} for name in names])


@pytest.fixture(scope="module")
def records(tiny_menu, other_menu):
    """Give records of two menus, some with the steps of one conversation, and one of a third."""
    made = [record(i, (tiny_menu, other_menu)[i % 2], q) for i, q in enumerate(QUERIES)]
    made += [
        record(10 + turns, tiny_menu, "Now mail it.", messages=conversation(turns))
        for turns in range(4)
    ]
    made.append(record(20, tiny_menu, QUERIES[0]))  # the same prompt twice
    made.append(record(30, Menu.of([{"name": "only"}]), "go"))
    made.append(record(31, tiny_menu, "Hi.", call=None))
    made.append(record(32, tiny_menu, "Rome?", system="You book flights."))
    return made


@pytest.fixture(scope="module")
def few(records):
    """Give enough of them for every path: both menus, a conversation, a twin, one alone."""
    wanted = {"r0", "r1", "r3", "r11", "r12", "r20", "r30"}
    return [item for item in records if item.id in wanted]


def no_skip(skipped, error):
    raise AssertionError(f"{skipped.id}: {error}")


def read(loaded, records, **options):
    options = {"layers": LAYERS, "on_skip": no_skip, **options}
    return list(collect(loaded, options.pop("wire", HERMES), records, **options))


def loaded_family(family, tokenizer, *, window=None, attention=None):
    config = tiny_models.CONFIGS[family](len(tokenizer), 3)
    text = config.get_text_config(decoder=True)
    if window is not None:
        text.sliding_window = window
    if window is not None and family in {"gemma2", "gemma3", "gemma3_text", "qwen2", "qwen3"}:
        text.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(
            config, **({"attn_implementation": attention} if attention else {})
        )
    # Spread the logits: near-ties would hide a wrong choice, or make one.
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return wrap_model(model.eval(), tokenizer)


def reference(loaded, record, wire=HERMES):
    """Return hidden, scores and choice by full forwards of one row, without cache or batch."""
    tokenizer = loaded.tokenizer
    text = wire.render(tokenizer, record.conversation_with_system(), record.menu)
    tokens = name_tokens(tokenizer, wire, record.menu.names, text)
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], *tokens.prefix_ids]
    trie = NameTrie(tokens.paths)
    scorer = TrieScorer(trie)
    node, hidden = 0, None
    while trie.children(node):
        with torch.no_grad():
            output = loaded.model(
                input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False
            )
        hidden = output.hidden_states if hidden is None else hidden
        logits = output.logits[0, -1]
        scorer.visit(node, logits)
        children = trie.children(node)
        token = children[int(logits[list(children)].argmax())]
        node = trie.advance(node, token)
        ids.append(token)
    rows = torch.stack([hidden[layer + 1][0, -1] for layer in LAYERS])
    return rows, scorer.scores(), record.menu.names.index(trie.name_at(node))


def assert_plain(loaded, records, observations, wire=HERMES):
    found = {observation.record_id: observation for observation in observations}
    assert sorted(found) == sorted(item.id for item in records)
    for item in records:
        hidden, scores, chosen = reference(loaded, item, wire)
        seen = found[item.id]
        # The last block's entry of `hidden_states` is after the final norm, so it is left out.
        torch.testing.assert_close(seen.hidden[0], hidden[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(seen.scores, scores, rtol=1e-5, atol=1e-5)
        assert seen.chosen == chosen


def assert_close(one, other):
    others = {observation.record_id: observation for observation in other}
    assert len(one) == len(others)
    for observation in one:
        twin = others[observation.record_id]
        torch.testing.assert_close(observation.hidden, twin.hidden, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(observation.scores, twin.scores, rtol=1e-5, atol=1e-5)
        assert observation.chosen == twin.chosen


def assert_identical(one, other):
    for first, second in zip(one, other, strict=True):
        for field in dataclasses.fields(first):
            left, right = getattr(first, field.name), getattr(second, field.name)
            if isinstance(left, torch.Tensor):
                assert left.dtype == right.dtype
                assert torch.equal(left, right)
            elif dataclasses.is_dataclass(left):
                assert_identical([left], [right])
            else:
                assert left == right


@pytest.mark.parametrize("family", sorted(tiny_models.CONFIGS))
def test_packed_equals_plain_forwards(family, tiny_tokenizer, few):
    """In every family hidden states, scores and choice equal one uncached forward a record."""
    loaded = loaded_family(family, tiny_tokenizer)
    plain = []
    observations = read(loaded, few, on_plain=plain.append)
    assert not plain
    assert_plain(loaded, few, observations)


@pytest.mark.parametrize("family", ["gemma3", "qwen3"])
def test_plain_rows_equal_plain_forwards(family, tiny_tokenizer, records):
    """Without sharing each record runs whole and alone, on a cache, and reads the same."""
    loaded = loaded_family(family, tiny_tokenizer, window=24)
    observations = read(loaded, records, share_prefix=False)
    assert_plain(loaded, records, observations)
    assert_close(observations, read(loaded, records))


@pytest.mark.parametrize(
    "family", ["mistral", "phi3", "gemma2", "gemma3", "gemma3_text", "qwen2", "qwen3"]
)
def test_sliding_windows_are_kept(family, tiny_tokenizer, few):
    """A window far shorter than the menu is counted in positions, not in packed places."""
    loaded = loaded_family(family, tiny_tokenizer, window=24)
    plain = []
    observations = read(loaded, few, on_plain=plain.append)
    assert not plain
    assert_plain(loaded, few, observations)


def test_eager_attention(tiny_tokenizer, few):
    """Eager attention takes the same masks as the fused kernel."""
    loaded = loaded_family("qwen3", tiny_tokenizer, attention="eager")
    assert_plain(loaded, few, read(loaded, few))


@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_batch_size_changes_nothing(tokens, tiny_loaded, records):
    """Packs of one row, of a few and of all rows read the same."""
    assert_close(read(tiny_loaded, records, batch_tokens=tokens), read(tiny_loaded, records))


def test_window_borders_change_nothing(tiny_loaded, records):
    """Records read in windows of three give what one window gives."""
    assert_close(read(tiny_loaded, records, window=3), read(tiny_loaded, records))


@pytest.mark.parametrize("bound", [{"window": 0}, {"batch_tokens": 0}])
def test_bounds_are_checked(bound, tiny_loaded, records):
    """A window or a batch of nothing is refused before anything is read."""
    with pytest.raises(ConfigError, match="at least 1"):
        read(tiny_loaded, records, **bound)


def test_two_runs_are_bit_equal(tiny_loaded, records):
    """Nothing random: two runs give the same bits in the same order."""
    assert_identical(read(tiny_loaded, records), read(tiny_loaded, records))


def test_done_records_change_no_bit_of_the_others(tiny_loaded, records):
    """What is left after any interruption is read exactly as it would have been."""
    whole = read(tiny_loaded, records, batch_tokens=60)
    for cut in (1, len(whole) - 1):
        done = {observation.record_id for observation in whole[:cut]}
        rest = read(tiny_loaded, records, batch_tokens=60, done=done)
        assert_identical(rest, whole[cut:])


def test_facts_of_the_record(tiny_loaded, tiny_menu):
    """Label, accepted names, menu and query fingerprint come from the record."""
    names = tiny_menu.names
    item = record(
        1,
        tiny_menu,
        "Search it!",
        call={"name": "search"},
        accept=[{"searchWeb": {}}],
    )
    (seen,) = read(tiny_loaded, [item])
    assert seen.label == names.index("search")
    assert seen.right == {names.index("search"), names.index("searchWeb")}
    assert seen.is_right == (seen.chosen in seen.right)
    assert seen.menu_names == names
    assert seen.menu_hashes == tuple(tool.content_hash for tool in tiny_menu)
    (same,) = read(tiny_loaded, [record(2, tiny_menu, "search IT", call=None)])
    assert same.query_hash == seen.query_hash
    assert same.label is None
    assert not same.right


def test_one_name_is_certain(tiny_loaded):
    """A menu of one tool has nothing to choose: log-probability zero."""
    menu = Menu.of([{"name": "only"}])
    (seen,) = read(tiny_loaded, [record(1, menu, "go")])
    assert seen.chosen == 0
    assert seen.scores.tolist() == [0.0]


def test_names_only_tells_no_descriptions(tiny_loaded, tiny_menu):
    """With names_only neither description nor parameters are in the prompt or its hash."""
    writer = PromptWriter(tiny_loaded, HERMES, names_only=True)
    item = record(1, tiny_menu, "go")
    text = writer.text(item)
    assert all(name in text for name in tiny_menu.names)
    assert "Weather of a city" not in text
    assert 'properties": {"city' not in text
    (seen,) = read(tiny_loaded, [item], names_only=True)
    assert seen.menu_hashes != tuple(tool.content_hash for tool in tiny_menu)


@pytest.mark.parametrize("wire", ["name_only", "llama_json", "pythonic", "qwen3_coder"])
def test_other_formats(wire, tiny_loaded, records):
    """The decision token of every format is found, also where it is the prompt's last token."""
    some = records[:8]
    assert_plain(
        tiny_loaded, some, read(tiny_loaded, some, wire=get_format(wire)), get_format(wire)
    )


def test_tools_told_late_in_the_prompt(records):
    """A template that tells tools and query in one turn shares less and reads the same."""
    tokenizer = with_template(MISTRAL)
    some = [item for item in records[:6] if item.messages is None]
    loaded = loaded_family("llama", tokenizer)
    wire = get_format("mistral")
    assert_plain(loaded, some, read(loaded, some, wire=wire), wire)


def test_edit_at_the_decision_token(tiny_loaded, records):
    """A vector added after a block moves that row's choice as a hooked single run does."""
    generator = torch.Generator().manual_seed(3)
    vectors = {item.id: torch.randn(32, generator=generator) * 9 for item in records}

    def add(layer, hidden, ids):
        assert layer == 1
        return hidden + torch.stack([vectors[record_id] for record_id in ids])

    packed = read(tiny_loaded, records, layers=(1,), edit=add)
    assert_close(packed, read(tiny_loaded, records, layers=(1,), edit=add, share_prefix=False))
    bare = read(tiny_loaded, records, layers=(1,))
    assert any(one.chosen != other.chosen for one, other in zip(packed, bare, strict=True))
    for one, other in zip(packed, bare, strict=True):
        torch.testing.assert_close(one.hidden, other.hidden)  # read before the edit
    assert_identical(bare, read(tiny_loaded, records, layers=(1,), edit=lambda *_: None))


def test_edit_of_a_wrong_shape_is_refused(tiny_loaded, records):
    """An edit must return one vector a row."""
    with pytest.raises(ShapeError, match="keep the shape"):
        read(tiny_loaded, records, edit=lambda _layer, hidden, _ids: hidden[:, :3])


def test_too_long_prompts_are_skipped_aloud(tiny_tokenizer, tiny_menu):
    """A prompt beyond the context is reported with its size, the others are read."""
    loaded = loaded_family("qwen3", tiny_tokenizer)
    loaded.model.config.max_position_embeddings = 700
    items = [record(0, tiny_menu, "go"), record(1, tiny_menu, "z9 " * 600)]
    skipped = []
    done = []
    seen = read(loaded, items, on_skip=lambda *pair: skipped.append(pair), on_done=done.append)
    assert [observation.record_id for observation in seen] == ["r0"]
    ((item, error),) = skipped
    assert item.id == "r1"
    assert isinstance(error, ConfigError)
    assert error.fields["context"] == 700
    assert error.fields["tokens"] > 700
    assert sum(done) == 2


def test_records_without_tools_are_skipped_aloud(tiny_loaded, tiny_menu):
    """A record that offers nothing has no decision to read."""
    empty = record(1, tiny_menu, "go", tools=(), call=None)
    skipped = []
    assert not read(tiny_loaded, [empty], on_skip=lambda item, _: skipped.append(item.id))
    assert skipped == ["r1"]


def test_names_the_format_cannot_carry_are_skipped_aloud(tiny_loaded):
    """A tool name with a line break cannot be written name-only."""
    menu = Menu.of([{"name": "a\nb"}, {"name": "c"}])
    skipped = []
    items = [record(1, menu, "go"), record(2, menu, "stop")]
    on_skip = lambda item, _: skipped.append(item.id)  # noqa: E731
    assert not read(tiny_loaded, items, wire=get_format("name_only"), on_skip=on_skip)
    assert skipped == ["r1", "r2"]


@pytest.mark.parametrize("packed", [True, False])
def test_nan_names_the_record(packed, tiny_loaded, records):
    """A reading that is not finite stops the run and says at which record."""
    poison = lambda _layer, hidden, ids: torch.where(  # noqa: E731
        torch.tensor([record_id == "r3" for record_id in ids])[:, None], torch.nan, hidden
    )
    with pytest.raises(ReadoutError, match="'r3'") as caught:
        read(tiny_loaded, records, edit=poison, share_prefix=packed)
    assert caught.value.fields["record_id"] == "r3"


@pytest.mark.parametrize("layers", [(3,), (-1,), (0, 0)])
def test_layers_are_checked(layers, tiny_loaded, records):
    """Layers are distinct block indices."""
    with pytest.raises(ConfigError, match="distinct block indices"):
        read(tiny_loaded, records, layers=layers)


def test_progress_counts_every_record(tiny_loaded, records):
    """The counts told add up to the records, those done before included."""
    done = []
    read(tiny_loaded, records, done={"r1", "r2"}, on_done=done.append)
    assert sum(done) == len(records)
    done.clear()
    read(tiny_loaded, records, done={item.id for item in records}, on_done=done.append)
    assert done == [len(records)]


def test_model_that_cannot_be_packed_runs_plainly(tiny_tokenizer, records):
    """Where positions scale with length a pass cannot be split: slow, right, and said."""
    loaded = loaded_family("llama", tiny_tokenizer)
    loaded.model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4}
    assert "rope_type dynamic" in unpackable(loaded)
    said = []
    assert_plain(loaded, records[:3], read(loaded, records[:3], on_plain=said.append))
    assert len(said) == 1


def test_trial_run_finds_a_wrong_mask(tiny_tokenizer):
    """A model that takes the mask and does otherwise is found out before anything is read."""
    loaded = loaded_family("qwen3", tiny_tokenizer)

    class Deaf(torch.nn.Module):
        dtype = torch.float32
        config = loaded.model.config

        def get_input_embeddings(self):
            return loaded.model.get_input_embeddings()

        def forward(self, **inputs):
            return loaded.model(**{**inputs, "attention_mask": None})

    deaf = dataclasses.replace(loaded, model=Deaf())
    assert "trial run differs" in unpackable(deaf)


def test_observations_are_ordinary_tensors(tiny_loaded, records):
    """What is read can enter a fit with gradients, and owns its memory."""
    seen = read(tiny_loaded, records)[0]
    weight = torch.ones(32, requires_grad=True)
    (seen.hidden @ weight).sum().backward()
    assert weight.grad is not None
    assert seen.hidden.untyped_storage().nbytes() == seen.hidden.nbytes


def test_collect_leaves_no_hook(tiny_loaded, records):
    """A stream that is left early leaves the model as it was."""
    before = [dict(block._forward_hooks) for block in tiny_loaded.view.blocks]
    stream = collect(tiny_loaded, HERMES, records, layers=LAYERS, on_skip=no_skip)
    next(stream)
    assert not torch.is_inference_mode_enabled()
    stream.close()
    assert [dict(block._forward_hooks) for block in tiny_loaded.view.blocks] == before


def test_opened_thoughts_are_closed():
    """A prompt that ends inside a thought gets an empty one; any other is left alone."""
    assert close_thought("<a>\n<think>\n") == "<a>\n<think>\n\n</think>\n\n"
    assert close_thought("[THINK]") == "[THINK]\n\n[/THINK]\n\n"
    assert close_thought("<think>x</think>\n") == "<think>x</think>\n"


def test_shared_text_is_tokenised_once_and_rightly(tiny_loaded, records):
    """Prompts put together from the shared part equal prompts tokenised whole."""
    writer = PromptWriter(tiny_loaded, HERMES)
    same = [item for item in records if item.menu is records[0].menu and not item.system]
    group = writer.write(same, no_skip)
    assert len(group.shared) > 50
    for prompt in group.prompts:
        (alone,) = PromptWriter(tiny_loaded, HERMES).write([prompt.record], no_skip).prompts
        together = np.concatenate([group.shared, prompt.suffix])
        assert together.tolist() == alone.suffix.tolist()


def test_packs_share_and_keep_to_the_budget():
    """Rows that begin alike lie together, each owns its last token, packs hold to the budget."""
    rows = [
        np.array(row, np.int32) for row in ([1, 2, 3, 4], [9], [1, 2, 3, 5], [1, 2, 3], [1, 2, 3])
    ]
    (pack,) = plan_packs(rows, PackPlan(most=100, enough=100, token_cost=1))
    assert pack.members == (3, 4, 0, 2, 1)
    assert pack.kept == (0, 2, 2, 3, 0)
    packs = list(plan_packs(rows, PackPlan(most=4, enough=4, token_cost=1)))
    assert sorted(member for pack in packs for member in pack.members) == [0, 1, 2, 3, 4]
    lengths = [
        sum(len(rows[member]) - kept for member, kept in zip(pack.members, pack.kept, strict=True))
        for pack in packs
    ]
    assert max(lengths) <= 4


def test_prefixes_are_dropped_when_they_fill_the_store(tiny_loaded):
    """The store keeps the prefixes used last, within its tokens, and always the last one."""
    store = PrefixStore(tiny_loaded, tokens=10)
    first, second, long = (np.arange(size, dtype=np.int32) for size in (4, 6, 12))
    kept = store.get(first)
    store.get(second)
    assert store.get(first) is kept
    assert store.get(long).length == 12
    assert store.get(first) is not kept


def test_menus_of_equal_text_form_one_group(tiny_loaded, tiny_menu):
    """Equal menus that are different objects share one prefix."""
    copies = [Menu.of(json.loads(json.dumps(tiny_menu.schemas()))) for _ in range(2)]
    writer = PromptWriter(tiny_loaded, HERMES)
    keys = {writer.group_key(record(i, menu, "go")) for i, menu in enumerate(copies)}
    assert len(keys) == 1


def test_loaded_model_is_what_collect_takes(tiny_loaded):
    """The fixture is the runtime's own value, not a stand-in."""
    assert isinstance(tiny_loaded, LoadedModel)
