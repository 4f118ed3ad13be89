"""An agent in monitor mode, and an agent whose audit store fails or keeps what was said."""

from __future__ import annotations

import json

import pytest
from agent_fakes import (
    ASK,
    MONITOR,
    POLICY,
    SEAL,
    Call,
    FailingStore,
    World,
    answers,
    forged,
    judged,
    turn,
)
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from toolguard.guard.policy import AuditPolicy, Policy

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


EVERY = ("write", "write_started", "get", "count_started")


@pytest.mark.parametrize("methods", [EVERY, ("write",), ("write_started",)])
async def test_a_call_that_cannot_be_recorded_does_not_run(
    world: World, methods: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Enforcing: closed, the model is told, and so is standard error."""
    world.store = FailingStore(world.store, *methods)
    state = await world.run(world.agent(turn(judged("send"))))
    assert world.log.runs == []
    assert "could not be recorded" in answers(state)[0].content
    assert "audit_write_failed" in capsys.readouterr().err


@pytest.mark.parametrize("methods", [EVERY, ("write",), ("write_started",), ("get",)])
async def test_monitor_runs_a_call_that_cannot_be_recorded(
    world: World, methods: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Watching: open, and said on standard error."""
    world.store = FailingStore(world.store, *methods)
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
    world.store = FailingStore(world.store, *EVERY)
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
    world.store = FailingStore(world.store, "write", kind=kind)
    agent = world.agent(turn(judged("delete", {}, "confirm")))
    state = await world.run(agent)
    if kind == "approval":
        state = await world.answer(agent, {"type": "approve"}, state)
    assert "__interrupt__" not in state
    assert world.log.runs == []


async def test_a_lost_outcome_stops_nothing_that_ran(world: World) -> None:
    """The tool has run: its answer reaches the model, and standard error hears of the rest."""
    world.store = FailingStore(world.store, "write", kind="outcome")
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
