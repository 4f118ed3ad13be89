"""Turns that must open with a call: in every format, whatever the model would rather write."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import tiny_models
import tiny_tokenizers
from fakes import fake_profile, quiet_guard, script_for
from transformers import LogitsProcessorList

from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import wrap_model
from toolguard.adapters.wire.detection import FORMATS
from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import Menu

NAMES = ("get", "get_time", "search", "searchWeb")
MENU = Menu.of([{"name": name} for name in NAMES])
ASK = [{"role": "user", "content": "do it"}]
SPLITS = {"apart": tiny_tokenizers.APART, "fused": tiny_tokenizers.WORDS}


@cache
def agent_for(wire: str, split: str = "apart", **policy: Any) -> GuardedAgent:
    bpe = tiny_tokenizers.byte_level_bpe(SPLITS[split])
    tokenizer = tiny_tokenizers.with_template(tiny_tokenizers.TEMPLATES.get(wire), bpe)
    model = tiny_models.tiny_model("qwen3", vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = 0
    loaded = wrap_model(model, tokenizer)
    profile = fake_profile(loaded, MENU, wire=FORMATS[wire])
    return GuardedAgent.of(loaded, quiet_guard(profile, mode="enforce", **policy), wire=wire)


def prose(agent: GuardedAgent) -> dict[str, Any]:
    script = script_for(agent.loaded.tokenizer, "it rains and rains")
    return {"logits_processor": LogitsProcessorList([script]), "max_new_tokens": 16}


@pytest.mark.parametrize("wire", sorted(FORMATS))
@pytest.mark.parametrize("split", sorted(SPLITS))
@pytest.mark.parametrize("name", NAMES)
def test_the_required_tool_is_called_and_read(wire: str, split: str, name: str) -> None:
    """Its name is written though the model talks, and the guard has whole evidence on it."""
    agent = agent_for(wire, split)
    result = agent.generate(ASK, MENU.tools, must_call=(name,), **prose(agent))
    first = result.decisions[0]
    assert first.tool == name
    assert (first.action, first.reading.fault) == ("allow", "")
    assert set(first.reading.scores) == {"logprob", "activation"}


@pytest.mark.parametrize("wire", sorted(FORMATS))
def test_one_of_several_is_the_likeliest_of_them(wire: str) -> None:
    """Among the required names the model's own choice counts; others are closed."""
    agent = agent_for(wire)
    free = {"max_new_tokens": 12}
    chosen = {
        agent.generate(ASK, MENU.tools, must_call=names, **free).decisions[0].tool
        for names in (NAMES, NAMES[2:])
    }
    assert chosen <= set(NAMES)
    two = agent.generate(ASK, MENU.tools, must_call=NAMES[2:], **free).decisions[0]
    assert two.tool in NAMES[2:]


def test_the_evidence_is_that_of_the_unforced_model() -> None:
    """Closing the other names for the turn does not raise this one's score."""
    agent = agent_for("hermes")
    opening = {"prefill": agent.wire.prefix(), "max_new_tokens": 12}
    for name in NAMES:
        script = LogitsProcessorList([script_for(agent.loaded.tokenizer, f'{name}", ')])
        free = agent.generate(ASK, MENU.tools, logits_processor=script, **opening).decisions[0]
        forced = agent.generate(ASK, MENU.tools, must_call=(name,), max_new_tokens=12).decisions[0]
        assert (free.tool, free.reading.fault) == (name, "")
        assert forced.reading.scores == free.reading.scores
        assert forced.reading.p_wrong == free.reading.p_wrong


def test_only_the_first_call_is_required() -> None:
    """What follows it is the model's own."""
    agent = agent_for("hermes")
    script = script_for(agent.loaded.tokenizer, '", "arguments": {}}\n</tool_call>\nThat is all.')
    result = agent.generate(
        ASK,
        MENU.tools,
        must_call=("get",),
        logits_processor=LogitsProcessorList([script]),
        max_new_tokens=60,
    )
    assert len(result.decisions) == 1


def test_a_denied_tool_that_is_required_is_vetoed() -> None:
    """The rule stands over the wish, and no argument is written."""
    agent = agent_for("hermes")
    denying = GuardedAgent.of(
        agent.loaded,
        quiet_guard(agent.guard.profile, mode="enforce", tools={"get": {"rule": "deny"}}),
    )
    result = denying.generate(ASK, MENU.tools, must_call=("get",), **prose(agent))
    assert result.calls == ()
    assert [(d.tool, d.reason) for d in result.decisions] == [("get", "rule_deny")]


def test_an_open_thought_is_closed_before_the_call() -> None:
    """A template that opens a thought would make the call a mere thought."""
    agent = agent_for("hermes")
    tokenizer = agent.loaded.tokenizer
    template = tokenizer.chat_template
    tokenizer.chat_template = template + "{%- if add_generation_prompt %}<think>\n{%- endif %}"
    try:
        thinking = GuardedAgent.of(agent.loaded, quiet_guard(None), wire="hermes")
        result = thinking.generate(ASK, MENU.tools, must_call=("search",), **prose(agent))
    finally:
        tokenizer.chat_template = template
    assert [d.tool for d in result.decisions] == ["search"]
    assert result.text.startswith("<think>\n</think>")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"must_call": ("got",)}, "not on the menu"),
        ({"must_call": ("get",), "prefill": "x"}, "prefill"),
        ({"must_call": ("get",), "tools": ()}, "no tools"),
    ],
)
def test_what_cannot_be_required_is_a_config_error(options: dict[str, Any], match: str) -> None:
    """A name off the menu, a turn that begins otherwise, a turn without tools."""
    agent = agent_for("hermes")
    with pytest.raises(ConfigError, match=match):
        agent.generate(ASK, **{"tools": MENU.tools, **options})
