"""Guarded requests side by side, inside one another, and with everything `generate` can be told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tiny_models
import tiny_tokenizers
import torch
from fakes import Opening, fake_profile, quiet_guard
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from toolguard.adapters.blocks import tap_blocks
from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import LoadedModel, wrap_model
from toolguard.adapters.turn_result import GuardedResult
from toolguard.adapters.wire.detection import FORMATS
from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import Menu, Tool, ToolCall

ASK = [{"role": "user", "content": "weather in Rome please"}]
NAMES = ("get_weather", "get_time", "search", "searchWeb", "send_email")
REDIRECT = {"tools": {name: {"tier": "write", "doubtful": "redirect"} for name in NAMES}}
Scripted = Callable[[LoadedModel, str], dict[str, Any]]


def own_model(seed: int = 0, family: str = "qwen3") -> LoadedModel:
    """Return a model that a test may change."""
    tokenizer = tiny_models.tiny_tokenizer()
    model = tiny_models.tiny_model(family, vocab_size=len(tokenizer), seed=seed)
    return wrap_model(model, tokenizer)


def agent_of(
    loaded: LoadedModel, menu: Menu, *, threshold: float | None = 1.0, **policy: Any
) -> Any:
    profile = fake_profile(loaded, menu, threshold=threshold)
    return GuardedAgent.of(loaded, quiet_guard(profile, **{"mode": "enforce", **policy}))


def opening(agent: GuardedAgent, text: str) -> dict[str, Any]:
    tokens = agent.loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    return {"logits_processor": LogitsProcessorList([Opening(tokens)]), "max_new_tokens": 40}


def call_opening(agent: GuardedAgent, name: str) -> dict[str, Any]:
    return opening(agent, f'{agent.wire.prefix()}{name}", "arguments": {{')


def asks(count: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": "weather " * (i + 1)}] for i in range(count)]


def seen(result: GuardedResult) -> list[tuple[str, str, str | None]]:
    return [(d.action, d.tool, d.target) for d in result.decisions]


def assert_same(one: GuardedResult, other: GuardedResult) -> None:
    assert one.tokens == other.tokens
    assert one.calls == other.calls
    assert seen(one) == seen(other)
    for first, second in zip(one.decisions, other.decisions, strict=True):
        for signal, margin in first.reading.margins.items():
            assert second.reading.margins[signal] == pytest.approx(margin, abs=1e-4)
        assert second.reading.p_wrong == pytest.approx(first.reading.p_wrong, abs=1e-4)
        assert second.reading.position == first.reading.position


def hooks_on(loaded: LoadedModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in loaded.model.modules())


def test_threads_on_one_model_do_not_meet(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """Requests that generate at once decide and write what each does alone."""
    agent = agent_of(tiny_loaded, tiny_menu, threshold=0.5)
    names = ("search", "get_time", "send_email", "get_weather")
    conversations = asks(len(names))

    def run(index: int) -> GuardedResult:
        options = call_opening(agent, names[index])
        return agent.generate(conversations[index], tiny_menu.tools, **options)

    alone = [run(index) for index in range(len(names))]
    together: dict[int, list[GuardedResult]] = {}

    def repeat(index: int) -> None:
        together[index] = [run(index) for _ in range(3)]

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, result in enumerate(alone):
        assert result.decisions
        for other in together[index]:
            assert_same(result, other)


def test_a_generate_inside_a_callback_leaves_the_outer_one_alone(
    tiny_loaded: LoadedModel, tiny_menu: Menu
) -> None:
    """on_text may run the same agent, or the bare model, in the middle of a turn."""
    agent = agent_of(tiny_loaded, tiny_menu)
    text = "It rains. " + agent.wire.prefix() + 'search", "arguments": {'
    inner_alone = agent.generate(ASK, tiny_menu.tools, **call_opening(agent, "get_time"))
    outer_alone = agent.generate(ASK, tiny_menu.tools, **opening(agent, text))
    inner: list[GuardedResult] = []

    def nested(_piece: str) -> None:
        inner.append(agent.generate(ASK, tiny_menu.tools, **call_opening(agent, "get_time")))
        tiny_loaded.model(torch.tensor([[5, 6, 7]]))

    outer = agent.generate(ASK, tiny_menu.tools, on_text=nested, **opening(agent, text))
    assert inner
    assert_same(outer_alone, outer)
    for result in inner:
        assert_same(inner_alone, result)


class Meddling(LogitsProcessor):
    """Runs the model once more a step, as classifier-free guidance does."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.model(input_ids[:, -3:] * 0 + 7)
        return scores


def test_forwards_of_a_logits_processor_are_not_read(
    tiny_loaded: LoadedModel, tiny_menu: Menu
) -> None:
    """A processor that calls the model changes no reading."""
    agent = agent_of(tiny_loaded, tiny_menu)
    plain = agent.generate(ASK, tiny_menu.tools, **call_opening(agent, "search"))
    options = call_opening(agent, "search")
    options["logits_processor"].append(Meddling(tiny_loaded.model))
    assert_same(plain, agent.generate(ASK, tiny_menu.tools, **options))


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2"])
def test_a_padded_batch_decides_what_single_runs_do(family: str, tiny_menu: Menu) -> None:
    """Left padding changes tokens, decisions and margins by nothing that counts."""
    loaded = own_model(family=family)
    agent = agent_of(loaded, tiny_menu, threshold=0.5)
    conversations = asks(4)
    batch = agent.generate_batch(conversations, tiny_menu.tools, **call_opening(agent, "search"))
    for conversation, result in zip(conversations, batch, strict=True):
        alone = agent.generate(conversation, tiny_menu.tools, **call_opening(agent, "search"))
        assert alone.decisions
        assert_same(alone, result)


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("use_cache", [False, True])
def test_guarded_turns_equal_plain_ones_with_and_without_a_cache(
    tiny_loaded: LoadedModel, tiny_menu: Menu, sample: bool, use_cache: bool
) -> None:
    """Through `generate` too, the tokens are those of the unguarded model."""
    agent = agent_of(tiny_loaded, tiny_menu, mode="monitor")
    options = {**call_opening(agent, "search"), "do_sample": sample, "use_cache": use_cache}
    torch.manual_seed(5)
    guarded = agent.generate(ASK, tiny_menu.tools, **options)
    text = agent.wire.render(tiny_loaded.tokenizer, ASK, tiny_menu)
    ids = tiny_loaded.tokenizer(text, return_tensors="pt")
    options = {**options, **call_opening(agent, "search")}
    torch.manual_seed(5)
    plain = tiny_loaded.model.generate(
        input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], **options
    )
    assert list(guarded.tokens) == plain[0, ids["input_ids"].shape[1] :].tolist()
    assert guarded.decisions


@pytest.mark.parametrize("where", ["on_text", "on_confirm", "logits_processor", "criteria"])
def test_an_exception_anywhere_leaves_no_hook(tiny_menu: Menu, where: str) -> None:
    """Whoever raises, the model is as it was."""
    loaded = own_model()
    agent = agent_of(loaded, tiny_menu, tools={"search": {"rule": "confirm"}})

    def fail(*_: Any, **__: Any) -> Any:
        raise KeyError(where)

    class FailingCriteria(StoppingCriteria):
        __call__ = fail

    class FailingProcessor(LogitsProcessor):
        __call__ = fail

    call = ToolCall(name="search", arguments={"query": "x"})
    options = opening(agent, "Well. " + agent.wire.call_text(call))
    if where == "logits_processor":
        options["logits_processor"].append(FailingProcessor())
    elif where == "criteria":
        options["stopping_criteria"] = StoppingCriteriaList([FailingCriteria()])
    else:
        options[where] = fail
    before = hooks_on(loaded)
    with pytest.raises(KeyError, match=where):
        agent.generate(ASK, tiny_menu.tools, **options)
    assert hooks_on(loaded) == before


def redirected(agent: GuardedAgent, menu: Menu, **options: Any) -> tuple[str, GuardedResult]:
    """Return a name whose call is redirected, and the result."""
    for name in NAMES:
        result = agent.generate(ASK, menu.tools, **{**call_opening(agent, name), **options})
        if result.decisions[0].action == "redirect":
            return name, result
    raise AssertionError("no name is redirected")


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2"])
def test_a_redirect_with_a_cropped_cache_equals_one_without(family: str, tiny_menu: Menu) -> None:
    """Cropping the cache to the decision token changes nothing but the time."""
    agent = agent_of(own_model(family=family), tiny_menu, threshold=None, **REDIRECT)
    name, cached = redirected(agent, tiny_menu)
    options = {**call_opening(agent, name), "use_cache": False}
    plain = agent.generate(ASK, tiny_menu.tools, **options)
    assert_same(cached, plain)
    target = cached.decisions[0].target
    assert agent.wire.find_name(cached.text).name == target
    assert cached.decisions[0].executed_tool == target


def test_a_redirected_turn_is_what_the_model_writes_after_the_forced_name(
    tiny_loaded: LoadedModel, tiny_menu: Menu
) -> None:
    """The rest of the turn is the model's own continuation of prefix and target's name."""
    agent = agent_of(tiny_loaded, tiny_menu, threshold=None, **REDIRECT)
    _, result = redirected(agent, tiny_menu)
    text = agent.wire.render(tiny_loaded.tokenizer, ASK, tiny_menu)
    ids = tiny_loaded.tokenizer(text, return_tensors="pt")["input_ids"]
    plan = agent._plans.get(tiny_menu, text)
    forced = [*plan.names.prefix_ids, *plan.names.paths[result.decisions[0].target]]
    whole = torch.cat([ids, torch.tensor([forced])], dim=1)
    plain = tiny_loaded.model.generate(
        whole, attention_mask=torch.ones_like(whole), max_new_tokens=40 - len(forced)
    )
    assert list(result.tokens) == plain[0, ids.shape[1] :].tolist()[: len(result.tokens)]


def test_redirects_in_a_batch_equal_single_ones(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """Rows of a batch are redirected each on its own, with the same outcome."""
    agent = agent_of(tiny_loaded, tiny_menu, threshold=None, **REDIRECT)
    name, _ = redirected(agent, tiny_menu)
    conversations = [ASK, *asks(2)]
    batch = agent.generate_batch(conversations, tiny_menu.tools, **call_opening(agent, name))
    assert "redirect" in {d.action for result in batch for d in result.decisions}
    for conversation, result in zip(conversations, batch, strict=True):
        alone = agent.generate(conversation, tiny_menu.tools, **call_opening(agent, name))
        assert_same(alone, result)


def test_a_redirect_keeps_to_the_token_limit(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """The turn never gets longer than asked for, forced names included."""
    agent = agent_of(tiny_loaded, tiny_menu, threshold=None, **REDIRECT)
    name, _ = redirected(agent, tiny_menu)
    for limit in range(10, 20):
        options = {**call_opening(agent, name), "max_new_tokens": limit}
        result = agent.generate(ASK, tiny_menu.tools, **options)
        longest = max(len(p) for p in agent._plans.get(tiny_menu, PROMPT_END).names.paths.values())
        assert len(result.tokens) <= max(limit, 10 + longest)


PROMPT_END = "<|im_start|>assistant\n"


def steered_states(agent: GuardedAgent, menu: Menu, options: dict[str, Any]) -> Any:
    """Return the block output after each forward of a turn, and the turn."""
    outputs: list[torch.Tensor] = []
    block = agent.loaded.view.blocks[agent.layer + 1]
    hook = block.register_forward_pre_hook(lambda _m, args: outputs.append(args[0].clone()))
    try:
        result = agent.generate(ASK, menu.tools, **options)
    finally:
        hook.remove()
    return outputs, result


def test_steering_moves_exactly_one_position(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """The next block gets the vector at the decision token, once, and nothing else changes."""
    gate = {"steering": {"alpha": 2.0, "max_gap": 10.0}}
    rules = {"tools": {name: {"tier": "write"} for name in NAMES}}
    steering = agent_of(tiny_loaded, tiny_menu, **gate, **rules)
    plain = agent_of(tiny_loaded, tiny_menu, **rules)
    with_it, steered = steered_states(steering, tiny_menu, call_opening(steering, "search"))
    without, _ = steered_states(plain, tiny_menu, call_opening(plain, "search"))
    moved = [
        (step, place)
        for step, (a, b) in enumerate(zip(with_it, without, strict=False))
        for place in range(a.shape[1])
        if step <= len(steered.decisions[0].reading.menu) + 20
        and not torch.equal(a[0, place], b[0, place])
    ]
    view = steering.guard.profile.view(tiny_menu)
    prefix = len(steering._plans.get(tiny_menu, PROMPT_END).names.prefix_ids)
    step, place = moved[0]
    assert (step, place) == (prefix, 0)
    before = without[step][0, place]
    target, vector = steering.guard.steering_direction(before, view)
    torch.testing.assert_close(with_it[step][0, place], before + vector)
    assert steered.decisions[0].target == target


def test_steering_equals_a_manual_hook(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """The steered turn is the one that adding the vector by hand at that position gives."""
    rules = {"tools": {name: {"tier": "write", "rule": "judge"} for name in NAMES}}
    gate = {"steering": {"alpha": 4.0, "max_gap": 10.0}}
    steering = agent_of(tiny_loaded, tiny_menu, **gate, **rules)
    plain = agent_of(tiny_loaded, tiny_menu, **rules)
    prefix = steering.wire.prefix()
    options = {"prefill": prefix, "max_new_tokens": 24}
    steered = steering.generate(ASK, tiny_menu.tools, **options)
    view = steering.guard.profile.view(tiny_menu)
    calls = 0

    def by_hand(_layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
        nonlocal calls
        calls += 1
        if calls > 1:
            return None
        _, vector = steering.guard.steering_direction(hidden[0, -1], view)
        edited = hidden.clone()
        edited[0, -1] += vector
        return edited

    with tap_blocks(tiny_loaded.view, [steering.layer], by_hand):
        expected = plain.generate(ASK, tiny_menu.tools, **options)
    assert steered.tokens == expected.tokens


def test_a_closed_gate_steers_nothing(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """Where the readout's best two are apart, states and turn stay as they are."""
    rules = {"tools": {name: {"tier": "write"} for name in NAMES}}
    steering = agent_of(tiny_loaded, tiny_menu, steering={"max_gap": 1e-9}, **rules)
    plain = agent_of(tiny_loaded, tiny_menu, **rules)
    options = call_opening(steering, "search")
    with_it, steered = steered_states(steering, tiny_menu, options)
    without, other = steered_states(plain, tiny_menu, call_opening(plain, "search"))
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))
    assert_same(other, steered)


class StopAt(StoppingCriteria):
    def __init__(self, token: int, row: int) -> None:
        self.token, self.row = token, row

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        stopped = torch.zeros(len(input_ids), dtype=torch.bool)
        stopped[self.row] = input_ids[self.row, -1] == self.token
        return stopped


def test_the_users_criteria_and_processors_still_count(
    tiny_loaded: LoadedModel, tiny_menu: Menu
) -> None:
    """A criterion ends its row there, without padding in the turn; the other row goes on."""
    agent = agent_of(tiny_loaded, tiny_menu)
    options = opening(agent, "It rains in Rome")
    words = options["logits_processor"][0].tokens
    criteria = StoppingCriteriaList([StopAt(words[2], row=0)])
    short, long = agent.generate_batch(
        [ASK, ASK], tiny_menu.tools, stopping_criteria=criteria, **options
    )
    assert list(short.tokens) == words[:3]
    assert list(long.tokens[: len(words)]) == words


def test_a_generation_config_is_taken_whole(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """Its length and sampling count, and beams in it are refused like beams by name."""
    agent = agent_of(tiny_loaded, tiny_menu)
    config = GenerationConfig(max_new_tokens=3)
    assert len(agent.generate(ASK, tiny_menu.tools, generation_config=config).tokens) == 3
    with pytest.raises(ConfigError, match="num_beams"):
        agent.generate(ASK, tiny_menu.tools, generation_config=GenerationConfig(num_beams=2))


def test_max_length_bounds_prompt_and_answer(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """It counts the prompt; too little of it is a ConfigError."""
    agent = agent_of(tiny_loaded, tiny_menu)
    text = agent.wire.render(tiny_loaded.tokenizer, ASK, tiny_menu)
    prompt = len(tiny_loaded.tokenizer(text)["input_ids"])
    assert len(agent.generate(ASK, tiny_menu.tools, max_length=prompt + 2).tokens) == 2
    with pytest.raises(ConfigError, match="no room"):
        agent.generate(ASK, tiny_menu.tools, max_length=prompt)


def test_the_context_bounds_the_answer(tiny_menu: Menu) -> None:
    """A turn ends where the model's positions do, instead of in an index error."""
    loaded = own_model(family="gpt2")
    agent = agent_of(loaded, tiny_menu)
    unit = len(loaded.tokenizer("weather " * 100)["input_ids"]) / 100
    empty = loaded.tokenizer(agent.wire.render(loaded.tokenizer, ASK, tiny_menu))["input_ids"]
    words = int((4096 - len(empty) - 10) / unit)
    ask = [{"role": "user", "content": "weather " * words}]
    result = agent.generate(ask, tiny_menu.tools, max_new_tokens=100)
    assert len(result.tokens) < 100


def test_a_tokenizer_without_padding_works(tiny_menu: Menu) -> None:
    """One row and a batch are padded with the end token."""
    loaded = own_model()
    loaded.tokenizer.pad_token = None
    loaded.model.generation_config.pad_token_id = None
    agent = agent_of(loaded, tiny_menu)
    batch = agent.generate_batch(asks(2), tiny_menu.tools, **call_opening(agent, "search"))
    alone = agent.generate(asks(1)[0], tiny_menu.tools, **call_opening(agent, "search"))
    assert_same(alone, batch[0])


@pytest.mark.parametrize(("rule", "runs"), [("allow", True), ("deny", False), ("judge", True)])
def test_bare_names_work_end_to_end(tiny_menu: Menu, rule: str, runs: bool) -> None:
    """In the published setting the name is the turn: read at the prompt's end, judged, returned."""
    loaded = own_model()
    profile = fake_profile(loaded, tiny_menu, wire=FORMATS["name_only"])
    guard = quiet_guard(profile, mode="enforce", tools={"search": {"rule": rule}})
    agent = GuardedAgent.of(loaded, guard)
    result = agent.generate(ASK, tiny_menu.tools, **opening(agent, "search<|im_end|>"))
    assert [call.name for call in result.calls] == (["search"] if runs else [])
    if rule != "deny":
        assert result.decisions[0].reading.position >= 0
        assert set(result.decisions[0].reading.margins) == {"logprob", "activation"}
        assert result.finish_reason == "stop"


def test_a_bare_name_is_redirected_without_going_on(tiny_menu: Menu) -> None:
    """The forced name with its end is the whole turn."""
    loaded = own_model()
    actions = set()
    for seed in range(8):
        wire = FORMATS["name_only"]
        profile = fake_profile(loaded, tiny_menu, wire=wire, threshold=None, seed=seed)
        agent = GuardedAgent.of(loaded, quiet_guard(profile, mode="enforce", **REDIRECT))
        result = agent.generate(ASK, tiny_menu.tools, **opening(agent, "search<|im_end|>"))
        decision = result.decisions[0]
        actions.add(decision.action)
        if decision.action == "redirect":
            assert [call.name for call in result.calls] == [decision.target]
            assert result.finish_reason == "stop"
    assert "redirect" in actions


@pytest.mark.parametrize("mode", ["enforce", "monitor"])
def test_nan_weights_close_enforce_and_not_monitor(
    tiny_menu: Menu, mode: str, scripted: Scripted
) -> None:
    """A block that turns to NaN after loading gives a fault, not a traceback."""
    loaded = own_model()
    agent = agent_of(loaded, tiny_menu, mode=mode)
    with torch.no_grad():
        next(loaded.view.blocks[0].parameters()).fill_(torch.nan)
    text = agent.wire.call_text(ToolCall(name="search", arguments={"query": "x"}))
    result = agent.generate(ASK, tiny_menu.tools, **scripted(loaded, text))
    assert result.decisions[0].reason == "fault"
    assert result.decisions[0].proposed == "veto"
    assert len(result.calls) == (mode == "monitor")


@pytest.mark.parametrize("wire", sorted(set(FORMATS) - {"name_only"}))
def test_unicode_and_dotted_names_go_through(wire: str, scripted: Scripted) -> None:
    """Such names are read, judged and returned exactly as given."""
    bpe = tiny_tokenizers.byte_level_bpe(tiny_tokenizers.APART)
    tokenizer = tiny_tokenizers.with_template(tiny_tokenizers.TEMPLATES[wire], bpe)
    model = tiny_models.tiny_model(vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    loaded = wrap_model(model, tokenizer)
    menu = Menu.of([{"name": n} for n in ("météo.heure", "météo.jour", "天気", "a.b.c")])
    profile = fake_profile(loaded, menu, wire=FORMATS[wire])
    agent = GuardedAgent.of(loaded, quiet_guard(profile, mode="enforce"), wire=wire)
    for name in menu.names:
        text = agent.wire.call_text(ToolCall(name=name))
        result = agent.generate(ASK, menu.tools, **scripted(loaded, text))
        assert [call.name for call in result.calls] == [name]
        assert result.decisions[0].action == "allow"


@pytest.mark.parametrize(("mode", "runs"), [("enforce", False), ("monitor", True)])
def test_a_tool_the_profile_never_met_is_vetoed(
    tiny_loaded: LoadedModel, tiny_menu: Menu, mode: str, runs: bool, scripted: Scripted
) -> None:
    """By default enforce does not trust it; monitor runs it and says so."""
    agent = agent_of(tiny_loaded, tiny_menu, mode=mode)
    menu = [*tiny_menu.tools, Tool(name="brand_new")]
    text = agent.wire.call_text(ToolCall(name="brand_new"))
    result = agent.generate(ASK, menu, **scripted(tiny_loaded, text))
    assert bool(result.calls) is runs
    assert result.decisions[0].reason == "uncalibrated"
    assert result.decisions[0].proposed == "veto"


@pytest.mark.parametrize("tools", [[{"name": "a"}, {"name": "a"}], [{"description": "none"}]])
def test_a_menu_that_cannot_be_used_is_a_config_error(
    tiny_loaded: LoadedModel, tiny_menu: Menu, tools: Sequence[Any]
) -> None:
    """With a name twice, or without one: told before anything is generated."""
    with pytest.raises(ConfigError):
        agent_of(tiny_loaded, tiny_menu).generate(ASK, tools)


def test_no_conversation_gives_no_result(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """An empty batch is empty."""
    assert agent_of(tiny_loaded, tiny_menu).generate_batch([], tiny_menu.tools) == []


@pytest.mark.parametrize(
    "option",
    [
        {"prefill_chunk_size": 8},
        {"assistant_model": object()},
        {"past_key_values": object()},
        {"prompt_lookup_num_tokens": 3},
    ],
)
def test_other_ways_of_decoding_are_refused(
    tiny_loaded: LoadedModel, tiny_menu: Menu, option: dict[str, Any]
) -> None:
    """What runs the model in other steps than one token a row is a ConfigError."""
    with pytest.raises(ConfigError, match=next(iter(option))):
        agent_of(tiny_loaded, tiny_menu).generate(ASK, tiny_menu.tools, **option)


def test_right_padding_at_the_decision_token_is_a_fault(
    tiny_loaded: LoadedModel, tiny_menu: Menu
) -> None:
    """Where generation goes on from padding, nothing was read and nothing runs."""
    agent = agent_of(tiny_loaded, tiny_menu)
    tokenizer = tiny_loaded.tokenizer
    prefix = tokenizer(agent.wire.prefix(), add_special_tokens=False)["input_ids"]
    text = agent.wire.render(tokenizer, ASK, tiny_menu) + agent.wire.prefix()
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    padded = torch.cat([ids, torch.zeros(1, 2, dtype=ids.dtype)], dim=1)
    mask = (torch.arange(padded.shape[1]) < ids.shape[1]).long()[None]
    tokens = tokenizer('search", "argu', add_special_tokens=False)["input_ids"]
    found = agent.generate_ids(
        padded,
        mask,
        tiny_menu.tools,
        written=[prefix],
        max_new_tokens=10,
        logits_processor=LogitsProcessorList([Opening(tokens)]),
    )
    decision = found.judged[0][0].decision
    assert (decision.action, decision.reason) == ("veto", "fault")
    assert "padding" in decision.detail
