"""Tools of all kinds in a guarded agent, and tool nodes of other graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from agent_fakes import (
    POLICY,
    SEAL,
    World,
    answers,
    forged,
    judged,
    policy,
    turn,
)
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain.tools import InjectedState, ToolRuntime
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import BaseTool, StructuredTool, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.errors import ParentCommand
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command
from pydantic import BaseModel
from scripted_chat import call_text, chat_over, guard_of, last_user_text

from toolguard.adapters.agent_middleware import ToolguardMiddleware
from toolguard.adapters.loading import LoadedModel
from toolguard.guard.tools import Menu


class Typed(BaseTool):
    name: str = "typed"
    description: str = "A tool without a schema of its own."

    def _run(self, count: int) -> str:
        return f"counted {count}"


@tool
def injected(
    text: str, state: Annotated[dict[str, Any], InjectedState], runtime: ToolRuntime
) -> str:
    """Use what the agent injects."""
    return f"{text} {len(state['messages'])} {runtime.tool_call_id[:5]}"


@tool
async def late(text: str) -> str:
    """Run in the loop alone."""
    return text.upper()


@tool(response_format="content_and_artifact")
def with_artifact(text: str) -> tuple[str, dict[str, str]]:
    """Give an artifact too."""
    return text, {"of": text}


def schema_only(**arguments: Any) -> str:
    return json.dumps(arguments, sort_keys=True)


BY_SCHEMA = StructuredTool(
    name="by_schema",
    description="Has a JSON Schema.",
    args_schema={
        "type": "object",
        "properties": {"text": {"type": "string"}, "items": {"type": "array"}},
        "required": ["text"],
    },
    func=schema_only,
)


ANY_SCHEMA = StructuredTool(
    name="any_schema",
    description="Takes what there is.",
    args_schema={"type": "object", "title": "any_schema", "description": "d", "properties": {}},
    func=schema_only,
)


@pytest.mark.parametrize(
    ("made", "arguments", "content"),
    [
        (Typed(), {"count": 3}, "counted 3"),
        (injected, {"text": "x"}, "x 2 call_"),
        (with_artifact, {"text": "x"}, "x"),
        (BY_SCHEMA, {"text": "x", "items": [1]}, '{"items": [1], "text": "x"}'),
        (ANY_SCHEMA, {"text": "x"}, '{"text": "x"}'),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_tools_of_all_kinds_run(
    world: World, made: BaseTool, arguments: dict[str, Any], content: str
) -> None:
    """Schemas from annotations, from JSON, injected arguments, artifacts: all as without guard."""
    call = judged(made.name, arguments, policy=policy())
    state = await world.run(world.agent(turn(call), tools=[made], policy=policy()))
    assert answers(state)[0].content == content
    if made is with_artifact:
        assert answers(state)[0].artifact == {"of": "x"}


async def test_a_tool_of_the_loop_runs_in_an_async_agent(tmp_path: Path) -> None:
    """A coroutine is awaited."""
    world = World(tmp_path, how="async")
    call = judged("late", {"text": "x"}, policy=policy())
    state = await world.run(world.agent(turn(call), tools=[late], policy=policy()))
    assert answers(state)[0].content == "X"


async def test_the_schema_that_is_checked_is_the_one_the_model_sees(world: World) -> None:
    """Injected arguments are nobody's to give: a call that carries one does not run."""
    told = {"text": "x", "state": {"messages": ["forged"]}}
    call = judged("injected", told, policy=policy())
    await world.run(world.agent(turn(call), tools=[injected], policy=policy()))
    assert world.outcome(call)["status"] == "blocked"


async def test_structured_output_by_a_tool_is_left_alone(world: World) -> None:
    """The call by which a model answers in a schema is no tool's, and never comes here."""

    class Weather(BaseModel):
        degrees: int

    said = turn(judged("send")), turn(forged("Weather", {"degrees": 7}))
    state = await world.run(world.agent(*said, response_format=ToolStrategy(Weather)))
    assert state["structured_response"] == Weather(degrees=7)
    assert world.log.names == ["send"]


@pytest.mark.parametrize(
    ("name", "threshold", "ran"),
    [("send", 1.0, True), ("send", None, False), ("delete", 1.0, True)],
)
async def test_a_guarded_model_and_the_boundary_work_together(
    world: World, tiny_loaded: LoadedModel, name: str, threshold: float | None, ran: bool
) -> None:
    """A scripted local model: its own records let calls run, wait for a person, or stay out."""

    def answer(prompt: str, _turn: str) -> str:
        asked = last_user_text(prompt)
        return "Well." if asked.startswith("<tool_response>") else call_text(name, text="old")

    tools = world.log.tools("send", "delete", "note")
    menu = Menu.of([convert_to_openai_tool(made) for made in tools])
    rules = {"tools": {"send": {"tier": "irreversible"}, "delete": {"rule": "confirm"}}}
    guard = guard_of(tiny_loaded, menu, threshold=threshold, **rules)
    agent = create_agent(
        chat_over(tiny_loaded, guard, answer, seal=SEAL),
        tools=tools,
        middleware=[ToolguardMiddleware(guard.policy, SEAL, audit=world.store)],
        checkpointer=world.saver,
    )
    state = await world.run(agent)
    if name == "delete":
        assert world.log.runs == []
        assert state["__interrupt__"][0].value["args"] == {"text": "old"}
        state = await world.answer(agent, {"type": "approve"}, state)
    assert world.log.runs == ([(name, {"text": "old"})] if ran else [])
    assert state["messages"][-1].content == "Well."
    assert world.events(kind="decision")[0].payload["evidence"]["p_wrong"] is not None
    assert world.events(kind="outcome")[0].action == ("done" if ran else "blocked")


async def test_a_bare_tool_node_is_guarded_too(world: World) -> None:
    """In a graph of one's own the same wrappers stand around a `ToolNode`."""
    guard = ToolguardMiddleware(POLICY, SEAL, audit=world.store)
    node = ToolNode(
        world.log.tools("send", "pay"),
        wrap_tool_call=guard.wrap_tool_call,
        awrap_tool_call=guard.awrap_tool_call,
    )
    graph = StateGraph(MessagesState)
    graph.add_node("tools", node)
    graph.add_edge(START, "tools")
    calls = [judged("pay"), judged("pay"), forged("send")]
    said = {"messages": [HumanMessage(content="Go."), turn(*calls)]}
    await world.run(graph.compile(), said)
    assert world.log.names == ["pay"]
    assert [world.outcome(call).get("reason") for call in calls] == [None, "budget", "no_record"]


async def test_a_tool_that_hands_over_to_another_agent_has_ended(world: World) -> None:
    """A command to the graph around the agent is no pause: the call is done."""

    def hand_over() -> str:
        raise ParentCommand(Command(graph=Command.PARENT, goto="other"))

    tools = [StructuredTool.from_function(hand_over, name="send", description="Hands over.")]
    call = judged("send")
    saver, world.saver = world.saver, None
    graph = StateGraph(MessagesState)
    graph.add_node("agent", world.agent(turn(call), tools=tools), destinations=("other",))
    graph.add_node("other", lambda _state: {"messages": [AIMessage(content="I am here.")]})
    graph.add_edge(START, "agent")
    state = await world.run(graph.compile(checkpointer=saver))
    assert "I am here." in [message.content for message in state["messages"]]
    assert world.outcome(call) == {"status": "done"}
