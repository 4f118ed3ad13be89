"""A vetoed tool's call is never produced, whatever the model samples and the prompt forces."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import tiny_models
import tiny_tokenizers
import torch
from fakes import Script, fake_profile, quiet_guard, script_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList

from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import LoadedModel, wrap_model
from toolguard.adapters.turn_result import GuardedResult
from toolguard.adapters.wire.detection import FORMATS
from toolguard.guard.tools import Menu, ToolCall

FAMILIES = ("qwen3", "llama", "gemma2", "gpt2")
NAMES = ("get", "get_time", "get_times", "search", "searchWeb", "search.web")
MENU = Menu.of([{"name": name} for name in NAMES])
ASK = [{"role": "user", "content": "do it"}]
POLICIES = {
    "denied": lambda names: {"tools": {name: {"rule": "deny"} for name in names}},
    "unlisted": lambda names: {
        "unlisted": "deny",
        "tools": {name: {"rule": "allow"} for name in NAMES if name not in names},
    },
    "doubtful": lambda names: {
        "tools": {
            name: {"doubtful": "veto"} if name in names else {"rule": "allow"} for name in NAMES
        }
    },
}
HOT = {"do_sample": True, "temperature": 5.0, "top_k": 0, "max_new_tokens": 48}


@cache
def loaded_model(family: str, seed: int, wire: str) -> LoadedModel:
    bpe = tiny_tokenizers.byte_level_bpe(tiny_tokenizers.APART)
    tokenizer = tiny_tokenizers.with_template(tiny_tokenizers.TEMPLATES.get(wire), bpe)
    model = tiny_models.tiny_model(family, vocab_size=len(tokenizer), seed=seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = 0
    return wrap_model(model, tokenizer)


@cache
def agent_for(
    family: str, seed: int, wire: str, rule: str, vetoed: tuple[str, ...]
) -> GuardedAgent:
    loaded = loaded_model(family, seed, wire)
    profile = fake_profile(loaded, MENU, wire=FORMATS[wire], threshold=None)
    guard = quiet_guard(profile, mode="enforce", **POLICIES[rule](vetoed))
    return GuardedAgent.of(loaded, guard, wire=wire)


def assert_never_called(agent: GuardedAgent, result: GuardedResult, vetoed: Any) -> None:
    called = [call["function"]["name"] for call in result.message.get("tool_calls", ())]
    assert called == [call.name for call in result.calls]
    assert not set(called) & set(vetoed)
    assert set(called) <= set(NAMES)
    if agent.wire.name != "name_only":  # there a name is a whole call, so it can only be refused
        turn, _fault = agent.wire.parse_written(result.text, menu=MENU)
        assert not {call.name for call in turn.calls} & set(vetoed)
    for decision in result.decisions:
        assert decision.executed_tool not in vetoed


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 2),
    wire=st.sampled_from(sorted(FORMATS)),
    rule=st.sampled_from(sorted(POLICIES)),
    vetoed=st.sets(st.sampled_from(NAMES), min_size=1).map(lambda names: tuple(sorted(names))),
    part=st.sampled_from(["none", "prefix", "part", "name", "denied name", "arguments"]),
    cut=st.integers(0, 12),
    rows=st.sampled_from([1, 3]),
    draw=st.integers(0, 2**31),
)
def test_a_vetoed_call_is_never_produced(  # noqa: PLR0917 - hypothesis draws them all
    family: str,
    seed: int,
    wire: str,
    rule: str,
    vetoed: tuple[str, ...],
    part: str,
    cut: int,
    rows: int,
    draw: int,
) -> None:
    """At temperature 5, from any forced beginning, no call of a vetoed tool comes out or runs."""
    agent = agent_for(family, seed, wire, rule, vetoed)
    name = vetoed[cut % len(vetoed)]
    whole = agent.wire.call_text(ToolCall(name=name))
    opened = agent.wire.prefix() + agent.wire.spell(name)
    prefill = {
        "none": "",
        "prefix": agent.wire.prefix(),
        "part": opened[: len(agent.wire.prefix()) + cut],
        "name": opened,
        "denied name": whole[: len(opened) + 1],
        "arguments": whole[: len(opened) + 2 + cut],
    }[part]
    if wire != "name_only" and prefill == whole:
        prefill = whole[:-1]
    torch.manual_seed(draw)
    for result in agent.generate_batch([ASK] * rows, MENU.tools, prefill=prefill, **HOT):
        if part == "arguments":  # the caller wrote them; they must not run all the same
            assert not {call.name for call in result.calls} & set(vetoed)
        else:
            assert_never_called(agent, result, vetoed)


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2),
    wire=st.sampled_from(sorted(set(FORMATS) - {"name_only"})),
    pieces=st.lists(st.sampled_from(list("getimsarchW_.b")), max_size=10),
    rest=st.sampled_from(
        ['", "arguments": {}}\n</tool_call>', "[ARGS]{}", ">\n</function>", "()]"]
    ),
    rows=st.sampled_from([1, 2]),
)
def test_no_spelling_slips_through(
    seed: int, wire: str, pieces: list[str], rest: str, rows: int
) -> None:
    """A model that writes any characters as any tokens gets no vetoed call out."""
    agent = agent_for("qwen3", seed, wire, "unlisted", NAMES)
    tokenizer = agent.loaded.tokenizer
    characters = [*agent.wire.prefix(), *pieces, *rest]
    tokens = [i for c in characters for i in tokenizer(c, add_special_tokens=False)["input_ids"]]
    script = Script(None, [tokens] * rows, tokenizer.eos_token_id)
    options = {"logits_processor": LogitsProcessorList([script]), "max_new_tokens": 80}
    for result in agent.generate_batch([ASK] * rows, MENU.tools, **options):
        assert result.calls == ()
        assert_never_called(agent, result, NAMES)


@pytest.mark.parametrize("wire", sorted(FORMATS))
@pytest.mark.parametrize("rule", sorted(POLICIES))
@pytest.mark.parametrize("name", NAMES)
def test_a_model_bent_on_a_vetoed_call_is_stopped_at_its_name(
    wire: str, rule: str, name: str
) -> None:
    """Written token by token as the menu spells it, the call ends before its arguments."""
    agent = agent_for("qwen3", 0, wire, rule, (name,))
    text = agent.wire.call_text(ToolCall(name=name))
    script = LogitsProcessorList([script_for(agent.loaded.tokenizer, text)])
    result = agent.generate(ASK, MENU.tools, logits_processor=script)
    assert result.calls == ()
    assert result.decisions[-1].action == "veto"
    assert result.finish_reason == "guard"
    assert_never_called(agent, result, (name,))


def test_a_stopped_row_stays_silent_while_its_batch_goes_on() -> None:
    """Without any end token the rows of a batch are still stopped one by one."""
    agent = agent_for("qwen3", 0, "hermes", "denied", ("search",))
    tokenizer = agent.loaded.tokenizer
    call = tokenizer(agent.wire.call_text(ToolCall(name="search")))["input_ids"]
    prompt = tokenizer([agent.wire.render(tokenizer, ASK, MENU)] * 2, return_tensors="pt")
    prose = tokenizer("it rains and rains and rains in Rome and elsewhere today")["input_ids"]
    script = Script(None, [call, prose], prose[0])
    before = agent.loaded.model.generation_config.eos_token_id
    agent.loaded.model.generation_config.eos_token_id = None
    try:
        tokens = agent.generate_ids(
            prompt["input_ids"],
            prompt["attention_mask"],
            MENU.tools,
            max_new_tokens=len(call) + 4,
            logits_processor=LogitsProcessorList([script]),
        )
    finally:
        agent.loaded.model.generation_config.eos_token_id = before
    text = tokenizer.decode(tokens.sequences[0][prompt["input_ids"].shape[1] :])
    assert "search" in text
    assert "arguments" not in text
    assert tokens.judged[0][0].decision.action == "veto"
