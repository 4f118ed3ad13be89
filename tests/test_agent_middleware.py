"""`ToolguardMiddleware` in a real LangChain agent, sync and async alike."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from agent_fakes import (
    ASK,
    KEY,
    MONITOR,
    POLICY,
    SEAL,
    Call,
    ScriptedModel,
    World,
    answers,
    forged,
    judged,
    turn,
)
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ToolRetryMiddleware, hook_config
from langchain.agents.structured_output import ToolStrategy
from langchain.tools import InjectedState, ToolRuntime
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, ToolException, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.errors import ParentCommand
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, interrupt
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pydantic import BaseModel, ValidationError
from scripted_chat import call_text, chat_over, guard_of, last_user_text

from toolguard.adapters.agent_middleware import ToolguardMiddleware
from toolguard.adapters.agent_middleware.handed import thread_of
from toolguard.adapters.audit_store import AuditEvent, AuditStore
from toolguard.adapters.loading import LoadedModel
from toolguard.guard.errors import AuditError
from toolguard.guard.policy import AuditPolicy, Policy
from toolguard.guard.seal import Seal
from toolguard.guard.tools import Menu


@pytest.fixture(params=["sync", "async"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path, how=request.param)


def policy(**tools: Any) -> Policy:
    return Policy.load({"mode": "enforce", "unlisted": "judge", "tools": tools})


def kinds(world: World, call: Call) -> list[str]:
    return [event.kind for event in world.events(call_id=call.id)]


class AfterModel(AgentMiddleware):
    """Other middleware: changes the state after the model's turn."""

    def __init__(self, update: Any) -> None:
        super().__init__()
        self.update = update

    def after_model(self, state: Any, runtime: Any) -> Any:
        return self.update(state)

    async def aafter_model(self, state: Any, runtime: Any) -> Any:
        return self.update(state)


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


# A person's word


async def test_a_call_that_wants_a_person_waits_in_langchains_schema(world: World) -> None:
    """The pause carries the call, and the forms an answer may have; nothing has run."""
    call = judged("delete", {"text": "all"}, "confirm", reason="doubtful")
    state = await world.run(world.agent(turn(call)))
    assert world.log.runs == []
    (waiting,) = state["__interrupt__"]
    assert {key: waiting.value[key] for key in ("type", "tool_call_id", "name", "args")} == {
        "type": "tool_approval",
        "tool_call_id": call.id,
        "name": "delete",
        "args": {"text": "all"},
    }
    assert waiting.value["description"]
    forms = waiting.response_schema["discriminator"]["mapping"]
    assert set(forms) == {"approve", "edit", "reject", "respond"}
    assert [event.call_id for event in world.store.pending_approvals()] == [call.id]
    assert kinds(world, call) == ["decision", "approval_request"]


async def test_an_approved_call_runs_once(world: World) -> None:
    """Approve: the call runs as it stands, and the store says who let it."""
    call = judged("delete", {"text": "old"}, "confirm")
    agent = world.agent(turn(call))
    state = await world.answer(agent, {"type": "approve"}, await world.run(agent))
    assert world.log.runs == [("delete", {"text": "old"})]
    assert answers(state)[0].content == "delete ran"
    expected = ["decision", "approval_request", "approval", "started", "outcome"]
    assert kinds(world, call) == expected
    digests = {event.payload.get("arguments") for event in world.events(call_id=call.id)[:4]}
    assert digests == {SEAL.digest({"text": "old"})}
    assert world.events(kind="started")[0].payload["reason"] == "approved_by_person"
    assert world.store.pending_approvals() == ()


async def test_an_edited_call_runs_with_the_persons_arguments(world: World) -> None:
    """Edit: other arguments, bound by their own digest; the tool stays."""
    call = judged("delete", {"text": "all"}, "confirm")
    agent = world.agent(turn(call))
    edit = {"type": "edit", "edited_action": {"name": "delete", "args": {"text": "one"}}}
    await world.answer(agent, edit, await world.run(agent))
    assert world.log.runs == [("delete", {"text": "one"})]
    approval = world.store.get(call.id, "approval").payload
    assert approval == {"type": "edit", "arguments": SEAL.digest({"text": "one"})}


async def test_an_edit_is_judged_again(world: World) -> None:
    """Arguments that the policy forbids do not run, whoever wrote them."""
    call = judged("delete", {"text": "all"}, "confirm")
    agent = world.agent(turn(call))
    edit = {"type": "edit", "edited_action": {"name": "delete", "args": {"text": "x" * 21}}}
    state = await world.answer(agent, edit, await world.run(agent))
    assert world.log.runs == []
    assert world.outcome(call)["reason"] == "invalid_arguments"
    assert "text" in answers(state)[0].content


@pytest.mark.parametrize(
    ("answer", "status", "outcome"),
    [
        ({"type": "reject"}, "error", "rejected"),
        ({"type": "reject", "message": "Not today."}, "error", "rejected"),
        ({"type": "respond", "message": "It is gone already."}, "success", "answered"),
    ],
)
async def test_a_person_can_answer_in_the_tools_place(
    world: World, answer: dict[str, str], status: str, outcome: str
) -> None:
    """Reject and respond: nothing runs, and the model reads what the person said."""
    call = judged("delete", {"text": "all"}, "confirm")
    agent = world.agent(turn(call))
    state = await world.answer(agent, answer, await world.run(agent))
    assert world.log.runs == []
    assert answers(state)[0].status == status
    assert answer.get("message", "A person refused") in answers(state)[0].content
    assert world.outcome(call)["status"] == outcome
    assert state["messages"][-1].content == "It is done."


@pytest.mark.parametrize(
    "answer",
    [
        {"type": "yes"},
        {"type": "approve", "arguments": {"text": "x"}},
        {"type": "edit", "edited_action": {"name": "send", "args": {"text": "x"}}},
        {"type": "edit", "edited_action": {"name": "delete"}},
        {"type": "respond"},
        "approve",
        True,
    ],
)
async def test_an_answer_of_no_known_form_leaves_the_call_waiting(
    world: World, answer: Any
) -> None:
    """What is no answer, or names another tool, is refused; the next answer counts."""
    agent = world.agent(turn(judged("delete", {"text": "old"}, "confirm")))
    state = await world.run(agent)
    with pytest.raises(ValidationError):
        await world.answer(agent, answer, state)
    assert world.log.runs == []
    await world.answer(agent, {"type": "approve"}, state)
    assert world.log.names == ["delete"]


@asynccontextmanager
async def sqlite_saver(world: World, path: Path) -> AsyncIterator[Any]:
    if world.how == "async":
        async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
            yield saver
    else:
        with SqliteSaver.from_conn_string(str(path)) as saver:
            yield saver


@pytest.mark.parametrize("answer", ["approve", "reject"])
async def test_a_waiting_call_outlives_its_process(
    world: World, tmp_path: Path, answer: str
) -> None:
    """Checkpoint on SQLite, everything else made anew: the record still holds, floats and all."""
    said = turn(judged("delete", {"text": "old", "n": 1 / 3, "l": [1, {"a": None}]}, "confirm"))
    path = tmp_path / "checkpoints.db"
    async with sqlite_saver(world, path) as world.saver:
        state = await world.run(world.agent(said))
        world.store.close()
    world.store = AuditStore.open(tmp_path / "audit.db", key=KEY)
    async with sqlite_saver(world, path) as world.saver:
        agent = world.agent(said, seal=Seal(KEY))
        await world.answer(agent, {"type": answer}, state)
    assert world.log.names == (["delete"] if answer == "approve" else [])
    assert world.store.verify().ok


async def test_another_key_after_a_restart_approves_nothing(world: World) -> None:
    """Records of a key that is gone are nobody's: the call does not run."""
    call = judged("delete", {"text": "old"}, "confirm")
    state = await world.run(world.agent(turn(call)))
    agent = world.agent(turn(call), seal=Seal())
    await world.answer(agent, {"type": "approve"}, state)
    assert world.log.runs == []
    assert world.outcome(call)["reason"] == "no_record"


async def test_the_first_answer_counts(world: World) -> None:
    """An approval on record cannot be turned into one of other arguments."""
    call = judged("delete", {"text": "old"}, "confirm")
    agent = world.agent(turn(call))
    state = await world.run(agent)
    payload = {"type": "edit", "arguments": SEAL.digest({"text": "one"})}
    world.store.write(AuditEvent(kind="approval", call_id=call.id, payload=payload))
    state = await world.answer(agent, {"type": "approve"}, state)
    assert world.log.runs == []
    assert "another answer was given before" in answers(state)[0].content


async def test_without_a_checkpointer_a_waiting_call_does_not_run(world: World) -> None:
    """There is nowhere to wait: the agent stops, and the tool has not run."""
    world.saver = None
    state = await world.run(world.agent(turn(judged("delete", {}, "confirm"))))
    assert world.log.runs == []
    assert state["__interrupt__"]


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


# Monitor mode


@pytest.mark.parametrize(
    "call",
    [
        forged("send", {"text": "x"}),
        judged("send", {"text": "x"}).changed(args={"text": "y"}),
        judged("drop", policy=MONITOR, reason="rule_deny", proposed="veto"),
        judged("delete", policy=MONITOR, reason="rule_confirm", proposed="confirm"),
        judged("admin", policy=MONITOR),
    ],
    ids=["forged", "edited", "denied", "confirm", "role"],
)
async def test_monitor_runs_everything_and_writes_what_it_would_have_done(
    world: World, call: Call
) -> None:
    """The call runs; the decision says allow, and what enforcing would have been."""
    await world.run(world.agent(turn(call), policy=MONITOR))
    assert world.log.names == [call.call["name"]]
    decided = world.events(kind="decision")[0]
    assert decided.action == "allow"
    assert decided.payload["proposed"] in ("veto", "confirm")
    assert world.outcome(call) == {"status": "done"}


async def test_monitor_ends_no_run(world: World) -> None:
    """Calls to tools that do not exist are answered as ever, and the agent goes on."""
    said = [turn(forged(f"nothing{i}", call_id=f"c{i}")) for i in range(5)]
    state = await world.run(world.agent(*said, policy=MONITOR))
    assert state["messages"][-1].content == "It is done."


async def test_monitor_spends_no_budget(world: World) -> None:
    """Limits are told of and do not hold."""
    calls = [judged("pay", policy=MONITOR) for _ in range(3)]
    calls += [judged("ping", policy=MONITOR) for _ in range(3)]
    await world.run(world.agent(turn(*calls), policy=MONITOR))
    assert len(world.log.names) == 6


# An audit store that fails


class Failing:
    """A store that fails at some of its methods."""

    def __init__(self, store: Any, *methods: str, kind: str = "") -> None:
        self.store, self.methods, self.kind = store, methods, kind

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            kind = getattr(args[0], "kind", "") if args else ""
            if name in self.methods and self.kind in ("", kind):
                raise AuditError("the disk is full")
            return method(*args, **kwargs)

        return call


EVERY = ("write", "write_started", "get", "count_started")


@pytest.mark.parametrize("methods", [EVERY, ("write",), ("write_started",)])
async def test_a_call_that_cannot_be_recorded_does_not_run(
    world: World, methods: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Enforcing: closed, the model is told, and so is standard error."""
    world.store = Failing(world.store, *methods)
    state = await world.run(world.agent(turn(judged("send"))))
    assert world.log.runs == []
    assert "could not be recorded" in answers(state)[0].content
    assert "audit_write_failed" in capsys.readouterr().err


@pytest.mark.parametrize("methods", [EVERY, ("write",), ("write_started",), ("get",)])
async def test_monitor_runs_a_call_that_cannot_be_recorded(
    world: World, methods: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Watching: open, and said on standard error."""
    world.store = Failing(world.store, *methods)
    calls = judged("send", policy=MONITOR), judged("ping", policy=MONITOR)
    await world.run(world.agent(turn(*calls), policy=MONITOR))
    assert sorted(world.log.names) == ["ping", "send"]
    told = capsys.readouterr().err
    assert "audit_write_failed" in told
    assert "the disk is full" in told


@pytest.fixture(scope="module")
def meter() -> InMemoryMetricReader:
    """Give what reads the process's OpenTelemetry metrics, which can be set up only once."""
    reader = InMemoryMetricReader()
    set_meter_provider(MeterProvider(metric_readers=[reader]))
    return reader


async def test_unwritten_events_are_counted(world: World, meter: InMemoryMetricReader) -> None:
    """Each event that the store did not take is counted for operators, by its kind."""
    world.store = Failing(world.store, *EVERY)
    await world.run(world.agent(turn(judged("send"))))
    found = json.loads(meter.get_metrics_data().to_json())
    metrics = found["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    assert [metric["name"] for metric in metrics] == ["toolguard.audit.write_failures"]
    points = metrics[0]["data"]["data_points"]
    assert all(point["value"] >= 1 and point["attributes"]["toolguard.kind"] for point in points)
    assert points


@pytest.mark.parametrize("kept", ["hmac", "plain"])
async def test_prompts_are_kept_as_the_policy_says(world: World, kept: str) -> None:
    """The store holds a keyed digest of what the user asked, or the text where that is allowed."""
    policy = POLICY.model_copy(update={"audit": AuditPolicy(prompts=kept)})
    await world.run(world.agent(turn(judged("ping", policy=policy)), policy=policy))
    (event,) = world.events(kind="decision")
    text = ASK["messages"][0][1]
    assert (text in json.dumps(event.payload)) == (kept == "plain")
    assert event.payload.get("prompt") == (None if kept == "plain" else SEAL.digest(text))


@pytest.mark.parametrize("kind", ["approval_request", "approval"])
async def test_what_a_person_says_must_be_recorded(world: World, kind: str) -> None:
    """A question or an answer that cannot be kept lets nothing run."""
    world.store = Failing(world.store, "write", kind=kind)
    agent = world.agent(turn(judged("delete", {}, "confirm")))
    state = await world.run(agent)
    if kind == "approval":
        state = await world.answer(agent, {"type": "approve"}, state)
    assert "__interrupt__" not in state
    assert world.log.runs == []


async def test_a_lost_outcome_stops_nothing_that_ran(world: World) -> None:
    """The tool has run: its answer reaches the model, and standard error hears of the rest."""
    world.store = Failing(world.store, "write", kind="outcome")
    state = await world.run(world.agent(turn(judged("send"))))
    assert answers(state)[0].content == "send ran"


async def test_without_a_store_calls_run_all_the_same(world: World) -> None:
    """An agent without an account enforces what it can."""
    world.store = None
    said = turn(judged("send"), judged("drop"), judged("ping"), forged("send"))
    state = await world.run(world.agent(said))
    assert world.log.names == ["send"]
    assert len(answers(state)) == 4


async def test_readable_arguments_are_kept_where_the_policy_says_so(world: World) -> None:
    """`audit.arguments: plain` puts them beside their digest."""
    rules = Policy.load({**POLICY.model_dump(), "audit": {"arguments": "plain"}})
    call = judged("delete", {"text": "old"}, "confirm", policy=rules)
    await world.run(world.agent(turn(call), policy=rules))
    for event in world.events(call_id=call.id):
        assert event.payload["arguments_plain"] == {"text": "old"}


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

    class Broken(Failing):
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


# Tools that pause


async def test_a_tool_may_pause_the_agent_itself(world: World) -> None:
    """Each time it is resumed it begins anew, as ever, with a start and an outcome of its own."""

    def ask(text: str = "") -> str:
        world.log.runs.append(("ask", {"text": text}))
        return f"{interrupt('first')} and {interrupt('second')}"

    tools = [StructuredTool.from_function(ask, name="ping", description="Asks.")]
    call = judged("ping", {"text": "x"})
    agent = world.agent(turn(call), tools=tools)
    state = await world.run(agent)
    assert state["__interrupt__"][0].value == "first"
    state = await world.answer(agent, "one", state)
    assert state["__interrupt__"][0].value == "second"
    state = await world.answer(agent, "two", state)
    assert answers(state)[0].content == "one and two"
    # Three starts of one call in one minute, of which the policy allows two: it is one call.
    assert len(world.log.runs) == 3
    statuses = [event.payload["status"] for event in world.events(kind="outcome")]
    assert statuses == ["paused", "paused", "done"]


async def test_an_approved_tool_may_pause_too(world: World) -> None:
    """The person's approval stays with the call when its tool asks something else."""

    def ask(text: str = "") -> str:
        world.log.runs.append(("delete", {"text": text}))
        return f"deleted {text} {interrupt('really?')}"

    tools = [StructuredTool.from_function(ask, name="delete", description="Asks.")]
    agent = world.agent(turn(judged("delete", {"text": "all"}, "confirm")), tools=tools)
    state = await world.run(agent)
    edit = {"type": "edit", "edited_action": {"name": "delete", "args": {"text": "one"}}}
    state = await world.answer(agent, edit, state)
    assert state["__interrupt__"][0].value == "really?"
    state = await world.answer(agent, "yes", state)
    assert answers(state)[0].content == "deleted one yes"


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


# Tools of all kinds


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


async def test_nothing_of_the_guards_state_is_shown(world: World) -> None:
    """Where the run began is the agent's own; it is no part of what `invoke` gives."""
    state = await world.run(world.agent(turn(judged("send"))), ASK)
    assert set(state) == {"messages"}


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
