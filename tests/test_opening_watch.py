"""Where a turn's first call could start: following the text, and reading it inside `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch
from fakes import fake_profile, gated, quiet_guard

from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import LoadedModel, wrap_model
from toolguard.adapters.opening_watch import OpeningWatcher
from toolguard.calibration.answering.openings import read_openings
from toolguard.calibration.datasets.records import Record
from toolguard.guard.answer_gate import OpeningEvidence
from toolguard.guard.profile import Profile
from toolguard.guard.tools import Menu, ToolCall

ASK = [{"role": "user", "content": "weather in Rome please"}]
Scripted = Callable[[LoadedModel, str], dict[str, Any]]


def follow(pieces: Sequence[str], lead: str = "") -> list[bool]:
    """Return whether a call could start at the turn's start, and after each piece."""
    text = [lead]
    watcher = OpeningWatcher(lambda: "".join(text), [1])
    found = [watcher.at_opening]
    for piece in pieces:
        text.append(piece)
        watcher.feed(piece)
        found.append(watcher.at_opening)
    return found


def test_a_turn_begins_where_a_call_could_start() -> None:
    """At the very start and after blanks it can, and never again once there are words."""
    assert follow(["\n", "Sure", " "]) == [True, True, False, False]


def test_a_call_that_opens_ends_the_wait() -> None:
    """The opening itself is the answer's beginning, whole or in pieces."""
    assert follow(["<tool_call>", "\n"]) == [True, False, False]
    assert follow(["<", "tool", "_call>"]) == [True, False, False, False]


def test_inside_a_thought_no_call_starts() -> None:
    """Thoughts are waited out, also one that the prompt opened or that comes in pieces."""
    thought = ["<think>", "may I?", "</think>", "\n\n", "Yes"]
    assert follow(thought) == [True, False, False, True, True, False]
    assert follow(thought[1:], lead="<think>\n") == [False, False, True, True, False]
    assert follow(["<th", "ink>", "</think>"]) == [True, False, False, True]


def test_what_the_caller_wrote_is_not_the_models_start() -> None:
    """A turn that begins in the prompt has no opening to read, unless it holds thoughts alone."""
    assert follow([], lead="<tool_call>\n") == [False]
    assert follow([], lead="<think>\n\n</think>\n\n") == [True]


def test_logits_that_say_nothing_make_a_fault() -> None:
    """A position that cannot be read is noted as such, with the reason."""
    watcher = OpeningWatcher(lambda: "", [1])
    watcher.keep(torch.ones(3))
    watcher.close(torch.tensor([torch.nan, 0.0]))
    assert watcher.evidence is not None
    assert "not finite" in watcher.evidence.fault


def agent_of(
    loaded: LoadedModel, menu: Menu, *, layer: int = 1, gate: dict[str, Any], **policy: Any
) -> GuardedAgent:
    profile = gated(fake_profile(loaded, menu, layer=1), layer=layer, **gate)
    return GuardedAgent.of(loaded, quiet_guard(profile, **{"mode": "enforce", **policy}))


def calls(agent: GuardedAgent, *names: str) -> str:
    return agent.wire.render_calls([ToolCall(name=name, arguments={}) for name in names])


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_run_time_reads_what_calibration_read(
    tiny_loaded: LoadedModel, tiny_menu: Menu, scripted: Scripted, layer: int
) -> None:
    """The state and the odds at the opening are those that calibration has for the same prompt."""
    agent = agent_of(tiny_loaded, tiny_menu, layer=layer, gate={"weight": -0.3})
    result = agent.generate(
        ASK, tiny_menu.tools, **scripted(tiny_loaded, calls(agent, "send_email"))
    )
    record = Record(
        id="r", source="s", split="all", query=ASK[0]["content"], tools=tiny_menu.tools, call=None
    )
    [opening] = read_openings(
        tiny_loaded, agent.wire, [record], layers=[layer], on_skip=lambda *_: None
    )
    gate = agent.guard.profile.gate if agent.guard.profile else None
    assert gate is not None
    expected = gate.read(OpeningEvidence(hidden=opening.hidden[0], log_odds=opening.log_odds))
    assert result.decisions[0].reading.no_call == pytest.approx(expected, abs=1e-5)
    assert len(set(expected.values())) == 2  # neither is the constant of a blind gate


def test_a_needless_call_ends_at_its_name(
    tiny_loaded: LoadedModel, tiny_menu: Menu, scripted: Scripted
) -> None:
    """The call does not run, and no argument of it is written."""
    agent = agent_of(tiny_loaded, tiny_menu, gate={"answer": 0.9}, tiers={"read": {}})
    result = agent.generate(
        ASK, tiny_menu.tools, **scripted(tiny_loaded, calls(agent, "send_email"))
    )
    assert [(d.action, d.reason) for d in result.decisions] == [("veto", "should_answer")]
    assert result.calls == ()
    assert "arguments" not in result.text


def test_a_question_takes_the_place_of_the_call(
    tiny_loaded: LoadedModel, tiny_menu: Menu, scripted: Scripted
) -> None:
    """Where something should be asked first, the turn's message is that question."""
    agent = agent_of(tiny_loaded, tiny_menu, gate={"ask": 0.9})
    result = agent.generate(
        ASK, tiny_menu.tools, **scripted(tiny_loaded, calls(agent, "send_email"))
    )
    assert result.decisions[0].reason == "should_ask"
    assert result.message["content"] == result.decisions[0].question


def test_only_the_first_call_of_a_turn_has_an_opening(
    tiny_loaded: LoadedModel, tiny_menu: Menu, scripted: Scripted
) -> None:
    """A later call is another decision, which calibration did not read: its tool alone judges."""
    agent = agent_of(tiny_loaded, tiny_menu, gate={"answer": 0.9}, mode="monitor")
    text = calls(agent, "send_email", "send_email")
    result = agent.generate(ASK, tiny_menu.tools, **scripted(tiny_loaded, text))
    assert [bool(d.reading.no_call) for d in result.decisions] == [True, False]
    assert [d.proposed for d in result.decisions] == ["veto", "allow"]


@pytest.mark.parametrize("before", ["Let me look.\n", "<think>\nhm\n</think>\n\n", "\n"])
def test_what_stands_before_a_call_does_not_hide_it(
    tiny_loaded: LoadedModel, tiny_menu: Menu, scripted: Scripted, before: str
) -> None:
    """After words, a thought or blanks a call is judged by the state in which the answer began."""
    agent = agent_of(tiny_loaded, tiny_menu, gate={"answer": 0.9})
    text = f"{before}{calls(agent, 'send_email')}"
    result = agent.generate(ASK, tiny_menu.tools, **scripted(tiny_loaded, text))
    assert result.decisions[0].reason == "should_answer"


def test_a_call_that_the_caller_wants_is_not_needless(
    tiny_loaded: LoadedModel, tiny_menu: Menu, scripted: Scripted
) -> None:
    """Neither a forced call nor one that the caller began is the model's own start."""
    agent = agent_of(tiny_loaded, tiny_menu, gate={"answer": 0.9})
    rest = 'send_email", "arguments": {}}\n</tool_call>'
    for begun in ({"must_call": ("send_email",)}, {"prefill": agent.wire.prefix()}):
        result = agent.generate(ASK, tiny_menu.tools, **begun, **scripted(tiny_loaded, rest))
        assert [d.reason for d in result.decisions] == ["confident"]
        assert result.decisions[0].reading.no_call == {}


def test_padding_behind_the_prompt_closes(
    tiny_loaded: LoadedModel, tiny_menu: Menu, scripted: Scripted
) -> None:
    """Where generation does not go on from the prompt, nothing was read: the call is closed."""
    agent = agent_of(tiny_loaded, tiny_menu, gate={})
    prompt = agent.wire.render(tiny_loaded.tokenizer, ASK, tiny_menu)
    ids = torch.tensor([tiny_loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.int64)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(1, 3, dtype=torch.int64)], dim=1)
    options = scripted(tiny_loaded, calls(agent, "send_email"))
    [judged] = agent.generate_ids(padded, mask, tiny_menu.tools, **options).judged
    assert (judged[0].decision.action, judged[0].decision.reason) == ("veto", "fault")
    assert "padding" in judged[0].decision.detail
    options = scripted(tiny_loaded, calls(agent, "send_email"))
    [whole] = agent.generate_ids(ids, torch.ones_like(ids), tiny_menu.tools, **options).judged
    assert whole[0].decision.action == "allow"


def test_a_state_that_is_not_finite_closes(tiny_menu: Menu, scripted: Scripted) -> None:
    """A model that breaks where the call could start gets no call through."""
    tokenizer = tiny_models.tiny_tokenizer()
    loaded = wrap_model(tiny_models.tiny_model(vocab_size=len(tokenizer)), tokenizer)
    agent = agent_of(loaded, tiny_menu, layer=0, gate={})
    options = scripted(loaded, calls(agent, "send_email"))
    assert agent.generate(ASK, tiny_menu.tools, **options).decisions[0].action == "allow"
    options = scripted(loaded, calls(agent, "send_email"))
    spoiled: list[int] = []

    def spoil(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        spoiled.append(len(spoiled))
        return torch.full_like(output, torch.nan) if len(spoiled) == 1 else None

    with loaded.view.blocks[0].register_forward_hook(spoil):
        result = agent.generate(ASK, tiny_menu.tools, **options)
    assert result.calls == ()
    assert all(not d.executes for d in result.decisions)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("layer", [0, 1])
def test_reading_openings_changes_no_token(
    tiny_loaded: LoadedModel, tiny_menu: Menu, rows: int, layer: int
) -> None:
    """A monitored turn is token for token the plain model's, and no forward is added."""
    agent = agent_of(tiny_loaded, tiny_menu, layer=layer, gate={"answer": 0.9}, mode="monitor")
    tokenizer = tiny_loaded.tokenizer
    asks = [[{"role": "user", "content": "weather " * (1 + row)}] for row in range(rows)]
    texts = [agent.wire.render(tokenizer, ask, tiny_menu) for ask in asks]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    forwards: list[int] = []
    count = tiny_loaded.model.register_forward_hook(lambda *_: forwards.append(1))
    plain = tiny_loaded.model.generate(
        batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=16
    )
    alone = len(forwards)
    watched = agent.generate_ids(
        batch["input_ids"], batch["attention_mask"], tiny_menu.tools, max_new_tokens=16
    )
    count.remove()
    assert torch.equal(plain, watched.sequences)
    assert len(forwards) == 2 * alone


def test_the_evidence_on_the_tool_is_the_same_to_the_bit(
    tiny_loaded: LoadedModel, tiny_menu: Menu, scripted: Scripted
) -> None:
    """With a gate, scores, margins and P(wrong) are those of the same turn without one."""
    plain = GuardedAgent.of(tiny_loaded, quiet_guard(fake_profile(tiny_loaded, tiny_menu)))
    text = calls(plain, "send_email", "send_email")
    for layer in (0, 1):
        agent = agent_of(tiny_loaded, tiny_menu, layer=layer, gate={}, mode="monitor")
        turns = [
            one.generate(ASK, tiny_menu.tools, **scripted(tiny_loaded, text))
            for one in (plain, agent)
        ]
        expected, found = ([d.reading for d in turn.decisions] for turn in turns)
        assert [replace(reading, no_call={}) for reading in found] == expected
        assert found[0].no_call


def test_without_a_gate_nothing_is_watched(
    tiny_loaded: LoadedModel, tiny_menu: Menu, scripted: Scripted
) -> None:
    """A profile that does not know when not to call leaves readings as they were."""
    profile: Profile = fake_profile(tiny_loaded, tiny_menu)
    agent = GuardedAgent.of(tiny_loaded, quiet_guard(profile, mode="enforce"))
    result = agent.generate(
        ASK, tiny_menu.tools, **scripted(tiny_loaded, calls(agent, "send_email"))
    )
    assert result.decisions[0].reading.no_call == {}
    assert result.decisions[0].action == "allow"
