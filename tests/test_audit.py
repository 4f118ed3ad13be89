"""Audit records: JSON-ready, free of the model's and the user's text, written or the call stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from fakes import fake_profile, quiet_guard
from hypothesis import given
from hypothesis import strategies as st

from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import LoadedModel
from toolguard.guard.audit import EVENT, decision_record, log_decision
from toolguard.guard.decision import Decision, Reading
from toolguard.guard.guard import Evidence, Guard
from toolguard.guard.policy import Policy
from toolguard.guard.tools import Menu, sha256_text


def decided(reading: Reading) -> Decision:
    return Decision(
        action="veto",
        proposed="veto",
        tool=reading.chosen,
        reason="doubtful",
        detail="why",
        reading=reading,
        threshold=0.25,
        latency_us=12.34,
    )


def test_a_record_holds_the_evidence() -> None:
    """Candidates, margins, P(wrong), action and timing are in it, best candidate first."""
    reading = Reading(
        menu=("a", "b", "c", "d"),
        chosen="b",
        scores={"logprob": (-1.0, -0.5, -2.0, -3.0)},
        margins={"logprob": 0.5},
        gaps={"logprob": 0.5},
        p_wrong=0.125,
        position=7,
    )
    record = decision_record(decided(reading))
    assert record["candidates"]["logprob"][0] == {"tool": "b", "score": -0.5}
    assert len(record["candidates"]["logprob"]) == 3
    assert (record["p_wrong"], record["threshold"], record["position"]) == (0.125, 0.25, 7)
    assert (record["action"], record["latency_us"]) == ("veto", 12.3)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_infinity_becomes_null() -> None:
    """JSON has no infinity, so a margin without a rival is null."""
    reading = Reading(
        menu=("a",),
        chosen="a",
        scores={"activation": (float("-inf"),)},
        margins={"activation": float("inf")},
        gaps={"activation": float("nan")},
    )
    record = decision_record(decided(reading))
    assert record["margins"] == record["gaps"] == {"activation": None}
    assert record["candidates"]["activation"] == [{"tool": "a", "score": None}]


@given(st.text(min_size=8).map(lambda text: f"secret {text}"))
def test_a_name_off_the_menu_is_hashed(name: str) -> None:
    """Free text of the model is recorded as a hash alone."""
    record = decision_record(decided(Reading(menu=("a",), chosen=name)))
    assert record["tool"] is None
    assert record["tool_hash"] == sha256_text(name)[:16]
    assert name not in json.dumps(record, ensure_ascii=False)


@given(secret=st.text("abcdefghij0123456789", min_size=12), name=st.sampled_from(["a", "off"]))
def test_no_fault_brings_text_into_a_record(secret: str, name: str) -> None:
    """Whatever exception a reading dies of, its message stays out."""

    class Failing(Guard):
        def read(self, *_: Any) -> Reading:
            raise ValueError(secret)

    records: list[dict[str, Any]] = []
    guard = Failing(None, Policy(mode="enforce"), logger=collecting(records))
    view = quiet_view()
    guard.check(Evidence(chosen=name if name == "a" else secret), view)
    assert records
    assert secret not in json.dumps(records, ensure_ascii=False)


def collecting(records: list[dict[str, Any]]) -> Any:
    def keep(_logger: object, _method: str, event: dict[str, Any]) -> str:
        records.append(dict(event))
        raise structlog.DropEvent

    return structlog.wrap_logger(None, processors=[keep])


def quiet_view() -> Any:
    from toolguard.adapters.menu_plan import blank_view

    return blank_view(Menu.of([{"name": "a"}, {"name": "b"}]), 4)


def test_a_turn_leaves_no_prompt_or_argument_text(
    tiny_loaded: LoadedModel, tiny_menu: Menu, scripted: Callable[..., dict[str, Any]]
) -> None:
    """A whole generate with secrets in prompt, arguments and an unknown name logs none of them."""
    records: list[dict[str, Any]] = []
    guard = Guard(
        fake_profile(tiny_loaded, tiny_menu),
        Policy.load({"mode": "enforce"}),
        logger=collecting(records),
    )
    agent = GuardedAgent.of(tiny_loaded, guard)
    for text in (
        '<tool_call>\n{"name": "search", "arguments": {"query": "hunter2"}}\n</tool_call>',
        '<tool_call>\n{"name": "hunter2", "arguments": {}}\n</tool_call>',
    ):
        ask = [{"role": "user", "content": "my password is hunter2"}]
        agent.generate(ask, tiny_menu.tools, **scripted(tiny_loaded, text))
    assert [record["event"] for record in records] == [EVENT, EVENT]
    assert "hunter2" not in json.dumps(records)


def broken_logger() -> Any:
    def fail(*_: object) -> str:
        raise OSError(28, "no space left")

    return structlog.wrap_logger(None, processors=[fail])


@pytest.mark.parametrize(("mode", "action"), [("enforce", "veto"), ("monitor", "allow")])
def test_an_unwritable_log_closes_enforce_and_opens_monitor(
    tiny_loaded: LoadedModel, tiny_menu: Menu, mode: str, action: str
) -> None:
    """A call whose record cannot be written runs only where everything runs."""
    policy = Policy.load({"mode": mode, "tools": {"search": {"rule": "allow"}}})
    guard = Guard(fake_profile(tiny_loaded, tiny_menu), policy, logger=broken_logger())
    view = guard.profile.view(tiny_menu)
    decision = guard.check(Evidence(chosen="search"), view)
    assert decision.action == action
    if mode == "enforce":
        assert decision.reason == "fault"
        assert decision.detail == "the decision could not be recorded: OSError"


def test_an_unwritable_log_leaves_a_veto_a_veto(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """What does not run anyway keeps its own reason."""
    policy = Policy.load({"mode": "enforce", "unlisted": "deny"})
    guard = Guard(fake_profile(tiny_loaded, tiny_menu), policy, logger=broken_logger())
    decision = guard.check(Evidence(chosen="search"), guard.profile.view(tiny_menu))
    assert (decision.action, decision.reason) == ("veto", "unlisted")


def test_records_go_to_stderr_as_json_unless_configured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Standard output belongs to the program; the default log is one JSON line on stderr."""
    assert not structlog.is_configured()
    log_decision(decided(Reading(menu=("a",), chosen="a")))
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == EVENT


def test_a_line_has_the_conventional_names() -> None:
    """Beside our own names stand those of the OpenTelemetry proposal."""
    records: list[dict[str, Any]] = []
    log_decision(decided(Reading(menu=("a",), chosen="a", p_wrong=0.5)), collecting(records))
    assert records[0]["action"] == "veto"
    assert records[0]["gen_ai.guardrail.verdict.type"] == "deny"
    assert records[0]["gen_ai.guardrail.action.type"] == "block"
    assert records[0]["gen_ai.guardrail.security.risk.score"] == 0.5
    assert records[0]["gen_ai.tool.name"] == "a"


def test_a_configured_structlog_is_used() -> None:
    """The user's own processors get the event."""
    with structlog.testing.capture_logs() as logs:
        structlog.configure(processors=structlog.get_config()["processors"])
        log_decision(decided(Reading(menu=("a",), chosen="a")))
    structlog.reset_defaults()
    assert [log["event"] for log in logs] == [EVENT]


def test_quiet_guards_write_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """The tests' own guard keeps to itself."""
    quiet_guard(None).check(Evidence(chosen="a"), quiet_view())
    assert capsys.readouterr() == ("", "")
