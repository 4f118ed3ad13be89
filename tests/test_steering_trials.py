"""Trials: many changes in one packed pass do what each alone does in a plain one."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from toolguard.adapters.blocks import tap_blocks
from toolguard.adapters.loading import wrap_model
from toolguard.adapters.wire import get_format
from toolguard.calibration.datasets.records import Call, Record
from toolguard.calibration.reading.collect import collect
from toolguard.calibration.reading.generation import turn_text
from toolguard.calibration.reading.prompts import PromptWriter
from toolguard.calibration.steering_lab.changes import LogitBias, Push
from toolguard.calibration.steering_lab.reading import LabReader
from toolguard.calibration.steering_lab.trials import Trial, TrialBench
from toolguard.guard.tools import Menu

HERMES = get_format("hermes")
QUERIES = ("What is the weather in Rome?", "Search the web for flights.", "time?", "Mail Ann hello")
LAYERS = (0, 1, 2)


def refuse(_record, error):
    raise error


@pytest.fixture(scope="module")
def loaded(tiny_tokenizer):
    """Give a model whose choices differ: its weights are large."""
    return spread("qwen3", tiny_tokenizer)


def spread(family, tokenizer, seed=1):
    model = tiny_models.tiny_model(family, vocab_size=len(tokenizer), seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return wrap_model(model, tokenizer)


@pytest.fixture(scope="module")
def records(tiny_menu):
    return [
        Record(
            id=f"r{index}",
            source="s",
            split="t",
            query=query,
            tools=tiny_menu.tools,
            call={"name": "search"},
        ).with_menu(tiny_menu)
        for index, query in enumerate(QUERIES)
    ]


def group_of(loaded, records):
    return PromptWriter(loaded, HERMES).write(records, refuse)


def draw(count, width=32, seed=0, size=8.0):
    return size * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def pushes(group, per_prompt=4):
    """Give each prompt one trial without a change and some with pushes at several layers."""
    vectors = draw(len(group.prompts) * per_prompt)
    return [
        Trial(
            prompt=prompt,
            changes={} if k == 0 else {(): Push(layer=LAYERS[k % 3], vector=vectors[i * k])},
        )
        for i, prompt in enumerate(group.prompts)
        for k in range(per_prompt)
    ]


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("until", ["name", "end"])
def test_a_pack_of_trials_writes_what_each_alone_does(family, until, tiny_tokenizer, records):
    """Rows of one pack never see each other's pushes: every one writes as if it ran by itself."""
    loaded = spread(family, tiny_tokenizer)
    group = group_of(loaded, records)
    trials = pushes(group)
    told = [
        TrialBench(loaded, new_tokens=12, share_prefix=share).run(group.shared, trials, until)
        for share in (True, False)
    ]
    assert [one.tokens for one in told[0]] == [one.tokens for one in told[1]]
    assert len({one.tokens for one in told[0]}) > len(records)


def test_a_push_is_a_hook_on_the_last_prompt_token(loaded, records):
    """The oracle: `generate` of the whole prompt, its last position pushed once."""
    group = group_of(loaded, records[:2])
    vector = draw(1, seed=3)[0]
    trials = [Trial(prompt=p, changes={(): Push(layer=1, vector=vector)}) for p in group.prompts]
    bench = TrialBench(loaded, new_tokens=10)
    for trial, one in zip(trials, bench.run(group.shared, trials, "end"), strict=True):
        ids = [*group.shared.tolist(), *trial.prompt.suffix.tolist()]
        assert list(one.tokens) == generated(loaded, ids, vector, 10)


def generated(loaded, ids, vector, new_tokens):
    passes = []

    def add(_layer, hidden):
        passes.append(hidden.shape[1])
        if len(passes) > 1:
            return None
        pushed = hidden.clone()
        pushed[:, -1] += vector
        return pushed

    with tap_blocks(loaded.view, [1], add), torch.no_grad():
        output = loaded.model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return output[0, len(ids) :].tolist()


def test_what_is_read_is_what_collection_reads(loaded, records):
    """At the decision token a trial reads the state before its own push."""
    group = group_of(loaded, records)
    trials = [
        Trial(prompt=p, changes={(): Push(layer=0, vector=draw(1)[0])}) for p in group.prompts
    ]
    told = TrialBench(loaded).run(group.shared, trials, "start", read=[0])
    seen = {
        one.record_id: one.hidden
        for one in collect(loaded, HERMES, records, layers=[0], on_skip=refuse)
    }
    for trial, one in zip(trials, told, strict=True):
        assert one.tokens == ()
        torch.testing.assert_close(one.hidden, seen[trial.prompt.record.id], atol=1e-4, rtol=1e-4)


def test_a_forced_name_is_the_name(loaded, records):
    """The whole path of a name as opening leaves nothing to choose."""
    group = group_of(loaded, records[:2])
    trials = [
        Trial(prompt=prompt, opening=prompt.trie.path_of(name))
        for prompt in group.prompts
        for name in prompt.trie.names
    ]
    told = TrialBench(loaded).run(group.shared, trials, "name")
    assert [one.name for one in told] == [n for p in group.prompts for n in p.trie.names]
    text = turn_text(loaded, group.prompts[0], told[0].tokens)
    assert text.startswith('<tool_call>\n{"name": "get_weather"')


def test_a_bias_chooses_and_without_it_a_token_outside_all_names_is_no_name(loaded, records):
    """A large bias writes its token; a token that begins no name leaves the trial without one."""
    group = group_of(loaded, records[:1])
    prompt = group.prompts[0]
    first = prompt.trie.path_of("search")[0]
    outside = next(token for token in range(400) if prompt.trie.advance(0, token) is None)
    trials = [
        Trial(prompt=prompt, changes={(): LogitBias(token=token, value=1e4)})
        for token in (first, outside)
    ]
    inside, lost = TrialBench(loaded).run(group.shared, trials, "name")
    assert inside.tokens[0] == first
    assert (lost.tokens, lost.name) == ((outside,), None)


@pytest.mark.parametrize("share", [True, False])
def test_a_later_change_acts_where_its_tokens_stand(loaded, records, share):
    """A change keyed by a name's beginning acts when that has been written, and not before."""
    group = group_of(loaded, records[:1])
    prompt = group.prompts[0]
    weather, time = (prompt.trie.path_of(name) for name in ("get_weather", "get_time"))
    common = next(k for k, pair in enumerate(zip(weather, time, strict=False)) if len({*pair}) > 1)
    assert common > 0, "the two names must begin alike"
    bench = TrialBench(loaded, share_prefix=share)
    for path, name in ((weather, "get_weather"), (time, "get_time")):
        changes = {
            path[:depth]: LogitBias(token=path[depth], value=1e4) for depth in range(common + 1)
        }
        (one,) = bench.run(group.shared, [Trial(prompt=prompt, changes=changes)], "name")
        assert one.singled_out == name


@pytest.mark.parametrize("until", ["name", "end"])
def test_a_later_push_equals_one_at_the_end_of_an_opening(loaded, records, until):
    """A push met on the way does what it does where the same tokens were forced."""
    group = group_of(loaded, records[:1])
    prompt = group.prompts[0]
    path = prompt.trie.path_of("get_time")
    node = 0
    for depth, token in enumerate(path):
        if depth and len(prompt.trie.children(node)) > 1:
            break
        node = prompt.trie.advance(node, token)
    opening = path[:depth]
    push = Push(layer=1, vector=draw(1, seed=5, size=40.0)[0])
    forced = Trial(prompt=prompt, opening=opening, changes={opening: push})
    walked = Trial(
        prompt=prompt,
        changes={opening[:k]: LogitBias(token=opening[k], value=1e4) for k in range(len(opening))}
        | {opening: push},
    )
    plain = Trial(prompt=prompt, opening=opening)
    bench = TrialBench(loaded, new_tokens=len(opening) + 6)
    first, second, unpushed = bench.run(group.shared, [forced, walked, plain], until)
    shorter = min(len(first.tokens), len(second.tokens))
    assert first.tokens[:shorter] == second.tokens[:shorter]
    assert first.tokens != unpushed.tokens


def test_writing_stops_at_the_end_of_the_context(tiny_tokenizer, records):
    """A model that knows few positions is never asked for one more."""
    model = tiny_models.tiny_model("gpt2", vocab_size=len(tiny_tokenizer))
    loaded = wrap_model(model, tiny_tokenizer)
    group = group_of(loaded, records[:2])
    length = max(len(group.shared) + len(prompt.suffix) for prompt in group.prompts)
    model.config.n_positions = length + 3
    trials = [Trial(prompt=prompt) for prompt in group.prompts]
    told = TrialBench(loaded, new_tokens=50).run(group.shared, trials, "end")
    assert all(
        len(group.shared) + len(prompt.suffix) + len(one.tokens) <= length + 3
        for prompt, one in zip(group.prompts, told, strict=True)
    )
    assert any(one.tokens for one in told)


def test_a_mean_where_names_part_late_is_the_state_there(loaded, records):
    """One right call: its means are the plain forward's states, at the decision and behind it."""
    reader = LabReader(
        loaded=loaded, wire=HERMES, layers=LAYERS, names_only=False, batch_tokens=4096
    )
    menu = Menu.of([{"name": name} for name in ("get_time", "get_weather", "get_wind")])
    asked = [
        Record(
            id=f"m{i}", source="s", split="t", query=query, tools=menu.tools, call={"name": name}
        ).with_menu(menu)
        for i, query in enumerate(QUERIES)
        for name in menu.names[i % 3 : i % 3 + 1]
    ]
    choice = reader.choices(asked).choices[0]
    right = choice.record.model_copy(update={"call": Call(name=choice.chosen)}).with_menu(menu)
    means = reader.means(TrialBench(loaded), [right], fewest=1)
    prompt = group_of(loaded, [right]).prompts[0]
    openings = [opening for opening, _ in means.rows]
    assert () in openings
    assert any(openings), "these names part behind their first token"
    for opening in openings:
        assert prompt.trie.path_of(choice.chosen)[: len(opening)] == opening
        ids = torch.tensor([[*prompt.suffix.tolist(), *opening]])
        with torch.no_grad():
            states = loaded.model(ids, output_hidden_states=True).hidden_states
        for layer in (0, 1):  # behind the last block, transformers gives the state after the norm
            found = means.mean(opening, choice.chosen, layer)
            torch.testing.assert_close(found, states[layer + 1][0, -1], atol=1e-3, rtol=1e-4)
