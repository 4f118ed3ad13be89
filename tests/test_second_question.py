"""A doubtful call asked about again: the model chooses between its best two tools alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import Opening, fake_profile, quiet_guard
from transformers import LogitsProcessorList

from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.second_question import favourite_between
from toolguard.adapters.turn_result import GuardedResult
from toolguard.calibration.correction.methods import METHODS, targets_of
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.judged_calls import JudgedCall
from toolguard.guard.decision import Decision
from toolguard.guard.errors import ReadoutError
from toolguard.guard.tools import Menu

ASK = [{"role": "user", "content": "weather in Rome please"}]
NAMES = ("get_weather", "get_time", "search", "searchWeb", "send_email")
CORRECT = {name: {"tier": "write", "doubtful": "correct"} for name in NAMES}


def agent_of(loaded: LoadedModel, menu: Menu, **policy: Any) -> GuardedAgent:
    """Return an agent that lets nothing pass and corrects between two tools."""
    profile = fake_profile(loaded, menu, threshold=None)
    meta = profile.meta.model_copy(update={"correction": "between_two"})
    rules = {"mode": "enforce", "tools": CORRECT, **policy}
    return GuardedAgent.of(loaded, quiet_guard(replace(profile, meta=meta), **rules))


def opened(agent: GuardedAgent, name: str, **options: Any) -> dict[str, Any]:
    """Return options that make each row open a call of `name`."""
    text = f'{agent.wire.prefix()}{name}", "arguments": {{'
    tokens = agent.loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    forced = LogitsProcessorList([Opening(tokens)])
    return {"logits_processor": forced, "max_new_tokens": 40, **options}


def results(agent: GuardedAgent, menu: Menu, **options: Any) -> Iterator[GuardedResult]:
    """Yield the turn that opens with each tool of the menu."""
    for name in menu.names:
        yield agent.generate(ASK, menu.tools, **opened(agent, name, **options))


@pytest.fixture
def agent(tiny_loaded: LoadedModel, tiny_menu: Menu) -> GuardedAgent:
    """Give an agent that asks about every call."""
    return agent_of(tiny_loaded, tiny_menu)


def test_the_answer_is_the_tool_that_is_called(agent: GuardedAgent, tiny_menu: Menu) -> None:
    """Each call goes on under the name that the model prefers of the two, and says so."""
    for result in results(agent, tiny_menu):
        decision = result.decisions[0]
        second = decision.reading.runner_up
        wanted = favourite_between(
            agent.loaded,
            agent.wire,
            ASK,
            agent._plans.get(tiny_menu, "assistant\n"),
            [decision.tool, second],
            agent.loaded.tokenizer(agent.wire.prefix(), add_special_tokens=False)["input_ids"],
        )
        assert decision.executed_tool == wanted
        assert not decision.asks
        assert decision.reason == "doubtful"
        assert "asked again with the best two tools alone" in decision.detail
        assert f'"{wanted}"' in result.text
        assert decision.action == ("redirect" if wanted == second else "allow")


def test_it_is_the_question_that_calibration_measures(
    agent: GuardedAgent, tiny_loaded: LoadedModel, tiny_menu: Menu
) -> None:
    """The guard's answer on a conversation is the measurement's on its record."""
    method = next(method for method in METHODS if method.name == "between_two")
    for result in results(agent, tiny_menu):
        decision = result.decisions[0]
        record = Record(
            id="r",
            source="made",
            split="all",
            query=ASK[0]["content"],
            tools=tiny_menu.tools,
            call={"name": "search"},
        )
        call = JudgedCall(
            record=record,
            chosen=decision.tool,
            wrong=True,
            readout_right=None,
            margins={},
            p_wrong=0.9,
            trusted=True,
            runner_up=decision.reading.runner_up,
        )
        measured = targets_of(method, [call], tiny_loaded, agent.wire)
        assert measured == {"r": decision.executed_tool}


def test_both_answers_occur(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """Over several conversations the model keeps some choices and changes others."""
    agent = agent_of(tiny_loaded, tiny_menu)
    seen = {
        agent.generate(
            [{"role": "user", "content": "rain " * count}],
            tiny_menu.tools,
            **opened(agent, name, max_new_tokens=16),
        )
        .decisions[0]
        .action
        for count in range(1, 9)
        for name in tiny_menu.names
    }
    assert seen == {"allow", "redirect"}


def test_a_batch_is_asked_row_by_row(agent: GuardedAgent, tiny_menu: Menu) -> None:
    """Rows of a batch get the answers that they get alone."""
    talks = [[{"role": "user", "content": "weather " * (i + 1)}] for i in range(3)]
    options = opened(agent, "search")
    batch = agent.generate_batch(talks, tiny_menu.tools, **options)
    alone = [agent.generate(talk, tiny_menu.tools, **opened(agent, "search")) for talk in talks]
    assert [row.text for row in batch] == [row.text for row in alone]
    assert [row.decisions[0].action for row in batch] == [row.decisions[0].action for row in alone]


def test_a_rival_up_a_tier_is_not_asked_about(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """The conditions of a redirect hold for the question: else the call stops."""
    tools = {name: {"tier": "irreversible", "doubtful": "correct"} for name in NAMES}
    tools["search"] = {"tier": "write", "doubtful": "correct"}
    agent = agent_of(tiny_loaded, tiny_menu, tools=tools)
    result = agent.generate(ASK, tiny_menu.tools, **opened(agent, "search"))
    decision = result.decisions[0]
    assert (decision.action, decision.asks) == ("veto", False)
    assert "no other tool may replace this one" in decision.detail


def test_monitoring_asks_nothing(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """The call runs as written, and the record says what would have been done."""
    agent = agent_of(tiny_loaded, tiny_menu, mode="monitor")
    result = agent.generate(ASK, tiny_menu.tools, **opened(agent, "search"))
    decision = result.decisions[0]
    assert (decision.action, decision.proposed, decision.asks) == ("allow", "redirect", False)
    assert decision.executed_tool == "search"


def test_an_unsettled_decision_executes_nothing(agent: GuardedAgent, tiny_menu: Menu) -> None:
    """Until the model has answered, neither tool may run: as where only tokens are wanted."""
    text = agent.wire.render(agent.loaded.tokenizer, ASK, tiny_menu)
    ids = torch.tensor([agent.loaded.tokenizer(text, add_special_tokens=False)["input_ids"]])
    found = agent.generate_ids(
        ids, torch.ones_like(ids), tiny_menu.tools, **opened(agent, "search")
    )
    decision = found.judged[0][0].decision
    assert (decision.action, decision.asks) == ("redirect", True)
    assert decision.executed_tool is None


def settled(agent: GuardedAgent, menu: Menu) -> Decision:
    return next(results(agent, menu)).decisions[0]


def test_an_answer_that_is_neither_closes_the_call(agent: GuardedAgent, tiny_menu: Menu) -> None:
    """Only the two tools that were asked about can be executed."""
    asking = replace(settled(agent, tiny_menu), action="redirect", target="search", asks=True)
    for picked in ("send_email", "unknown"):
        decision = agent.guard.answered(asking, picked)
        assert (decision.action, decision.reason, decision.asks) == ("veto", "fault", False)


def test_a_question_that_cannot_be_asked_closes_the_call(
    agent: GuardedAgent, tiny_menu: Menu
) -> None:
    """A failure while asking is no permission."""
    asking = replace(settled(agent, tiny_menu), action="redirect", target="search", asks=True)
    decision = agent.guard.unanswered(asking, ReadoutError("the logits are not finite"))
    assert (decision.action, decision.reason) == ("veto", "fault")
    assert decision.executed_tool is None


def test_an_answer_that_cannot_be_recorded_closes_the_call(
    tiny_loaded: LoadedModel, tiny_menu: Menu
) -> None:
    """As with every other decision, what is not written down does not run."""
    agent = agent_of(tiny_loaded, tiny_menu)
    asking = replace(settled(agent, tiny_menu), action="redirect", target="search", asks=True)

    class Broken:
        def info(self, *_args: Any, **_fields: Any) -> None:
            raise OSError("the disk is full")

    agent.guard.logger = Broken()
    decision = agent.guard.answered(asking, "search")
    assert (decision.action, decision.reason) == ("veto", "fault")


def test_a_model_that_breaks_between_is_closed(tiny_menu: Menu, tiny_loaded: LoadedModel) -> None:
    """Logits that are not finite in the second prompt alone end in a veto, not in an error."""
    agent = agent_of(tiny_loaded, tiny_menu)
    whole = len(
        agent.loaded.tokenizer(agent.wire.render(agent.loaded.tokenizer, ASK, tiny_menu))[
            "input_ids"
        ]
    )

    def spoil(_module: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        # The question's prompt is the only one of this length: it offers two tools.
        if 10 < kwargs["input_ids"].shape[1] < whole:
            output.logits = output.logits * torch.nan
        return output

    handle = agent.loaded.model.register_forward_hook(spoil, with_kwargs=True)
    try:
        result = agent.generate(ASK, tiny_menu.tools, **opened(agent, "search"))
    finally:
        handle.remove()
    decision = result.decisions[0]
    assert (decision.action, decision.reason) == ("veto", "fault")
    assert "not finite" in decision.detail
    assert result.calls == ()
