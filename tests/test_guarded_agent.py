"""The guarded agent: parity with the plain model, and every action inside generate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import fake_profile, quiet_guard, script_for
from transformers import LogitsProcessorList

from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import LoadedModel
from toolguard.guard.errors import ArtifactMismatch, ConfigError
from toolguard.guard.guard import Guard
from toolguard.guard.profile import Profile
from toolguard.guard.tools import Menu, ToolCall

ASK = [{"role": "user", "content": "weather in Rome please"}]
ALL = ("get_weather", "get_time", "search", "searchWeb", "send_email")


@pytest.fixture(scope="module")
def profile(tiny_loaded: LoadedModel, tiny_menu: Menu) -> Profile:
    """Give a profile that allows everything."""
    return fake_profile(tiny_loaded, tiny_menu)


def agent_with(loaded: LoadedModel, guard: Guard) -> GuardedAgent:
    return GuardedAgent.of(loaded, guard)


def scripted(loaded: LoadedModel, text: str) -> dict[str, Any]:
    return {"logits_processor": LogitsProcessorList([script_for(loaded.tokenizer, text)])}


def hooks_on(loaded: LoadedModel) -> int:
    # transformers leaves hooks of its own on a model that once returned hidden states
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in loaded.model.modules())


def call_text(agent: GuardedAgent, name: str, **arguments: Any) -> str:
    return agent.wire.call_text(ToolCall(name=name, arguments=arguments))


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("forced", [False, True])
def test_guarded_tokens_equal_the_plain_model(
    tiny_loaded: LoadedModel,
    tiny_menu: Menu,
    profile: Profile,
    rows: int,
    side: str,
    sample: bool,
    forced: bool,
) -> None:
    """With nothing to intervene the guarded sequence is token for token that of HF generate."""
    agent = agent_with(tiny_loaded, quiet_guard(profile, mode="enforce", uncalibrated="allow"))
    monitored = agent_with(tiny_loaded, quiet_guard(profile))
    tokenizer = tiny_loaded.tokenizer
    texts = [
        agent.wire.render(tokenizer, [{"role": "user", "content": "weather " * (1 + i)}], tiny_menu)
        + (agent.wire.prefix() if forced else "")
        for i in range(rows)
    ]
    tokenizer_side = tokenizer.padding_side
    tokenizer.padding_side = side
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    tokenizer.padding_side = tokenizer_side
    settings: dict[str, Any] = {"max_new_tokens": 24, "do_sample": sample}
    written = (
        [list(tokenizer(agent.wire.prefix(), add_special_tokens=False)["input_ids"])] * rows
        if forced
        else None
    )
    torch.manual_seed(3)
    plain = tiny_loaded.model.generate(**batch, **settings)
    torch.manual_seed(3)
    watched = monitored.generate_ids(
        batch["input_ids"], batch["attention_mask"], tiny_menu.tools, written=written, **settings
    )
    assert torch.equal(plain, watched.sequences)
    if not forced:
        torch.manual_seed(3)
        guarded = agent.generate_ids(
            batch["input_ids"], batch["attention_mask"], tiny_menu.tools, **settings
        )
        assert torch.equal(plain, guarded.sequences)


def test_an_allowed_call_comes_back_whole(
    tiny_loaded: LoadedModel, tiny_menu: Menu, profile: Profile
) -> None:
    """A confident call is returned with its arguments, its decision and a chat message."""
    agent = agent_with(tiny_loaded, quiet_guard(profile, mode="enforce"))
    text = call_text(agent, "get_time", city="Rome")
    result = agent.generate(ASK, tiny_menu.tools, **scripted(tiny_loaded, text))
    assert result.calls == (ToolCall(name="get_time", arguments={"city": "Rome"}),)
    assert [d.action for d in result.decisions] == ["allow"]
    assert set(result.decisions[0].reading.scores) == {"logprob", "activation"}
    assert result.message["tool_calls"][0]["function"]["name"] == "get_time"
    assert result.finish_reason == "stop"


def test_a_veto_stops_before_the_arguments(
    tiny_loaded: LoadedModel, tiny_menu: Menu, profile: Profile
) -> None:
    """No argument token of a vetoed tool is generated, and no call comes back."""
    doubt = fake_profile(tiny_loaded, tiny_menu, threshold=None)
    agent = agent_with(
        tiny_loaded, quiet_guard(doubt, mode="enforce", tools={"send_email": {"doubtful": "veto"}})
    )
    text = call_text(agent, "send_email", body="hello")
    result = agent.generate(ASK, tiny_menu.tools, **scripted(tiny_loaded, text))
    assert result.calls == ()
    assert result.decisions[0].action == "veto"
    assert "arguments" not in result.text
    assert result.finish_reason == "guard"
    assert "send_email" in result.message["content"]


def test_a_doubtful_call_is_redirected_to_its_rival(
    tiny_loaded: LoadedModel, tiny_menu: Menu
) -> None:
    """The rival's name is forced and the model writes the rest; the cache crop changes nothing."""
    profile = fake_profile(tiny_loaded, tiny_menu, threshold=None)
    rules = {name: {"tier": "write", "doubtful": "redirect"} for name in ALL}
    guard = quiet_guard(profile, mode="enforce", tools=rules)
    agent = agent_with(tiny_loaded, guard)
    seen = {}
    for name in ALL:
        prefill = agent.wire.prefix() + name + '"'
        result = agent.generate(
            ASK,
            tiny_menu.tools,
            prefill=agent.wire.prefix(),
            max_new_tokens=30,
            **scripted(tiny_loaded, name + '", "arguments": {}}\n</tool_call>'),
        )
        seen[name] = result.decisions[0]
        assert prefill is not None
        if result.decisions[0].action == "redirect":
            assert agent.wire.find_name(result.text).name == result.decisions[0].target
    assert {d.action for d in seen.values()} <= {"redirect", "veto"}
    assert any(d.action == "redirect" for d in seen.values())


def test_clarify_asks_between_the_best_two(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """A doubtful call under `clarify` becomes a question that names both candidates."""
    profile = fake_profile(tiny_loaded, tiny_menu, threshold=None)
    agent = agent_with(
        tiny_loaded, quiet_guard(profile, mode="enforce", tools={"search": {"doubtful": "clarify"}})
    )
    result = agent.generate(
        ASK, tiny_menu.tools, **scripted(tiny_loaded, call_text(agent, "search", query="x"))
    )
    assert result.calls == ()
    assert result.message["content"].startswith("Should I use search or ")


def test_confirm_without_a_person_does_not_run(
    tiny_loaded: LoadedModel, tiny_menu: Menu, profile: Profile
) -> None:
    """A call that wants confirmation stops at its name if nobody can be asked."""
    agent = agent_with(
        tiny_loaded, quiet_guard(profile, mode="enforce", tools={"search": {"rule": "confirm"}})
    )
    result = agent.generate(
        ASK, tiny_menu.tools, **scripted(tiny_loaded, call_text(agent, "search", query="x"))
    )
    assert result.calls == ()
    assert result.decisions[0].action == "confirm"


@pytest.mark.parametrize("answer", [True, False])
def test_a_person_sees_the_whole_call_and_decides(
    tiny_loaded: LoadedModel, tiny_menu: Menu, profile: Profile, answer: bool
) -> None:
    """The callback gets the decision and the arguments; only True lets the call run."""
    agent = agent_with(
        tiny_loaded, quiet_guard(profile, mode="enforce", tools={"search": {"rule": "confirm"}})
    )
    asked: list[ToolCall] = []

    def ask(_decision: object, call: ToolCall) -> bool:
        asked.append(call)
        return answer

    text = call_text(agent, "search", query="x")
    result = agent.generate(ASK, tiny_menu.tools, on_confirm=ask, **scripted(tiny_loaded, text))
    assert asked == [ToolCall(name="search", arguments={"query": "x"})]
    assert bool(result.calls) is answer


def test_a_name_off_the_menu_is_vetoed(
    tiny_loaded: LoadedModel, tiny_menu: Menu, profile: Profile
) -> None:
    """A tool that nobody offered does not run, and its name stays out of the message."""
    agent = agent_with(tiny_loaded, quiet_guard(profile, mode="enforce"))
    result = agent.generate(
        ASK, tiny_menu.tools, **scripted(tiny_loaded, call_text(agent, "drop_tables"))
    )
    assert result.calls == ()
    assert result.decisions[0].reason == "not_on_menu"
    assert "drop_tables" not in result.message["content"]


def test_monitor_runs_the_call_and_says_what_it_would_do(
    tiny_loaded: LoadedModel, tiny_menu: Menu
) -> None:
    """In monitor mode a doubtful call goes on; the decision tells what enforce would do."""
    agent = agent_with(
        tiny_loaded, quiet_guard(fake_profile(tiny_loaded, tiny_menu, threshold=None))
    )
    result = agent.generate(
        ASK, tiny_menu.tools, **scripted(tiny_loaded, call_text(agent, "send_email"))
    )
    assert len(result.calls) == 1
    assert (result.decisions[0].action, result.decisions[0].proposed) == ("allow", "veto")


def test_two_calls_in_a_turn_are_judged_one_by_one(
    tiny_loaded: LoadedModel, tiny_menu: Menu, profile: Profile
) -> None:
    """A denied second call leaves the first one standing."""
    agent = agent_with(
        tiny_loaded, quiet_guard(profile, mode="enforce", tools={"send_email": {"rule": "deny"}})
    )
    text = agent.wire.render_calls(
        [ToolCall(name="get_time", arguments={"city": "Rome"}), ToolCall(name="send_email")]
    )
    result = agent.generate(ASK, tiny_menu.tools, **scripted(tiny_loaded, text))
    assert [c.name for c in result.calls] == ["get_time"]
    assert [d.action for d in result.decisions] == ["allow", "veto"]


def test_text_streams_and_calls_do_not(
    tiny_loaded: LoadedModel, tiny_menu: Menu, profile: Profile
) -> None:
    """The callback gets the plain text in order and nothing of a call."""
    agent = agent_with(tiny_loaded, quiet_guard(profile, mode="enforce"))
    pieces: list[str] = []
    agent.generate(
        ASK, tiny_menu.tools, on_text=pieces.append, **scripted(tiny_loaded, "It rains in Rome.")
    )
    assert "".join(pieces).replace(agent.loaded.tokenizer.eos_token, "") == "It rains in Rome."
    pieces.clear()
    agent.generate(
        ASK,
        tiny_menu.tools,
        on_text=pieces.append,
        **scripted(tiny_loaded, call_text(agent, "search", query="x")),
    )
    assert "".join(pieces) == ""


def test_a_malformed_call_is_an_error_and_not_a_call(
    tiny_loaded: LoadedModel, tiny_menu: Menu, profile: Profile
) -> None:
    """Truncated arguments give the parse error in the result and no call."""
    agent = agent_with(tiny_loaded, quiet_guard(profile, mode="enforce"))
    text = call_text(agent, "search", query="x")[:-14]
    result = agent.generate(ASK, tiny_menu.tools, **scripted(tiny_loaded, text))
    assert result.calls == ()
    assert result.malformed is not None


def test_a_profile_of_another_model_is_refused(
    tiny_loaded: LoadedModel, tiny_menu: Menu, profile: Profile
) -> None:
    """A profile whose fingerprint differs does not load onto this model."""
    other = profile.meta.model.model_copy(update={"fingerprint": "0" * 64})
    wrong = Profile(
        meta=profile.meta.model_copy(update={"model": other}),
        readout=profile.readout,
        means=profile.means,
        centre=profile.centre,
        covariance=None,
        seen=profile.seen,
    )
    with pytest.raises(ArtifactMismatch, match="fingerprint"):
        agent_with(tiny_loaded, quiet_guard(wrong))


@pytest.mark.parametrize(
    "options", [{"num_beams": 2}, {"streamer": object()}, {"num_return_sequences": 2}]
)
def test_options_that_cannot_be_guarded_are_refused(
    tiny_loaded: LoadedModel, tiny_menu: Menu, profile: Profile, options: dict[str, Any]
) -> None:
    """Beam search, several sequences and raw streamers are a ConfigError."""
    with pytest.raises(ConfigError):
        agent_with(tiny_loaded, quiet_guard(profile)).generate(ASK, tiny_menu.tools, **options)


def test_a_prompt_longer_than_the_context_is_refused(
    tiny_loaded: LoadedModel, tiny_menu: Menu, profile: Profile
) -> None:
    """The error tells the prompt's length and the context's."""
    long = [{"role": "user", "content": "weather " * 5000}]
    with pytest.raises(ConfigError, match="context"):
        agent_with(tiny_loaded, quiet_guard(profile)).generate(long, tiny_menu.tools)


def test_nothing_is_left_on_the_model(
    tiny_loaded: LoadedModel, tiny_menu: Menu, profile: Profile
) -> None:
    """After a generate that raises, no hook remains."""
    agent = agent_with(tiny_loaded, quiet_guard(profile))

    def fail(_piece: str) -> None:
        raise RuntimeError("stop")

    before = hooks_on(tiny_loaded)
    with pytest.raises(RuntimeError, match="stop"):
        agent.generate(
            ASK, tiny_menu.tools, on_text=fail, **scripted(tiny_loaded, "It rains in Rome.")
        )
    assert hooks_on(tiny_loaded) == before
