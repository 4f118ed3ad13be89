"""A person's word on an agent's calls, and tools that pause the agent by themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import (
    KEY,
    SEAL,
    World,
    answers,
    judged,
    kinds,
    turn,
)
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import interrupt
from pydantic import ValidationError

from toolguard.adapters.audit_store import AuditEvent, AuditStore
from toolguard.guard.seal import Seal


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
