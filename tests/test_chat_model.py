"""The chat model: which calls it hands on, what it says of the others, and what can be asked."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_profile
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from pydantic import BaseModel, ValidationError
from scripted_chat import Answer, call_text, chat_over, guard_of, last_user_text, says

from toolguard.adapters.chat.chat_model import GuardedChatModel
from toolguard.adapters.chat.reply import NOT_CALLED
from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import LoadedModel, load_model
from toolguard.guard.call_record import CallRecord
from toolguard.guard.errors import ConfigError
from toolguard.guard.guard import Guard
from toolguard.guard.policy import Policy
from toolguard.guard.seal import Seal
from toolguard.guard.tools import Menu

WEATHER = call_text("get_weather", city="Rome")
ASK = "What is the weather in Rome today?"
BOUNDARY = {"toolguard_boundary": True}


class Chats:
    """Makes chat models over one tiny model, with the tiny menu bound."""

    def __init__(self, loaded: LoadedModel, menu: Menu) -> None:
        self.loaded, self.menu = loaded, menu

    def model(self, answer: Answer | str, **policy: Any) -> GuardedChatModel:
        answer = says(answer) if isinstance(answer, str) else answer
        return chat_over(self.loaded, guard_of(self.loaded, self.menu, **policy), answer)

    def bound(self, answer: Answer | str, *, bind: Any = None, **policy: Any) -> Any:
        return self.model(answer, **policy).bind_tools(self.menu.schemas(), **(bind or {}))


@pytest.fixture(scope="module")
def chats(tiny_loaded: LoadedModel, tiny_menu: Menu) -> Chats:
    """Give the maker of chat models."""
    return Chats(tiny_loaded, tiny_menu)


def records(message: AIMessage) -> dict[str, dict[str, Any]]:
    return message.response_metadata["toolguard"]


def opened(model: Any, message: AIMessage) -> list[CallRecord | None]:
    seal = getattr(model, "bound", model).seal
    return [CallRecord.opened(stored, seal) for stored in records(message).values()]


def test_an_allowed_call_is_handed_on_with_its_record(chats: Chats) -> None:
    """The call has an id, its arguments, and a signed record of the decision under that id."""
    model = chats.bound(WEATHER)
    message = model.invoke(ASK)
    (call,) = message.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Rome"})
    assert message.invalid_tool_calls == []
    (record,) = opened(model, message)
    assert record is not None
    assert (record.call_id, record.tool, record.action) == (call["id"], "get_weather", "allow")
    assert record.arguments == model.bound.seal.digest(call["args"])
    assert record.evidence["p_wrong"] is not None


def test_a_record_is_worthless_under_another_key(chats: Chats) -> None:
    """Whoever lacks the key can neither make nor change a record."""
    message = chats.bound(WEATHER).invoke(ASK)
    (stored,) = records(message).values()
    assert CallRecord.opened(stored, Seal()) is None


@pytest.mark.parametrize("doubtful", ["veto", "clarify", "confirm"])
def test_a_blocked_call_is_not_handed_on(chats: Chats, doubtful: str) -> None:
    """It stands among the invalid calls, with the reason but neither scores nor arguments."""
    tools = {"get_weather": {"doubtful": doubtful}}
    model = chats.bound(WEATHER, threshold=None, tools=tools)
    message = model.invoke(ASK)
    assert message.tool_calls == []
    (call,) = message.invalid_tool_calls
    assert (call["name"], call["args"]) == ("get_weather", NOT_CALLED)
    assert "get_weather" in call["error"]
    assert not any(character.isdigit() for character in call["error"])
    (record,) = opened(model, message)
    assert record is not None
    assert (record.call_id, record.action) == (call["id"], doubtful)
    assert message.content
    assert message.response_metadata["finish_reason"] == "guard"


@pytest.mark.parametrize(
    ("doubtful", "arguments"), [("veto", {}), ("clarify", {}), ("confirm", {"city": "Rome"})]
)
def test_the_boundary_gets_every_call_and_answers_for_it(
    chats: Chats, doubtful: str, arguments: dict[str, str]
) -> None:
    """A call that waits for a person is whole, a blocked one has no arguments; both say so."""
    tools = {"get_weather": {"doubtful": doubtful}}
    model = chats.bound(WEATHER, threshold=None, tools=tools, bind=BOUNDARY)
    message = model.invoke(ASK)
    (call,) = message.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", arguments)
    (record,) = opened(model, message)
    assert record is not None
    assert (record.call_id, record.action) == (call["id"], doubtful)
    assert record.arguments == model.bound.seal.digest(arguments)
    assert message.content == ""


def test_what_the_boundary_changes_is_nothing_for_allowed_calls(chats: Chats) -> None:
    """An allowed call looks the same whether or not a middleware stands behind the model."""
    (plain,) = chats.bound(WEATHER).invoke(ASK).tool_calls
    (bounded,) = chats.bound(WEATHER, bind=BOUNDARY).invoke(ASK).tool_calls
    assert {**plain, "id": ""} == {**bounded, "id": ""}


def test_a_name_that_is_not_on_the_menu_is_blocked(chats: Chats) -> None:
    """Also one that differs by a space or a letter that looks alike; the record holds no name."""
    for name in ("rm_rf", "get_weather ", "get_wеather"):
        model = chats.bound(call_text(name, city="Rome"))
        message = model.invoke(ASK)
        assert message.tool_calls == []
        (record,) = opened(model, message)
        assert record is not None
        assert (record.tool, record.reason) == (None, "not_on_menu")


def test_a_redirected_call_carries_the_targets_name(tiny_loaded: LoadedModel, chats: Chats) -> None:
    """The record tells both names: what the model chose and what is called."""

    def answer(_prompt: str, turn: str) -> str:
        begun = next((name for name in chats.menu.names if f'"{name}"' in turn), "search")
        return call_text(begun, city="Rome")

    rules = {name: {"tier": "write", "doubtful": "redirect"} for name in chats.menu.names}
    seen = set()
    for name in chats.menu.names:
        model = chats.bound(
            lambda prompt, turn, name=name: answer(prompt, turn) if turn else call_text(name),
            threshold=None,
            tools=rules,
            bind={"tool_choice": name},
        )
        message = model.invoke(ASK)
        (record,) = opened(model, message)
        assert record is not None
        assert record.tool == name
        seen.add(record.action)
        if record.action == "redirect":
            assert [call["name"] for call in message.tool_calls] == [record.target]
    assert "redirect" in seen


def test_a_malformed_call_has_no_record_that_vouches_for_it(chats: Chats) -> None:
    """Its name was fine, its arguments never came: the record closes it, in every mode."""
    for policy in ({}, {"mode": "monitor"}, {"bind": BOUNDARY}):
        model = chats.bound('<tool_call>\n{"name": "search", "arguments": {"query": ', **policy)
        message = model.invoke(ASK)
        assert message.tool_calls == []
        (call,) = message.invalid_tool_calls
        assert (call["name"], call["args"]) == ("search", NOT_CALLED)
        (record,) = opened(model, message)
        assert record is not None
        assert (record.action, record.proposed) == ("veto", "veto")


def test_text_that_breaks_off_before_a_name_is_told(chats: Chats) -> None:
    """There is nothing to decide on, but the caller learns that a call was begun."""
    message = chats.bound("<tool_call>\nnonsense").invoke(ASK)
    (call,) = message.invalid_tool_calls
    assert call["name"] is None
    assert records(message) == {}


def test_parallel_calls_are_judged_one_by_one(chats: Chats) -> None:
    """Calls before a blocked one are handed on, each with a record and an id of its own."""
    text = "\n".join([WEATHER, call_text("get_time", city="Rome"), call_text("send_email")])
    model = chats.bound(text, tools={"send_email": {"rule": "deny"}})
    message = model.invoke(ASK)
    assert [call["name"] for call in message.tool_calls] == ["get_weather", "get_time"]
    assert [call["name"] for call in message.invalid_tool_calls] == ["send_email"]
    assert [record.action for record in opened(model, message)] == ["allow", "allow", "veto"]
    assert len(records(message)) == 3


def test_monitor_mode_hands_everything_on(chats: Chats) -> None:
    """The record says what enforce mode would have done."""
    model = chats.bound(WEATHER, threshold=None, mode="monitor", tools={})
    message = model.invoke(ASK)
    (record,) = opened(model, message)
    assert record is not None
    assert (record.action, record.mode) == ("allow", "monitor")
    assert record.proposed != "allow"
    assert len(message.tool_calls) == 1


def test_a_conversation_with_results_goes_on(chats: Chats) -> None:
    """A turn after a tool result sees the call and the result in the prompt."""
    prompts = []

    def answer(prompt: str, _turn: str) -> str:
        prompts.append(prompt)
        return "It is sunny." if "<tool_response>" in prompt else WEATHER

    model = chats.bound(answer)
    first = model.invoke([HumanMessage(ASK)])
    result = ToolMessage("sunny, 21 C", tool_call_id=first.tool_calls[0]["id"])
    second = model.invoke([HumanMessage(ASK), first, result])
    assert second.content == "It is sunny."
    assert second.tool_calls == []
    assert '"name": "get_weather"' in prompts[-1]
    assert "sunny, 21 C" in prompts[-1]


def test_a_turn_without_tools_is_text_and_nothing_in_it_is_a_call(chats: Chats) -> None:
    """Nothing was offered, so what looks like a call is text and cannot run."""
    message = chats.model(WEATHER).invoke(ASK)
    assert message.content == WEATHER
    assert message.tool_calls == message.invalid_tool_calls == []
    assert records(message) == {}
    assert message.response_metadata["finish_reason"] == "stop"


def test_choosing_none_hides_the_tools(chats: Chats) -> None:
    """With tool_choice none the prompt does not tell of the tools."""
    prompts = []

    def answer(prompt: str, _turn: str) -> str:
        prompts.append(prompt)
        return "Just words."

    message = chats.bound(answer, bind={"tool_choice": "none"}).invoke(ASK)
    assert message.content == "Just words."
    assert not any("get_weather" in prompt for prompt in prompts)


@pytest.mark.parametrize("choice", ["any", "required", True])
def test_any_makes_a_silent_model_call(chats: Chats, choice: Any) -> None:
    """A model that wants to talk is held to the opening of a call and to the menu's names."""
    model = chats.bound("I would rather talk.", bind={"tool_choice": choice, "max_tokens": 24})
    message = model.invoke(ASK)
    (record,) = opened(model, message)
    assert record is not None
    assert record.tool in chats.menu.names
    assert message.content == ""


@pytest.mark.parametrize("name", ["search", "searchWeb", "send_email"])
@pytest.mark.parametrize("form", ["name", "openai", "anthropic"])
def test_a_forced_name_is_written_and_judged(chats: Chats, name: str, form: str) -> None:
    """Whatever the model would have chosen, that tool is called, with evidence of its own."""
    choice: Any = {
        "name": name,
        "openai": {"type": "function", "function": {"name": name}},
        "anthropic": {"type": "tool", "name": name},
    }[form]

    def answer(_prompt: str, turn: str) -> str:
        return call_text(name, query="x") if name in turn else call_text("get_time", city="Rome")

    model = chats.bound(answer, bind={"tool_choice": choice})
    message = model.invoke(ASK)
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [(name, {"query": "x"})]
    (record,) = opened(model, message)
    assert record is not None
    assert record.evidence["p_wrong"] is not None
    assert record.evidence["fault"] == ""


def test_a_forced_call_does_not_pass_the_guard_for_being_forced(chats: Chats) -> None:
    """The caller's wish is no evidence: doubt and rules close a forced call like any other."""
    doubt = chats.bound(
        WEATHER,
        threshold=None,
        tools={"get_weather": {"doubtful": "veto"}},
        bind={"tool_choice": "get_weather"},
    )
    denied = chats.bound(
        WEATHER, tools={"get_weather": {"rule": "deny"}}, bind={"tool_choice": "get_weather"}
    )
    for model, reason in ((doubt, "doubtful"), (denied, "rule_deny")):
        message = model.invoke(ASK)
        assert message.tool_calls == []
        (record,) = opened(model, message)
        assert record is not None
        assert (record.action, record.reason) == ("veto", reason)


def test_a_forced_choice_of_no_bound_tool_is_refused_at_once(chats: Chats) -> None:
    """The mistake shows when tools are bound, not in the middle of a run."""
    with pytest.raises(ConfigError, match="get_whether"):
        chats.bound(WEATHER, bind={"tool_choice": "get_whether"})


class City(BaseModel):
    """A city the user asks about."""

    name: str
    country: str | None = None


def test_structured_output_is_a_forced_call(chats: Chats) -> None:
    """A schema comes back as an object, if the policy lets its tool run."""
    model = chats.model(call_text("City", name="Rome"), tools={"City": {"rule": "allow"}})
    assert model.with_structured_output(City).invoke(ASK) == City(name="Rome")
    raw = model.with_structured_output(City, include_raw=True).invoke(ASK)
    assert raw["parsed"] == City(name="Rome")
    assert records(raw["raw"])


def test_structured_output_is_not_exempt_from_the_policy(chats: Chats) -> None:
    """A schema that the policy does not let run gives nothing, and the raw message says why."""
    model = chats.model(call_text("City", name="Rome"), unlisted="deny")
    raw = model.with_structured_output(City, include_raw=True).invoke(ASK)
    assert raw["parsed"] is None
    assert "City was blocked" in raw["raw"].invalid_tool_calls[0]["error"]


def test_usage_counts_prompt_and_turn(chats: Chats) -> None:
    """Input, output and their sum are the tokenizer's counts."""
    message = chats.model("It rains.").invoke(ASK)
    tokenizer = chats.loaded.tokenizer
    turn = len(tokenizer("It rains.")["input_ids"]) + 1
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASK}], add_generation_prompt=True, return_dict=True
    )
    assert message.usage_metadata == {
        "input_tokens": len(prompt["input_ids"]),
        "output_tokens": turn,
        "total_tokens": len(prompt["input_ids"]) + turn,
    }


@pytest.mark.parametrize("stop", [["brown"], ["fox", "brown"], ["own fox"], ["", "brown"]])
def test_text_ends_before_a_stop_sequence(chats: Chats, stop: list[str]) -> None:
    """Content stops before the first sequence, generation soon after it."""
    model = chats.model("The quick brown fox jumps over the lazy dog.")
    message = model.invoke(ASK, stop=stop)
    assert message.content in ("The quick ", "The quick br")
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.usage_metadata["output_tokens"] < 30
    kept = GuardedChatModel(agent=model.agent, generate_kwargs=model.generate_kwargs, stop=stop)
    assert kept.invoke(ASK).content == message.content


def test_the_token_limit_ends_the_turn(chats: Chats) -> None:
    """The limit of the call wins over the model's own; the finish reason says so."""
    model = chats.model("The quick brown fox jumps over the lazy dog.")
    message = model.invoke(ASK, max_tokens=3)
    assert message.usage_metadata["output_tokens"] == 3
    assert message.response_metadata["finish_reason"] == "length"


def test_a_seed_repeats_the_draw_whatever_else_is_drawn(tiny_loaded: LoadedModel) -> None:
    """Equal seeds give equal turns even among threads; other seeds give others."""
    agent = GuardedAgent.of(tiny_loaded, Guard(None, Policy()))
    model = GuardedChatModel(agent=agent, temperature=1.5, max_tokens=12, top_k=50, top_p=0.99)
    alone = [model.invoke(ASK, seed=seed).content for seed in range(3)]
    together: dict[int, str] = {}

    def draw(seed: int) -> None:
        together[seed] = str(model.invoke(ASK, seed=seed).content)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[seed] for seed in range(3)] == alone
    assert len(set(alone)) == 3


def test_temperature_zero_is_greedy(tiny_loaded: LoadedModel) -> None:
    """Without randomness a seed changes nothing."""
    agent = GuardedAgent.of(tiny_loaded, Guard(None, Policy()))
    model = GuardedChatModel(agent=agent, temperature=0, max_tokens=8)
    assert model.invoke(ASK, seed=1).content == model.invoke(ASK, seed=2).content


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"num_beams": 4}, "num_beams"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"model": "another"}, "another"),
        ({"tools": [{"name": ""}]}, "name"),
    ],
)
def test_an_option_that_cannot_be_kept_is_refused(
    chats: Chats, option: dict[str, Any], match: str
) -> None:
    """No option is dropped in silence; what cannot be promised raises, sync and async."""
    model = chats.model("Hello.")
    with pytest.raises(ConfigError, match=match):
        model.invoke(ASK, **option)
    with pytest.raises(ConfigError, match=match):
        asyncio.run(model.ainvoke(ASK, **option))


@pytest.mark.parametrize("field", [{"temperature": -1}, {"top_p": 2}, {"max_tokens": 0}])
def test_fields_are_checked_when_the_model_is_made(chats: Chats, field: dict[str, Any]) -> None:
    """A value out of range never gets as far as a call."""
    with pytest.raises(ValidationError):
        GuardedChatModel(agent=chats.model("x").agent, **field)


def test_the_key_is_in_no_dump(chats: Chats) -> None:
    """Neither the agent nor the seal is part of what is printed, traced or cached."""
    model = chats.model("x")
    told = f"{model!r} {model.asdict()} {model.model_dump()}"
    assert "Seal" not in told
    assert model.seal.key.hex() not in told


def test_a_cache_never_carries_a_decision_over_to_another_policy(chats: Chats) -> None:
    """The policy's hash is part of what identifies the model."""
    one = chats.model("x")._identifying_params
    other = chats.model("x", tools={"search": {"rule": "deny"}})._identifying_params
    assert one["policy"] != other["policy"]


def test_traces_name_the_model_and_its_options(chats: Chats) -> None:
    """What LangSmith is told comes from the model in memory."""
    params = chats.model("x")._get_ls_params(stop=["a"])
    assert params["ls_provider"] == "toolguard"
    assert params["ls_model_name"] == "tiny-qwen3"
    assert params["ls_stop"] == ["a"]


def test_a_model_is_loaded_with_its_profile_and_policy(
    tiny_folder: Path, tiny_menu: Menu, tmp_path: Path
) -> None:
    """From folders and a file to a chat model whose guard enforces."""
    name = str(tiny_folder)
    fake_profile(load_model(name), tiny_menu).save(tmp_path / "profile")
    policy = tmp_path / "policy.yaml"
    policy.write_text("mode: enforce\ntools:\n  search: {rule: deny}\n")
    model = GuardedChatModel.load(name, tmp_path / "profile", policy, max_tokens=20)
    message = model.bind_tools(tiny_menu.schemas(), tool_choice="search").invoke(ASK)
    (record,) = opened(model, message)
    assert record is not None
    assert (record.tool, record.reason, record.mode) == ("search", "rule_deny", "enforce")
    assert message.response_metadata["model_name"] == name


def test_the_bundled_agent_is_judged_by_rule_alone() -> None:
    """Without a profile the policy's static rules still judge a real model's own tokens."""
    tool = {
        "name": "get_weather",
        "description": "Return the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
    rules = {"mode": "enforce", "tools": {"get_weather": {"rule": "allow"}}}
    model = GuardedChatModel.load("reference", None, Policy.load(rules), max_tokens=60)
    message = model.bind_tools([tool], tool_choice="any").invoke(ASK)
    calls = [*message.tool_calls, *message.invalid_tool_calls]  # small models break calls off
    first = opened(model, message)[0]
    assert first is not None
    assert (first.call_id, first.tool) == (calls[0]["id"], "get_weather")
    if message.tool_calls:
        assert first.reason == "rule_allow"


class Broken(Guard):
    """A guard that cannot read anything."""

    def read(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("out of order")


async def test_a_guard_that_fails_hands_no_call_on_sync_or_async(chats: Chats) -> None:
    """Whatever breaks while judging, the call is not among those that may run."""
    whole = guard_of(chats.loaded, chats.menu)
    broken = Broken(whole.profile, whole.policy, logger=whole.logger)
    model = chat_over(chats.loaded, broken, says(WEATHER)).bind_tools(chats.menu.schemas())
    for message in (model.invoke(ASK), await model.ainvoke(ASK)):
        assert message.tool_calls == []
        assert len(message.invalid_tool_calls) == 1
        (record,) = opened(model, message)
        assert record is not None
        assert (record.action, record.reason) == ("veto", "fault")


CASES = [
    (name, f"{name} of {city}")
    for city in ("Rome", "Paris", "Berlin")
    for name in ("get_weather", "get_time", "search", "searchWeb", "send_email")
]


def crowd(chats: Chats) -> Any:
    """Return a model whose decisions differ from prompt to prompt."""

    def answer(prompt: str, turn: str) -> str:
        begun = next((n for n in chats.menu.names if f'"{n}"' in turn), "")
        return call_text(begun or last_user_text(prompt).split(" of ", maxsplit=1)[0])

    rules = {
        "get_weather": {"doubtful": "veto"},
        "get_time": {"tier": "write", "doubtful": "redirect"},
        "search": {"tier": "write", "doubtful": "redirect"},
        "searchWeb": {"doubtful": "confirm"},
        "send_email": {"doubtful": "clarify"},
    }
    return chats.bound(answer, threshold=0.3, tools=rules)


def decided(message: AIMessage) -> list[dict[str, Any]]:
    """Return the records without what is new each time: ids, signatures, latency."""
    told = []
    for record in records(message).values():
        evidence = {k: v for k, v in record["evidence"].items() if k != "latency_us"}
        told.append({**record, "evidence": evidence, "call_id": "", "signature": ""})
    return [*told, *({**call, "id": ""} for call in message.tool_calls)]


async def assert_a_crowd_decides_as_one_does(chats: Chats, size: int) -> None:
    model = crowd(chats)
    asks = [ask for _, ask in CASES]
    alone = [decided(model.invoke(ask)) for ask in asks]
    actions = {record["action"] for told in alone for record in told if "action" in record}
    assert len(actions) >= 3
    crowded = await asyncio.gather(*(model.ainvoke(asks[i % len(asks)]) for i in range(size)))
    for index, message in enumerate(crowded):
        assert decided(message) == alone[index % len(asks)]
    ids = [call_id for message in crowded for call_id in records(message)]
    assert len(set(ids)) == len(ids)


async def test_concurrent_calls_decide_what_single_ones_do(chats: Chats) -> None:
    """Records, margins and handed-on calls of 64 tasks at once equal those of one at a time."""
    await assert_a_crowd_decides_as_one_does(chats, 64)


@pytest.mark.slow
async def test_a_thousand_concurrent_calls_decide_what_single_ones_do(chats: Chats) -> None:
    """The same with 1,000 tasks at once."""
    await assert_a_crowd_decides_as_one_does(chats, 1000)
