"""Budgets of an agent's calls, and runs that get nowhere."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from agent_fakes import (
    ASK,
    POLICY,
    SEAL,
    ScriptedModel,
    World,
    answers,
    forged,
    judged,
    kinds,
    policy,
    turn,
)
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command

from toolguard.adapters.agent_middleware import ToolguardMiddleware


class AfterModel(AgentMiddleware):
    """Other middleware: changes the state after the model's turn."""

    def __init__(self, update: Any) -> None:
        super().__init__()
        self.update = update

    def after_model(self, state: Any, runtime: Any) -> Any:
        return self.update(state)

    async def aafter_model(self, state: Any, runtime: Any) -> Any:
        return self.update(state)


# Budgets


async def test_a_budget_of_the_run_counts_what_ran(world: World) -> None:
    """One payment a run: the second is refused, and the next run has one again."""
    agent = world.agent(
        turn(judged("pay", {"text": "1"})),
        turn(judged("pay", {"text": "2"})),
        AIMessage(content="Paid."),
        turn(judged("pay", {"text": "3"})),
    )
    await world.run(agent)
    assert [run["text"] for _, run in world.log.runs] == ["1"]
    await world.run(agent)
    assert [run["text"] for _, run in world.log.runs] == ["1", "3"]


async def test_a_budget_of_the_run_holds_for_calls_side_by_side(world: World) -> None:
    """Of three payments at once the first one runs."""
    calls = [judged("pay", {"text": str(i)}) for i in range(3)]
    await world.run(world.agent(turn(*calls)))
    assert [run["text"] for _, run in world.log.runs] == ["0"]
    assert [world.outcome(call).get("reason") for call in calls] == [None, "budget", "budget"]


async def test_a_call_that_did_not_run_takes_nothing_of_the_budget(world: World) -> None:
    """Neither a vetoed neighbour nor one that nobody judged uses up a payment."""
    said = turn(judged("pay", {}, "veto"), forged("pay"), judged("pay", {"text": "1"}))
    await world.run(world.agent(said))
    assert world.log.runs == [("pay", {"text": "1"})]


async def test_a_budget_of_the_run_holds_without_a_store(world: World) -> None:
    """The conversation alone tells how many ran."""
    world.store = None
    calls = [judged("pay", {"text": str(i)}) for i in range(2)]
    await world.run(world.agent(turn(*calls), turn(judged("pay", {"text": "late"}))))
    assert [run["text"] for _, run in world.log.runs] == ["0"]


async def test_a_message_that_looks_like_the_users_begins_no_run(world: World) -> None:
    """A tool that adds a user's message gives the agent no second budget."""

    @tool
    def pay(runtime: ToolRuntime) -> Command:
        """Pay, and talk."""
        world.log.runs.append(("pay", {}))
        said = ToolMessage(content="paid", tool_call_id=runtime.tool_call_id)
        return Command(update={"messages": [said, HumanMessage(content="Once more, please.")]})

    agent = world.agent(turn(judged("pay")), turn(judged("pay")), tools=[pay])
    await world.run(agent)
    assert len(world.log.runs) == 1


async def test_a_summary_gives_no_second_budget(world: World) -> None:
    """Where the conversation is replaced by a summary, the store still knows what ran."""

    def summarised(state: Any) -> Any:
        messages = state["messages"]
        if not any(isinstance(message, ToolMessage) for message in messages):
            return None
        kept = [HumanMessage(content="Summary: all is well."), messages[-1]]
        return {"messages": [RemoveMessage(id=REMOVE_ALL_MESSAGES), *kept]}

    class Later(ScriptedModel):
        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            self.settings.append({})
            at = len(self.settings) - 1
            here = turn() if at >= len(self.turns) else self.turns[at]
            result = super()._generate([], *args, **kwargs)
            result.generations[0].message = here
            return result

    calls = [judged("pay", {"text": str(i)}) for i in range(2)]
    model = Later(turns=(turn(calls[0]), turn(calls[1])))
    agent = create_agent(
        model,
        tools=world.log.tools("pay"),
        middleware=[ToolguardMiddleware(POLICY, SEAL, audit=world.store), AfterModel(summarised)],
        checkpointer=world.saver,
    )
    await world.run(agent)
    assert [run["text"] for _, run in world.log.runs] == ["0"]


async def test_a_budget_of_the_minute_holds_over_threads(world: World) -> None:
    """Two a minute, all runs together, exactly, also when all start at once."""
    calls = [judged("ping", {"text": str(i)}) for i in range(5)]
    await world.run(world.agent(turn(*calls)))
    assert world.log.names == ["ping", "ping"]
    world.thread = {"configurable": {"thread_id": "thread-2"}}
    late = judged("ping")
    state = await world.run(world.agent(turn(late)))
    assert world.log.names == ["ping", "ping"]
    assert world.outcome(late)["reason"] == "budget"
    assert "Try again later" in answers(state)[0].content


async def test_a_waiting_call_takes_of_the_budget_when_it_runs(world: World) -> None:
    """An approval that comes when the limit is spent is told so."""
    rules = policy(post={"tier": "write", "rule": "confirm", "budget": {"per_minute": 1}})
    calls = [judged("post", {"text": str(i)}, "confirm", policy=rules) for i in range(2)]
    agent = world.agent(turn(*calls), policy=rules, tools=world.log.tools("post"))
    state = await world.run(agent)
    assert len(state["__interrupt__"]) == 2
    await world.answer(agent, {"type": "approve"}, state)
    assert world.log.names == ["post"]
    assert sorted(world.outcome(call)["status"] for call in calls) == ["blocked", "done"]


async def test_a_budget_holds_for_agents_that_run_at_once(tmp_path: Path) -> None:
    """Forty conversations on one store: two calls a minute, not one more."""
    world = World(tmp_path, how="async")
    agents = [world.agent(turn(judged("ping"))) for _ in range(40)]
    threads = [{"configurable": {"thread_id": f"thread-{i}"}} for i in range(40)]
    await asyncio.gather(
        *(agent.ainvoke(ASK, thread) for agent, thread in zip(agents, threads, strict=True))
    )
    assert world.log.names == ["ping", "ping"]
    assert len(world.events(kind="outcome", action="blocked")) == 38
    assert world.store.verify().ok


# Runs that get nowhere


async def test_a_run_of_blocked_calls_ends(world: World) -> None:
    """Three blocked calls end the run with words; the model is not asked a fourth time."""
    said = [turn(judged("send", {}, "veto")) for _ in range(9)]
    state = await world.run(world.agent(*said))
    assert len(answers(state)) == 3
    assert state["messages"][-1].content == "I stopped: 3 of my tool calls were blocked."
    assert len(world.model.settings) == 3


async def test_blocked_calls_of_an_earlier_run_are_forgotten(world: World) -> None:
    """Each run has its own count."""
    blocked = [turn(judged("send", {}, "veto")) for _ in range(4)]
    agent = world.agent(*blocked[:2], AIMessage(content="Sorry."), *blocked[2:])
    await world.run(agent)
    state = await world.run(agent)
    assert state["messages"][-1].content == "It is done."


async def test_a_person_who_answers_is_no_blocked_call(world: World) -> None:
    """Three answers in the tool's place do not end the run; three refusals do."""
    for answer, ends in (({"type": "respond", "message": "Done."}, False), ({"type": "reject"}, 1)):
        world.thread = {"configurable": {"thread_id": str(answer)}}
        agent = world.agent(*[turn(judged("delete", {}, "confirm")) for _ in range(3)])
        state = await world.run(agent)
        for _ in range(3):
            state = await world.answer(agent, answer, state)
        assert state["messages"][-1].content.startswith("I stopped") is bool(ends)


async def test_a_malformed_call_is_told_and_tried_again(world: World) -> None:
    """A turn of nothing but malformed calls does not end the agent without a word."""
    broken = AIMessage(
        content="",
        invalid_tool_calls=[{"name": "send", "args": "{", "id": "c1", "error": "no end of JSON"}],
    )
    state = await world.run(world.agent(broken, turn(judged("send", {"text": "x"}))))
    assert "no end of JSON" in answers(state)[0].content
    assert world.log.names == ["send"]


async def test_malformed_calls_without_end_end_the_run(world: World) -> None:
    """They count as blocked ones."""
    broken = [
        AIMessage(
            content="", invalid_tool_calls=[{"name": None, "args": "", "id": i, "error": None}]
        )
        for i in "abcdef"
    ]
    state = await world.run(world.agent(*broken))
    assert state["messages"][-1].content.startswith("I stopped: 3")


async def test_calls_that_the_model_keeps_back_are_on_record(world: World) -> None:
    """A judged call that never reaches the boundary is written there all the same."""
    kept, runs = judged("send", {}, "veto", reason="invalid_arguments"), judged("send")
    said = turn(kept, runs)
    said = said.model_copy(
        update={
            "tool_calls": [runs.call],
            "invalid_tool_calls": [
                {"name": "send", "args": "(not called)", "id": kept.id, "error": "broken"}
            ],
        }
    )
    await world.run(world.agent(said))
    assert world.log.names == ["send"]
    assert kinds(world, kept) == ["decision", "outcome"]
    assert world.outcome(kept)["reason"] == "invalid_arguments"
    assert {event.run_id for event in world.events()} == {"thread-1"}
