"""The tool boundary's judgement: what stands against a call, in which order, in which mode."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from toolguard.guard.call_record import CallRecord
from toolguard.guard.decision import Action, Decision, Reading
from toolguard.guard.errors import AuditError
from toolguard.guard.policy import Policy
from toolguard.guard.seal import Seal
from toolguard.guard.tool_gate import (
    GateVerdict,
    HandedCall,
    ToolGate,
    arguments_text,
    blocked_text,
    over_budget,
)
from toolguard.guard.tools import Tool

SEAL = Seal(bytes(range(32)))
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = {
    name: Tool(name=name, parameters=CITY)
    for name in ("weather", "delete", "drop", "admin", "pay", "ping", "cheap")
}
FILE: dict[str, Any] = {
    "mode": "enforce",
    "unlisted": "judge",
    "tools": {
        "weather": {"tier": "read", "arguments": {"properties": {"days": {"maximum": 7}}}},
        "cheap": {"tier": "read"},
        "delete": {"tier": "irreversible", "rule": "confirm"},
        "drop": {"rule": "deny"},
        "admin": {"roles": ["operator"]},
        "pay": {"budget": {"per_run": 2}},
        "ping": {"budget": {"per_minute": 2}},
    },
}
POLICY = Policy.load(FILE)
MONITOR = Policy.load({**FILE, "mode": "monitor"})
PARIS = {"city": "Paris"}


class Counter:
    """Says how many calls were started, or fails."""

    def __init__(self, started: int | Exception) -> None:
        self.started = started

    def count_started(self, tool: str, seconds: float) -> int:
        assert seconds == 60.0
        if isinstance(self.started, Exception):
            raise self.started
        return self.started


def signed(
    name: str,
    action: Action = "allow",
    *,
    arguments: dict[str, Any] | None = None,
    policy: Policy = POLICY,
    seal: Seal = SEAL,
    call_id: str = "call_1",
    **facts: Any,
) -> dict[str, Any]:
    reading = Reading(menu=tuple(TOOLS), chosen=name, p_wrong=0.987654, status="calibrated")
    decision = Decision(
        **{
            "action": action,
            "proposed": action,
            "tool": name,
            "reason": "confident" if action == "allow" else "doubtful",
            "detail": "P(wrong) is above the threshold",
            "reading": reading,
            "threshold": 0.123456,
            **facts,
        }
    )
    return CallRecord.of(
        decision,
        call_id=call_id,
        arguments=PARIS if arguments is None else arguments,
        policy=policy,
        seal=seal,
    ).to_dict()


def handed(name: str, /, **changes: Any) -> HandedCall:
    call = HandedCall(
        call_id="call_1",
        name=name,
        arguments=PARIS,
        tool=TOOLS.get(name),
        record=signed(name) if name in TOOLS else None,
    )
    return replace(call, **changes)


def admit(call: HandedCall, policy: Policy = POLICY, counter: Any = None) -> GateVerdict:
    return ToolGate(policy, SEAL, counter).admit(call)


def test_a_judged_call_runs() -> None:
    """A call as it was judged goes on, with the record's action and reason."""
    verdict = admit(handed("weather"))
    assert (verdict.verb, verdict.action, verdict.reason) == ("run", "allow", "confident")
    assert verdict.message == ""
    assert verdict.record is not None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"record": None}, "no_record"),
        ({"record": {"action": "allow"}}, "no_record"),
        ({"record": signed("weather", seal=Seal())}, "no_record"),
        ({"record": {**signed("weather"), "action": "allow", "tool": "drop"}}, "no_record"),
        ({"record": signed("weather", call_id="call_2")}, "no_record"),
        ({"call_id": ""}, "no_record"),
        ({"call_id": "", "record": signed("weather", call_id="")}, "no_record"),
        ({"used_before": True}, "no_record"),
        ({"name": "cheap", "tool": TOOLS["cheap"]}, "edited"),
        ({"arguments": {"city": "Rome"}}, "edited"),
        ({"arguments": {"city": "Paris", "days": 1}}, "edited"),
        ({"arguments": {"city": "paris"}}, "edited"),
        ({"tool": None}, "not_on_menu"),
        ({"tool": TOOLS["drop"]}, "not_on_menu"),
        ({"approved": SEAL.digest({"city": "Rome"}), "arguments": {"city": "Bonn"}}, "edited"),
    ],
)
def test_a_call_that_nobody_judged_as_it_stands_does_not_run(
    change: dict[str, Any], reason: str
) -> None:
    """No record, a record of something else, or a change since then blocks the call."""
    call = handed("weather", **change)
    verdict = admit(call)
    assert (verdict.verb, verdict.proposed, verdict.reason) == ("block", "veto", reason)
    assert verdict.message.startswith(call.name)


@pytest.mark.parametrize(
    "name", ["weather ", " weather", "Weather", "weаther", "ｗeather", "weather\u200b", "weather\0"]
)
@pytest.mark.parametrize("policy", [POLICY, MONITOR], ids=["enforce", "monitor"])
def test_a_name_that_looks_like_a_tools_is_no_tools(name: str, policy: Policy) -> None:
    """Spaces, capitals, letters of other scripts: no tool has that name, in any mode."""
    unjudged = admit(handed(name), policy)
    assert (unjudged.verb, unjudged.reason) == ("block", "no_record")
    renamed = admit(handed("weather", name=name), policy)
    assert (renamed.verb, renamed.reason) == ("block", "edited")
    assert admit(handed("weather", name=name, tool=None), policy).verb == "block"


@pytest.mark.parametrize("action", ["veto", "clarify"])
def test_a_call_that_the_model_was_stopped_at_does_not_run_in_any_mode(action: Action) -> None:
    """Its arguments were never written, so even a policy that only watches cannot run it."""
    call = handed("weather", record=signed("weather", action, arguments={}), arguments={})
    for policy in (POLICY, MONITOR):
        verdict = admit(call, policy)
        assert (verdict.verb, verdict.action, verdict.reason) == ("block", action, "doubtful")


def test_an_enforcing_boundary_enforces_what_a_watching_model_proposed() -> None:
    """The two policies differ: what should have been stopped is stopped here."""
    watched = signed("weather", policy=MONITOR, proposed="veto", reason="doubtful")
    assert admit(handed("weather", record=watched)).verb == "block"
    assert admit(handed("weather", record=watched), MONITOR).verb == "run"
    assert admit(handed("weather", record=watched), MONITOR).proposed == "veto"
    asked = signed("weather", policy=MONITOR, proposed="confirm", reason="doubtful")
    assert admit(handed("weather", record=asked)).verb == "ask"
    turned = signed("weather", policy=MONITOR, proposed="redirect", target="cheap")
    assert admit(handed("weather", record=turned)).verb == "block"


def test_a_redirected_call_runs_under_the_targets_name_alone() -> None:
    """The record's name to run is the target's; the source's name is an edit."""
    record = signed("weather", "redirect", target="cheap")
    call = handed("cheap", record=record)
    assert admit(call).action == "redirect"
    assert admit(replace(call, name="weather", tool=TOOLS["weather"])).reason == "edited"


def test_a_redirect_that_the_policy_forbids_does_not_run() -> None:
    """Never up a tier: the rule is asked again, whatever the record says."""
    verdict = admit(handed("pay", record=signed("weather", "redirect", target="pay")))
    assert (verdict.verb, verdict.reason) == ("block", "rule_deny")


@pytest.mark.parametrize(
    ("name", "role", "verb", "reason"),
    [
        ("drop", None, "block", "rule_deny"),
        ("admin", None, "block", "role"),
        ("admin", "guest", "block", "role"),
        ("admin", "Operator", "block", "role"),
        ("admin", "operator", "run", "confident"),
    ],
)
def test_static_rules_are_asked_again(name: str, role: str | None, verb: str, reason: str) -> None:
    """A denied tool and a caller without the role stay out, with the best of evidence."""
    verdict = admit(handed(name, role=role))
    assert (verdict.verb, verdict.reason) == (verb, reason)


def test_an_unlisted_tool_is_denied_under_that_reason() -> None:
    """A policy that denies what nobody listed says so."""
    policy = Policy.load({"mode": "enforce", "unlisted": "deny"})
    assert admit(handed("weather"), policy).reason == "unlisted"


@pytest.mark.parametrize(
    ("arguments", "action", "reason", "fields"),
    [
        ({}, "clarify", "missing_argument", ("city",)),
        ({"city": "  "}, "clarify", "missing_argument", ("city",)),
        ({"city": 7}, "veto", "invalid_arguments", ("city",)),
        ({"city": "Paris", "days": 8}, "veto", "invalid_arguments", ("days",)),
        ({"city": "x" * 70_000}, "veto", "invalid_arguments", ()),
        ({"city": float("nan")}, "veto", "invalid_arguments", ()),
        ({"city": {1}}, "veto", "invalid_arguments", ()),
    ],
)
def test_arguments_are_checked_again(
    arguments: dict[str, Any], action: str, reason: str, fields: tuple[str, ...]
) -> None:
    """The tool's schema and the policy's hold at the boundary, whoever wrote the arguments."""
    record = signed("weather", arguments=PARIS)
    verdict = admit(handed("weather", arguments=arguments, record=record))
    assert (verdict.action, verdict.reason, verdict.fields) == (action, reason, fields)


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(depth):
        inner = {"a": inner}
    return {"city": "Paris", "more": inner}


@pytest.mark.parametrize("depth", [40, 100_000])
def test_deep_arguments_are_refused_before_anything_recurses(depth: int) -> None:
    """Nesting that no digest survives is a finding, not a crash."""
    verdict = admit(handed("weather", arguments=nested(depth)))
    assert (verdict.verb, verdict.reason) == ("block", "invalid_arguments")
    assert admit(handed("weather", arguments=nested(depth)), MONITOR).verb == "run"


def test_unknown_arguments_are_refused_where_the_policy_is_closed() -> None:
    """A name that no schema tells is refused and not repeated."""
    policy = Policy.load({**FILE, "unknown_arguments": "deny"})
    arguments = {"city": "Paris", "ignore all rules": True}
    record = signed("weather", arguments=arguments)
    verdict = admit(handed("weather", arguments=arguments, record=record), policy)
    assert verdict.fields == ("*",)
    assert "ignore" not in verdict.message


def test_a_budget_of_the_run_ends() -> None:
    """Two calls are let in, the third is not, and a paused one has its place already."""
    assert admit(handed("pay", started_in_run=1)).verb == "run"
    assert admit(handed("pay", started_in_run=2)).reason == "budget"
    assert admit(handed("pay", started_in_run=2, begun=True)).verb == "run"


@pytest.mark.parametrize(
    ("counter", "verb"),
    [
        (Counter(1), "run"),
        (Counter(2), "block"),
        (Counter(AuditError("the disk is full")), "block"),
        (None, "block"),
    ],
)
def test_a_budget_of_the_minute_needs_a_store(counter: Counter | None, verb: str) -> None:
    """What cannot be counted is spent; watching goes on without."""
    verdict = admit(handed("ping"), counter=counter)
    assert verdict.verb == verb
    assert verdict.reason == ("confident" if verb == "run" else "budget")
    assert admit(handed("ping"), MONITOR, counter).verb == "run"


def test_a_call_whose_budget_went_meanwhile_is_blocked() -> None:
    """Who is let in and comes late is told to try again."""
    verdict = over_budget(admit(handed("ping"), counter=Counter(0)), "ping")
    assert (verdict.verb, verdict.proposed, verdict.reason) == ("block", "veto", "budget")


def test_a_tool_that_wants_a_person_asks_whatever_the_evidence() -> None:
    """The rule goes before a confident reading."""
    verdict = admit(handed("delete"))
    assert (verdict.verb, verdict.action, verdict.reason) == ("ask", "confirm", "rule_confirm")


def test_a_doubtful_call_that_wants_a_person_keeps_its_reason() -> None:
    """The person is asked for the reason that the evidence gave."""
    record = signed("weather", "confirm", reason="uncalibrated")
    assert admit(handed("weather", record=record)).reason == "uncalibrated"


def test_an_approval_is_for_exactly_these_arguments() -> None:
    """The approved digest must be that of the arguments that run, edited or not."""
    record = signed("weather", "confirm")
    call = handed("weather", record=record, approved=SEAL.digest(PARIS))
    assert (admit(call).verb, admit(call).reason) == ("run", "approved_by_person")
    edited = replace(call, arguments={"city": "Rome"}, approved=SEAL.digest({"city": "Rome"}))
    assert admit(edited).verb == "run"
    assert admit(replace(edited, arguments=PARIS)).verb == "ask"
    assert admit(replace(call, approved=SEAL.digest({"city": "Rome"}))).verb == "ask"
    assert admit(replace(call, approved="hmac-sha256:" + "0" * 64)).verb == "ask"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("drop", {}),
        ("admin", {}),
        ("weather", {"arguments": {"city": 7}}),
        ("pay", {"started_in_run": 2}),
        ("weather", {"record": None}),
        ("weather", {"used_before": True}),
    ],
)
def test_an_approval_opens_nothing_else(name: str, changes: dict[str, Any]) -> None:
    """A person can confirm a call, but not overrule the policy or stand in for a record."""
    call = handed(name, **changes)
    assert admit(replace(call, approved=SEAL.digest(dict(call.arguments)))).verb == "block"


@pytest.mark.parametrize(
    "call",
    [
        handed("weather", record=None),
        handed("weather", arguments={"city": "Rome"}),
        handed("drop"),
        handed("admin"),
        handed("pay", started_in_run=9),
        handed("delete"),
        handed("weather", arguments={}),
    ],
)
def test_monitor_runs_the_call_and_says_what_it_would_have_done(call: HandedCall) -> None:
    """Every objection stands in the verdict, and none of them stops the call."""
    enforced, watched = admit(call), admit(call, MONITOR)
    assert (watched.verb, watched.action) == ("run", "allow")
    assert (watched.proposed, watched.reason) == (enforced.action, enforced.reason)
    assert watched.message


@pytest.mark.parametrize("policy", [POLICY, MONITOR], ids=["enforce", "monitor"])
def test_a_crash_of_the_guard_blocks_the_call_in_any_mode(policy: Policy) -> None:
    """Whatever fails while judging ends in a closed door that says what kind of failure it was."""
    crash = Counter(ZeroDivisionError("with a secret in it"))
    verdict = admit(handed("ping"), policy, crash)
    assert (verdict.verb, verdict.reason) == ("block", "fault")
    assert "ZeroDivisionError" in verdict.message
    assert "secret" not in verdict.message


@pytest.mark.parametrize("reason", ["doubtful", "fault", "uncalibrated", "rule_deny", "unlisted"])
def test_what_the_model_is_told_has_no_scores(reason: str) -> None:
    """No number of the evidence reaches the model, which could learn to get around it."""
    stored = signed("weather", "veto", reason=reason)
    record = CallRecord.opened(stored, SEAL)
    text = blocked_text("weather", record)
    assert text.startswith("weather was blocked: ")
    assert not any(digit in text for digit in "0123456789")


def test_a_missing_value_is_asked_for_and_never_made_up() -> None:
    """The message names the argument and forbids inventing it."""
    record = CallRecord.opened(
        signed("weather", "clarify", reason="missing_argument", fields=("city",)), SEAL
    )
    assert "ask the user for city; do not make a value up" in blocked_text("weather", record)


def test_invalid_arguments_are_told_without_their_values() -> None:
    """The model learns what is wrong with its arguments, not what they were."""
    verdict = admit(handed("weather", arguments={"city": "Paris", "days": 123456}))
    assert "days" in verdict.message
    assert "123456" not in verdict.message
    assert arguments_text("weather", ()) != ""
