"""The argument guard: what is missing or wrong, told without values, and closed when it fails."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import quiet_guard

from toolguard.guard.arguments import MAX_BYTES, MAX_DEPTH, ArgumentFinding, check_arguments
from toolguard.guard.decision import Decision, Reading
from toolguard.guard.errors import ConfigError
from toolguard.guard.guard import Guard
from toolguard.guard.policy import Policy, ToolPolicy
from toolguard.guard.tools import Tool, ToolCall

BOOK = Tool(
    name="book",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "nights": {"type": "integer", "minimum": 1},
            "note": {"type": "string", "minLength": 0},
            "guest": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "tags": {"items": {"type": "string"}}},
                "required": ["name"],
            },
        },
        "required": ["city"],
    },
)
GOOD = {"city": "Rome", "nights": 2}


def told(
    arguments: Any, tool: Tool = BOOK, /, *, closed: bool = False, **section: Any
) -> list[str]:
    """Give the findings as `field problem`."""
    listed = ToolPolicy.model_validate(section) if section else None
    found = check_arguments(tool, arguments, listed, closed=closed)
    return [f"{one.field} {one.problem}" for one in found]


def test_arguments_that_fit_give_nothing() -> None:
    """What the schema allows is not remarked on."""
    assert told(GOOD) == []
    assert told({**GOOD, "guest": {"name": "Ada", "tags": ["a"]}, "more": 1}) == []


@pytest.mark.parametrize("value", [{}, {"city": ""}, {"city": " \n"}, {"city": None}])
def test_a_required_value_that_is_absent_blank_or_null_is_missing(value: dict[str, Any]) -> None:
    """Nothing, spaces and null are no values to call with."""
    assert told(value) == ["city missing"]


def test_the_policy_may_require_more_than_the_schema() -> None:
    """Its names are missing in the same way, and null never stands for one."""
    assert told(GOOD, required=["guest"]) == ["guest missing"]
    assert told({**GOOD, "guest": None}, required=["guest"]) == ["guest missing"]
    assert told(GOOD, arguments={"required": ["note"]}) == ["note missing"]


def test_a_schema_may_say_that_empty_or_null_is_a_value() -> None:
    """`minLength: 0` makes an empty text a value, the type null makes null one."""
    tool = Tool(
        name="write",
        parameters={
            "properties": {"text": {"minLength": 0}, "until": {"type": ["string", "null"]}},
            "required": ["text", "until"],
        },
    )
    assert told({"text": "", "until": None}, tool) == []


def test_a_missing_value_inside_an_object_is_named_by_its_path() -> None:
    """The question can be about one field of an object."""
    assert told({**GOOD, "guest": {}}) == ["guest.name missing"]


def test_values_that_break_the_schema_are_invalid() -> None:
    """Types, limits and items are checked, each named by its path."""
    assert told({**GOOD, "nights": 0}) == ["nights invalid"]
    assert told({**GOOD, "nights": "two"}) == ["nights invalid"]
    assert told({**GOOD, "guest": {"name": "A", "tags": ["a", 1]}}) == ["guest.tags[1] invalid"]


def test_the_policys_constraints_hold_beside_the_schema() -> None:
    """Limits and formats of the policy are enforced."""
    limits = {"properties": {"nights": {"maximum": 7}, "note": {"format": "email"}}}
    assert told({**GOOD, "nights": 8}, arguments=limits) == ["nights invalid"]
    assert told({**GOOD, "note": "no address"}, arguments=limits) == ["note invalid"]
    assert told({**GOOD, "nights": 7, "note": "a@b.c"}, arguments=limits) == []


def test_an_irrelevant_argument_is_found_even_if_null() -> None:
    """A call that carries what the agent has no use for is remarked on."""
    assert told({**GOOD, "note": None}, irrelevant=["note"])[0] == "note irrelevant"
    assert told(GOOD, irrelevant=["note"]) == []


def test_closed_refuses_what_no_schema_names_without_repeating_it() -> None:
    """The name of an unknown argument is free text of the model and stays out of the finding."""
    section = {"arguments": {"properties": {"code": {}}}}
    assert told({**GOOD, "code": 1}, closed=True, **section) == []
    (found,) = check_arguments(BOOK, {**GOOD, "4111 1111": 1}, closed=True)
    assert (found.field, found.problem) == ("*", "invalid")
    assert "4111" not in str(found)


def test_no_finding_holds_a_value_or_an_unknown_name() -> None:
    """Secrets in values and made-up keys, at any depth, are not told."""
    strict = Tool(
        name="t",
        parameters={
            "properties": {
                "kind": {"enum": ["a"]},
                "map": {"additionalProperties": {"type": "integer"}},
                "both": {"anyOf": [{"type": "integer"}, {"required": ["x"]}]},
                "name": {"pattern": "^[a-z]+$"},
            },
            "additionalProperties": False,
        },
    )
    arguments = {
        "kind": "s3cret",
        "map": {"s3cret": "s3cret"},
        "both": {"s3cret": 1},
        "name": "S3CRET s3cret",
        "s3cret": "s3cret",
    }
    found = check_arguments(strict, arguments)
    assert {one.field for one in found} == {"kind", "map.*", "both", "name", ""}
    assert "s3cret" not in " ".join(map(str, found)).lower()


def test_a_whole_object_is_named_in_words() -> None:
    """A finding reads as a phrase with and without a field."""
    assert str(ArgumentFinding("", "too_deep", "nested")) == "the arguments: nested"
    assert str(ArgumentFinding("city", "missing", "a value")) == "city: a value"


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def test_size_and_depth_end_the_check_before_anything_else() -> None:
    """The limits are exact, and what is over them is not validated."""
    tool = Tool(name="t")
    overhead = len(json.dumps({"a": ""}, separators=(",", ":")))
    assert told({"a": "x" * (MAX_BYTES - overhead)}, tool) == []
    assert told({"a": "x" * (MAX_BYTES - overhead + 1)}, tool) == [" too_large"]
    assert told({"a": "ü" * (MAX_BYTES // 2)}, tool) == [" too_large"]
    assert told({"a": [0] * MAX_BYTES}, tool) == [" too_large"]
    assert told(nested(MAX_DEPTH), tool) == []
    assert told(nested(MAX_DEPTH + 1), tool) == [" too_deep"]
    assert told(nested(100_000), tool) == [" too_deep"]


def test_shared_and_circular_values_do_not_hang() -> None:
    """A value that holds itself is too deep; one that doubles at each level is too large."""
    circle: dict[str, Any] = {}
    circle["a"] = circle
    doubling: Any = 1
    for _ in range(30):
        doubling = [doubling, doubling]
    assert told(circle) == [" too_deep"]
    assert told({"a": doubling})[0] in (" too_large", " too_deep")


@pytest.mark.parametrize(
    "arguments",
    [
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": {1, 2}},
        {1: "a"},
        {"a": {1: 2}},
        {"a": "\ud800"},
        {"a": 10**5000},
        ["a"],
        "text",
        None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_json_object_is_invalid(arguments: Any) -> None:
    """Numbers, keys, texts and objects that JSON does not know do not reach the tool."""
    assert told(arguments, Tool(name="t")) == [" invalid"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "dict"},
        {"properties": {"city": {"$ref": "https://example.org/city.json"}}},
        {"properties": {"city": {"$ref": "#/$defs/none"}}},
        {"$ref": "#"},
        {"properties": {"city": {"pattern": "("}}},
        {"required": "city"},
        {"properties": ["city"]},
    ],
    ids=["type", "remote", "dangling", "endless", "pattern", "required", "properties"],
)
def test_a_schema_that_cannot_be_applied_closes_the_call(parameters: dict[str, Any]) -> None:
    """A tool with a broken schema is not called, and nothing is fetched to repair it."""
    found = check_arguments(Tool(name="t", parameters=parameters), {"city": "Rome"})
    assert [(one.field, one.problem) for one in found] == [("", "invalid")]
    assert found[0].detail == "the tool's schema cannot be applied"


def test_many_faults_are_told_by_the_first_ones() -> None:
    """A thousand wrong items do not make a thousand findings."""
    tool = Tool(name="t", parameters={"properties": {"a": {"items": {"type": "string"}}}})
    assert len(told({"a": list(range(1000))}, tool)) == 16


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"properties": {"a": {"maxmium": 5}}}, "unknown or unsupported words: maxmium"),
        ({"type": "dict"}, "no JSON Schema"),
        ({"properties": {"a": {"pattern": "("}}}, "no JSON Schema"),
        ({"properties": {"a": {"format": "creditcard"}}}, "'creditcard' cannot be checked"),
        ({"$ref": "https://example.org/a.json"}, "points outside"),
        ({"$ref": "#/$defs/none"}, "points at nothing"),
        ({"$id": "https://example.org/a.json"}, "unsupported words: $id"),
        ({"items": [{"type": "string"}]}, "no JSON Schema"),
        ({"allOf": [{"not": {"minimun": 1}}]}, "minimun"),
    ],
)
def test_a_policys_schema_is_refused_at_load(schema: dict[str, Any], problem: str) -> None:
    """A misspelt or unenforceable limit is an error of the file, not a limit that never counts."""
    with pytest.raises(ConfigError, match=r"tools\.t\.arguments") as caught:
        Policy.load({"tools": {"t": {"arguments": schema}}})
    assert problem in caught.value.message


def test_a_policys_schema_may_refer_to_itself() -> None:
    """Local definitions are followed."""
    schema = {
        "$defs": {"small": {"maximum": 5}},
        "properties": {"nights": {"$ref": "#/$defs/small"}},
    }
    assert told({**GOOD, "nights": 6}, arguments=schema) == ["nights invalid"]


def decided(action: Any = "allow", proposed: Any = None, **extra: Any) -> Decision:
    reading = Reading(menu=("book", "look"), chosen="book")
    return Decision(
        action=action,
        proposed=proposed or action,
        tool="book",
        reason="confident",
        detail="",
        reading=reading,
        **extra,
    )


def judged(
    arguments: dict[str, Any],
    decision: Decision | None = None,
    mode: str = "enforce",
    **policy: Any,
) -> Decision:
    guard = quiet_guard(None, mode=mode, **policy)
    return guard.check_arguments(
        decision or decided(), ToolCall(name="book", arguments=arguments), BOOK
    )


def test_good_arguments_leave_the_decision_as_it_is() -> None:
    """The very same decision comes back, and nothing is logged twice."""
    decision = decided()
    assert judged(GOOD, decision) is decision


def test_a_missing_value_is_asked_for_by_name() -> None:
    """The call stops, and the question names the argument and no made-up value."""
    decision = judged({"nights": 2})
    assert (decision.action, decision.reason) == ("clarify", "missing_argument")
    assert decision.fields == ("city",)
    assert decision.question == "What should I use as city for book?"
    assert decision.executed_tool is None


def test_a_redirected_calls_question_names_the_tool_it_went_to() -> None:
    """The value is missing for the tool that would run."""
    decision = judged({}, decided("redirect", target="book"))
    assert decision.action == "clarify"
    assert decision.question == "What should I use as city for book?"


def test_anything_else_is_a_veto_that_names_the_field() -> None:
    """Invalid, irrelevant and oversized arguments do not run, even if others are missing."""
    decision = judged({"nights": 0})
    assert (decision.action, decision.reason) == ("veto", "invalid_arguments")
    assert set(decision.fields) == {"city", "nights"}
    section = {"tools": {"book": {"irrelevant": ["note"]}}}
    irrelevant = judged({**GOOD, "note": "x"}, **section)
    assert (irrelevant.reason, irrelevant.fields) == ("invalid_arguments", ("note",))
    assert judged({**GOOD, "note": "x" * MAX_BYTES}).fields == ()
    assert judged({**GOOD, "zz": 1}, unknown_arguments="deny").action == "veto"


def test_a_call_that_waits_for_a_person_is_looked_at_first() -> None:
    """Nobody is asked to approve arguments that cannot run."""
    assert judged({}, decided("confirm")).action == "clarify"
    assert judged(GOOD, decided("confirm")).action == "confirm"


@pytest.mark.parametrize("action", ["veto", "clarify"])
def test_a_call_that_is_stopped_stays_as_it_was_stopped(action: str) -> None:
    """The first reason is the one that is kept, a person's refusal too."""
    stopped = decided(action)
    assert judged({}, stopped) is stopped
    refused = decided("veto", "confirm")
    assert judged({}, refused) is refused


def test_monitor_lets_the_call_run_and_says_what_enforce_would_do() -> None:
    """Both kinds are proposed only."""
    missing, wrong = judged({}, mode="monitor"), judged({**GOOD, "nights": 0}, mode="monitor")
    assert (missing.action, missing.proposed) == ("allow", "clarify")
    assert (wrong.action, wrong.proposed) == ("allow", "veto")
    doubtful = decided("allow", "veto")
    assert judged({}, doubtful, mode="monitor") is doubtful


@pytest.mark.parametrize(("mode", "action"), [("enforce", "veto"), ("monitor", "allow")])
def test_arguments_that_cannot_be_judged_are_closed(mode: str, action: str) -> None:
    """A crash of the argument guard, here another tool's schema, ends in a fault."""
    guard = quiet_guard(None, mode=mode)
    decision = guard.check_arguments(decided(), ToolCall(name="look"), BOOK)
    assert (decision.action, decision.proposed, decision.reason) == (action, "veto", "fault")
    assert decision.detail == "the arguments could not be judged: ConfigError"


def test_an_argument_verdict_that_cannot_be_logged_stays_closed() -> None:
    """A failing log does not open the call."""

    class Broken:
        def info(self, _event: str, **_fields: Any) -> None:
            raise OSError("disk full")

    guard = Guard(None, Policy(mode="enforce"), logger=Broken())
    assert guard.check_arguments(decided(), ToolCall(name="book"), BOOK).action == "clarify"
