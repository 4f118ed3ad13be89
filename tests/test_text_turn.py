"""Turns that are offered no tools: plain text, equal to what the bare model writes."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import tiny_tokenizers
from fakes import quiet_guard, script_for
from transformers import LogitsProcessorList

from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import LoadedModel, wrap_model
from toolguard.adapters.wire.detection import FORMATS
from toolguard.guard.errors import ConfigError, UnsupportedModel
from toolguard.guard.tools import ToolCall

ASK = [{"role": "user", "content": "weather in Rome please"}]
WITH_CALLS = [
    {"role": "system", "content": "Be short."},
    *ASK,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "get_time", "arguments": {}}}],
    },
    {"role": "tool", "name": "get_time", "content": "noon"},
]


@pytest.fixture(scope="module")
def agent(tiny_loaded: LoadedModel) -> GuardedAgent:
    """Give an agent that would block any call."""
    return GuardedAgent.of(tiny_loaded, quiet_guard(None, mode="enforce", unlisted="deny"))


def scripted(agent: GuardedAgent, text: str) -> dict[str, Any]:
    return {"logits_processor": LogitsProcessorList([script_for(agent.loaded.tokenizer, text)])}


def test_a_turn_without_tools_is_the_bare_models(agent: GuardedAgent) -> None:
    """Same tokens as HF generate on the template without tools; nothing is judged."""
    tokenizer = agent.loaded.tokenizer
    inputs = tokenizer.apply_chat_template(
        ASK, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    plain = agent.loaded.model.generate(**inputs, max_new_tokens=12)
    width = inputs["input_ids"].shape[1]
    result = agent.generate(ASK, (), max_new_tokens=12)
    assert list(result.tokens) == plain[0, width:].tolist()
    assert (result.calls, result.judged, result.prompt_tokens) == ((), (), width)
    assert result.finish_reason == "length"


def test_what_looks_like_a_call_is_text(agent: GuardedAgent) -> None:
    """Nothing was offered, so nothing is a call: the text stays text and cannot run."""
    text = agent.wire.call_text(ToolCall(name="send_email"))
    result = agent.generate(ASK, (), **scripted(agent, text))
    assert result.message == {"role": "assistant", "content": text}
    assert (result.calls, result.finish_reason) == ((), "stop")


def test_text_streams_whole_characters(agent: GuardedAgent) -> None:
    """Pieces add up to the content, and no piece ends in half a character."""
    pieces: list[str] = []
    text = "Grüße aus Rom ☀ und 東京."
    result = agent.generate(ASK, (), on_text=pieces.append, **scripted(agent, text))
    assert "".join(pieces) == result.message["content"] == text
    assert len(pieces) > 5
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_batch_equals_single_turns(agent: GuardedAgent) -> None:
    """Padding changes no row; a row that ends early is not filled up."""
    asks = [ASK, [{"role": "user", "content": "hi"}]]
    together = agent.generate_batch(asks, (), max_new_tokens=8)
    alone = [agent.generate(ask, (), max_new_tokens=8) for ask in asks]
    assert [result.tokens for result in together] == [result.tokens for result in alone]


def test_the_turn_can_begin_with_given_text(agent: GuardedAgent) -> None:
    """A prefill is part of the content."""
    result = agent.generate(ASK, (), prefill="Well, ", max_new_tokens=4)
    assert result.message["content"].startswith("Well, ")


@pytest.mark.parametrize("wire", sorted(FORMATS))
def test_earlier_calls_stay_in_the_prompt(wire: str) -> None:
    """A conversation that used tools goes on without them, as far as the template tells calls."""
    template = tiny_tokenizers.TEMPLATES.get(wire, tiny_tokenizers.PLAIN)
    tokenizer = tiny_tokenizers.with_template(template, tiny_tokenizers.byte_level_bpe())
    text = FORMATS[wire].render_plain(tokenizer, WITH_CALLS)
    for said in ("Be short.", "weather in Rome", "noon"):
        assert said in text
    assert "get_time" in text or "tools" in template
    assert "You can use these tools" not in text


def test_a_tokenizer_without_a_template_cannot_talk() -> None:
    """There is no telling how a conversation is put to such a model."""
    tokenizer = tiny_models.tiny_tokenizer()
    tokenizer.chat_template = None
    model = tiny_models.tiny_model(vocab_size=len(tokenizer))
    agent = GuardedAgent.of(wrap_model(model, tokenizer), quiet_guard(None), wire="name_only")
    with pytest.raises(UnsupportedModel, match="chat template"):
        agent.generate(ASK, ())


def test_a_prompt_that_leaves_no_room_is_a_config_error(agent: GuardedAgent) -> None:
    """As in a guarded turn."""
    with pytest.raises(ConfigError, match="no room"):
        agent.generate(ASK, (), max_length=3)
