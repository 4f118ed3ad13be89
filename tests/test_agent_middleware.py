"""`ToolguardMiddleware` in a real LangChain agent: what runs, crashes, other middleware."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agent_fakes import (
    ASK,
    POLICY,
    SEAL,
    Call,
    FailingStore,
    World,
    answers,
    forged,
    judged,
    kinds,
    turn,
)
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ToolRetryMiddleware, hook_config
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool, ToolException
from pydantic import BaseModel

from toolguard.adapters.agent_middleware import ToolguardMiddleware
from toolguard.adapters.agent_middleware.handed import thread_of


class Jump(AgentMiddleware):
    """Other middleware that sends the agent to its tools by itself, past other `after_model`s."""

    @hook_config(can_jump_to=["tools"])
    def after_model(self, state: Any, runtime: Any) -> Any:
        return {"jump_to": "tools"} if state["messages"][-1].tool_calls else None

    @hook_config(can_jump_to=["tools"])
    async def aafter_model(self, state: Any, runtime: Any) -> Any:
        return self.after_model(state, runtime)


# Calls that run, and calls that do not


async def test_a_judged_call_runs_and_each_step_is_on_record(world: World) -> None:
    """Decision, start and outcome stand in the store, with digests in place of arguments."""
    call = judged("send", {"text": "secret"})
    state = await world.run(world.agent(turn(call)))
    assert world.log.runs == [("send", {"text": "secret"})]
    assert answers(state)[0].content == "send ran"
    events = world.events()
    assert [event.kind for event in events] == ["decision", "started", "outcome"]
    assert {(event.call_id, event.run_id, event.tool) for event in events} == {
        (call.id, "thread-1", "send")
    }
    told = events[0].payload
    assert (told["action"], told["reason"], told["tool"]) == ("allow", "confident", "send")
    assert told["evidence"]["p_wrong"] == 0.0314159
    assert told["arguments"] == events[1].payload["arguments"] == SEAL.digest({"text": "secret"})
    assert events[2].payload == {"status": "done"}
    assert "secret" not in json.dumps([dict(event.payload) for event in events])
    assert world.store.verify().ok


async def test_the_guarded_model_is_told_that_somebody_answers(world: World) -> None:
    """Blocked calls are handed on by a model that knows of the boundary."""
    await world.run(world.agent(turn(judged("send"))))
    assert all(settings["toolguard_boundary"] is True for settings in world.model.settings)


async def test_another_model_is_asked_as_before(world: World) -> None:
    """A model that knows no guard gets no setting it would choke on; its calls do not run."""
    said = [turn(forged("send")), AIMessage(content="Well then.")]

    class Plain(GenericFakeChatModel):
        def bind_tools(self, tools: Any, *, tool_choice: Any = None) -> Any:
            return self

    guard = ToolguardMiddleware(POLICY, SEAL, audit=world.store)
    agent = create_agent(
        Plain(messages=iter(said)),
        tools=world.log.tools("send"),
        middleware=[guard],
        checkpointer=world.saver,
    )
    await world.run(agent)
    assert world.log.runs == []
    assert world.outcome("forged")["reason"] == "no_record"


async def test_a_vetoed_call_is_answered_without_scores(world: World) -> None:
    """The model is told why, in words; the numbers are in the store alone."""
    call = judged("send", {}, "veto", reason="doubtful")
    state = await world.run(world.agent(turn(call)))
    assert world.log.runs == []
    answer = answers(state)[0]
    assert (answer.status, answer.name, answer.tool_call_id) == ("error", "send", call.id)
    assert not any(digit in answer.content for digit in "0123456789")
    assert state["messages"][-1].content == "It is done."
    assert kinds(world, call) == ["decision", "outcome"]
    assert world.outcome(call) == {"status": "blocked", "reason": "doubtful", "fields": []}


async def test_a_missing_value_is_asked_for(world: World) -> None:
    """The model is told to ask the user, by the name of the argument."""
    call = judged("send", {}, "clarify", reason="missing_argument", fields=("text",))
    state = await world.run(world.agent(turn(call)))
    assert world.log.runs == []
    assert "ask the user for text" in answers(state)[0].content
    assert world.events(kind="decision")[0].action == "clarify"


async def test_a_redirect_runs_the_other_tool(world: World) -> None:
    """Both the call and the tool are replaced: the target runs, under its own name."""
    call = judged("send", {"text": "x"}, "redirect", reason="doubtful", target="note")
    state = await world.run(world.agent(turn(call)))
    assert world.log.runs == [("note", {"text": "x"})]
    assert answers(state)[0].name == "note"
    assert [event.tool for event in world.events()] == ["note", "note", "note"]
    assert world.events(kind="decision")[0].payload["tool"] == "send"


async def test_a_redirect_that_the_model_has_followed_already_runs(world: World) -> None:
    """The message may carry the target's name, as a guarded model writes it."""
    call = judged("send", {"text": "x"}, "redirect", reason="doubtful", target="note")
    await world.run(world.agent(turn(call.changed(name="note"))))
    assert world.log.names == ["note"]


@pytest.mark.parametrize("target", ["delete", "nowhere"])
async def test_a_redirect_to_what_may_not_run_does_not_run(world: World, target: str) -> None:
    """A target that the policy keeps, or that the agent has not, stops the call."""
    call = judged("send", {"text": "x"}, "redirect", reason="doubtful", target=target)
    await world.run(world.agent(turn(call)))
    assert world.log.runs == []
    assert world.outcome(call)["status"] == "blocked"


async def test_parallel_calls_are_judged_one_by_one(world: World) -> None:
    """One runs, one is vetoed, one waits; the answer to the last leaves the others alone."""
    calls = [judged("send", {"text": "a"}), judged("note", {}, "veto"), judged("delete")]
    agent = world.agent(turn(*calls))
    state = await world.run(agent)
    assert world.log.names == ["send"]
    assert len(state["__interrupt__"]) == 1
    state = await world.answer(agent, {"type": "reject"}, state)
    assert world.log.names == ["send"]
    assert [world.outcome(call)["status"] for call in calls] == ["done", "blocked", "rejected"]
    assert {answer.tool_call_id for answer in answers(state)} == {call.id for call in calls}


async def test_many_calls_in_one_turn_all_get_their_own_answer(world: World) -> None:
    """Forty parallel calls, every other one vetoed."""
    calls = [
        judged("send", {"text": str(i)} if i % 2 else {}, "allow" if i % 2 else "veto")
        for i in range(40)
    ]
    state = await world.run(world.agent(turn(*calls)))
    assert sorted(run["text"] for _, run in world.log.runs) == sorted(
        str(i) for i in range(40) if i % 2
    )
    assert len(answers(state)) == 40
    assert world.store.verify().ok


async def test_static_rules_hold_whatever_the_record_says(world: World) -> None:
    """A tool that the policy denies does not run on the best of evidence."""
    call = judged("drop")
    await world.run(world.agent(turn(call)))
    assert world.log.runs == []
    assert world.outcome(call)["reason"] == "rule_deny"


@pytest.mark.parametrize(
    ("context", "names"), [({"role": "operator"}, ["admin"]), ({"role": "guest"}, []), (None, [])]
)
async def test_roles_come_from_the_context(
    world: World, context: dict[str, str] | None, names: list[str]
) -> None:
    """Who asks is what the caller of the agent says, and nothing in the conversation."""
    said = turn(judged("admin", {"text": "my role is operator"}), id="operator")
    await world.run(world.agent(said, context_schema=dict), context=context)
    assert world.log.names == names


async def test_a_role_may_be_an_attribute_of_the_context(world: World) -> None:
    """A context that is an object is asked for its `role`."""

    class Context(BaseModel):
        role: str

    agent = world.agent(turn(judged("admin")), context_schema=Context)
    await world.run(agent, context=Context(role="operator"))
    assert world.log.names == ["admin"]


async def test_nothing_of_the_guards_state_is_shown(world: World) -> None:
    """Where the run began is the agent's own; it is no part of what `invoke` gives."""
    state = await world.run(world.agent(turn(judged("send"))), ASK)
    assert set(state) == {"messages"}


def test_a_request_without_a_thread_has_none() -> None:
    """Outside of an agent there may be no `configurable` at all."""
    for config in ({}, {"configurable": None}, {"configurable": {}}):
        request: Any = SimpleNamespace(runtime=SimpleNamespace(config=config))
        assert thread_of(request) == ""


def test_the_middleware_needs_neither_a_database_nor_a_model_library() -> None:
    """An agent without an audit store runs where SQLAlchemy is not installed."""
    code = """
import sys
import toolguard.adapters
assert "langchain" not in sys.modules and "langgraph" not in sys.modules
from toolguard.adapters.agent_middleware import ToolguardMiddleware
from toolguard.guard.policy import Policy
from toolguard.guard.seal import Seal
ToolguardMiddleware(Policy(), Seal())
sys.exit(", ".join({"sqlalchemy", "transformers", "nnsight"} & set(sys.modules)) or 0)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


# Crashes


async def test_a_crash_before_the_gate_runs_nothing(world: World) -> None:
    """A role that cannot be found out ends the run loudly, and the tool has not run."""

    def broken(_request: Any) -> str:
        raise ZeroDivisionError

    agent = world.agent(turn(judged("send")), role_of=broken)
    with pytest.raises(ZeroDivisionError):
        await world.run(agent)
    assert world.log.runs == []


async def test_a_crash_in_the_gate_blocks_and_is_recorded(world: World) -> None:
    """Whatever fails while judging is a closed door, on record as a fault."""

    class Broken(FailingStore):
        def count_started(self, *_args: Any) -> int:
            raise ZeroDivisionError

    world.store = Broken(world.store)
    call = judged("ping")
    state = await world.run(world.agent(turn(call)))
    assert world.log.runs == []
    assert world.outcome(call)["reason"] == "fault"
    assert "ZeroDivisionError" in answers(state)[0].content


async def test_a_tool_that_fails_is_on_record(world: World) -> None:
    """The error goes where it would without the guard; its text does not go into the store."""

    def fail(text: str = "") -> str:
        raise RuntimeError(text)

    tools = [StructuredTool.from_function(fail, name="send", description="Fails.")]
    call = judged("send", {"text": "secret"})
    with pytest.raises(RuntimeError, match="secret"):
        await world.run(world.agent(turn(call), tools=tools))
    assert world.outcome(call) == {"status": "failed", "error": "RuntimeError"}


async def test_a_tool_that_says_it_failed_is_on_record(world: World) -> None:
    """An error that the tool handles itself is an outcome too, and blocks nothing."""

    def fail() -> str:
        raise ToolException("no such file")

    tools = [
        StructuredTool.from_function(fail, name="send", description="F.", handle_tool_error=True)
    ]
    calls = [judged("send") for _ in range(4)]
    state = await world.run(world.agent(*map(turn, calls), tools=tools))
    assert [world.outcome(call) for call in calls] == [{"status": "failed"}] * 4
    assert state["messages"][-1].content == "It is done."


async def test_a_run_that_is_cancelled_leaves_a_start_and_runs_nothing_twice(
    tmp_path: Path,
) -> None:
    """How far the tool came nobody knows, and going on from the checkpoint says so."""
    world, running = World(tmp_path, how="async"), asyncio.Event()

    async def wait() -> str:
        world.log.runs.append(("send", {}))
        running.set()
        await asyncio.Event().wait()
        return "never"

    tools = [StructuredTool.from_function(coroutine=wait, name="send", description="Waits.")]
    call = judged("send")
    agent = world.agent(turn(call), tools=tools)
    task = asyncio.create_task(world.run(agent, durability="sync"))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert kinds(world, call) == ["decision", "started"]
    state = await world.run(agent, None)
    assert len(world.log.runs) == 1
    assert "was not run again" in answers(state)[0].content


# Other middleware


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("call", [forged("send"), judged("drop"), judged("send", {}, "veto")])
async def test_a_jump_to_the_tools_goes_through_the_gate(
    world: World, first: bool, call: Call
) -> None:
    """Middleware that sends the agent straight to its tools bypasses nothing, in either order."""
    around = {"before" if first else "behind": [Jump()]}
    await world.run(world.agent(turn(call), **around))
    assert world.log.runs == []
    assert world.outcome(call)["status"] == "blocked"


async def test_a_jump_to_the_tools_waits_for_the_person(world: World) -> None:
    """The pause is where the tool runs, so no jump goes around it."""
    agent = world.agent(turn(judged("delete", {}, "confirm")), before=[Jump()])
    state = await world.run(agent)
    assert world.log.runs == []
    await world.answer(agent, {"type": "reject"}, state)
    assert world.log.runs == []


async def test_a_retry_behind_the_guard_is_one_call(world: World) -> None:
    """Retries of the tool itself belong to one start, and the outcome is the last one's."""
    tries = []

    def flaky() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise TimeoutError
        return "at last"

    tools = [StructuredTool.from_function(flaky, name="pay", description="Flaky.")]
    retry = ToolRetryMiddleware(max_retries=3, initial_delay=0.0, jitter=False)
    call = judged("pay")
    state = await world.run(world.agent(turn(call), tools=tools, behind=[retry]))
    assert answers(state)[0].content == "at last"
    assert kinds(world, call) == ["decision", "started", "outcome"]


async def test_a_retry_in_front_of_the_guard_repeats_nothing(world: World) -> None:
    """A call that has begun does not begin again, whoever asks for it."""

    def fail() -> str:
        world.log.runs.append(("pay", {}))
        raise TimeoutError

    tools = [StructuredTool.from_function(fail, name="pay", description="Fails.")]
    retry = ToolRetryMiddleware(max_retries=3, initial_delay=0.0, jitter=False)
    state = await world.run(world.agent(turn(judged("pay")), tools=tools, before=[retry]))
    assert len(world.log.runs) == 1
    assert "begun before" in answers(state)[0].content
