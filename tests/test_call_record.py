"""Signed records of calls: made once, and nothing in them changed unseen."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from toolguard.guard.call_record import CallRecord
from toolguard.guard.decision import Decision, Reading
from toolguard.guard.policy import Policy
from toolguard.guard.seal import Seal

SEAL = Seal(bytes(range(32)))
ENFORCE = Policy.load({"mode": "enforce"})


def decision(**changes: Any) -> Decision:
    reading = Reading(
        menu=("search", "send"),
        chosen="search",
        scores={"logprob": (-0.1, -2.5)},
        margins={"logprob": 2.4},
        gaps={"logprob": 2.4},
        status="calibrated",
        p_wrong=0.1 + 0.2,
    )
    facts = {
        "action": "allow",
        "proposed": "allow",
        "tool": "search",
        "reason": "confident",
        "detail": "P(wrong) is within the threshold",
        "reading": reading,
        "threshold": 1 / 3,
        "latency_us": 12.3456,
    }
    return Decision(**{**facts, **changes})


def record(policy: Policy = ENFORCE, **changes: Any) -> CallRecord:
    return CallRecord.of(
        decision(**changes),
        call_id="call_1",
        arguments={"query": "secret words"},
        policy=policy,
        seal=SEAL,
    )


def test_a_record_comes_back_from_json_as_it_was() -> None:
    """What a checkpoint keeps is what was signed, floats and lists included."""
    made = record(fields=("query",))
    stored = json.loads(json.dumps(made.to_dict()))
    assert CallRecord.opened(stored, SEAL) == made


def test_numbers_of_other_libraries_become_plain_json() -> None:
    """A float of numpy's is signed as the number it is, and read back as that."""
    made = record(threshold=np.float64(0.25), latency_us=np.float64(3.5))
    assert type(made.evidence["threshold"]) is float
    assert CallRecord.opened(json.loads(json.dumps(made.to_dict())), SEAL) == made


def test_a_record_holds_no_argument_text() -> None:
    """Of the arguments there is a digest, which the key's holder alone can compare."""
    told = json.dumps(record().to_dict())
    assert "secret" not in told
    assert record().arguments == SEAL.digest({"query": "secret words"})


def test_a_name_off_the_menu_is_not_kept() -> None:
    """A name the model made up is free text, so the record has none."""
    reading = replace(decision().reading, chosen="my password is hunter2")
    made = record(tool="my password is hunter2", reading=reading, reason="not_on_menu")
    assert made.tool is None
    assert "hunter2" not in json.dumps(made.to_dict())


@pytest.mark.parametrize("name", sorted(set(CallRecord.__dataclass_fields__) - {"signature"}))
def test_no_field_can_be_changed(name: str) -> None:
    """Whatever a record says, another value in its place is not what was signed."""
    stored = record().to_dict()
    changed = {**stored, name: "changed" if stored[name] != "changed" else "again"}
    assert CallRecord.opened(changed, SEAL) is None


def test_evidence_cannot_be_changed_inside() -> None:
    """The signature covers the numbers too."""
    stored = record().to_dict()
    changed = {**stored, "evidence": {**stored["evidence"], "p_wrong": 0.0}}
    assert CallRecord.opened(changed, SEAL) is None


@pytest.mark.parametrize(
    "stored",
    [
        None,
        "allow",
        7,
        [],
        {},
        {"action": "allow"},
        {1: 2},
        {**dict.fromkeys(CallRecord.__dataclass_fields__), "evidence": {"a": {1}}},
        {**dict.fromkeys(CallRecord.__dataclass_fields__), "signature": "é"},
    ],
)
def test_what_is_no_record_is_none(stored: object) -> None:
    """Anything may stand where a record should: none of it raises or passes."""
    assert CallRecord.opened(stored, SEAL) is None


def test_more_or_less_than_a_record_is_none() -> None:
    """A field too many or too few is not what was signed."""
    stored = record().to_dict()
    assert CallRecord.opened({**stored, "note": ""}, SEAL) is None
    assert CallRecord.opened({k: v for k, v in stored.items() if k != "mode"}, SEAL) is None


def test_another_key_signs_in_vain() -> None:
    """A record of another process's random key is nobody's here."""
    assert CallRecord.opened(record().to_dict(), Seal()) is None


def test_arguments_cannot_be_made_a_record() -> None:
    """A model that writes a record as its arguments gets their digest, which signs nothing."""
    wanted = {k: v for k, v in record().to_dict().items() if k != "signature"}
    wanted = {**wanted, "call_id": "call_2", "tool": "delete"}
    got = CallRecord.of(decision(), call_id="call_3", arguments=wanted, policy=ENFORCE, seal=SEAL)
    signature = got.arguments.removeprefix("hmac-sha256:")
    assert CallRecord.opened({**wanted, "signature": signature}, SEAL) is None


def test_the_name_to_run_is_the_target_of_a_redirect() -> None:
    """Steering and watching leave the name as it was; a redirect replaces it."""
    assert record().named == "search"
    assert record(action="redirect", proposed="redirect", target="send").named == "send"
    assert record(action="allow", proposed="redirect", target="send").named == "search"


def test_what_is_enforced_is_what_was_proposed_where_nothing_was_enforced() -> None:
    """A model that only watched lets everything go on; its record says what should have been."""
    watching = Policy.load({"mode": "monitor"})
    assert record(watching, action="allow", proposed="veto").enforced == "veto"
    assert record(ENFORCE, action="allow", proposed="confirm").enforced == "allow"


def test_half_a_surrogate_pair_in_arguments_is_recorded() -> None:
    """What a model can write can be judged: broken Unicode has a digest too."""
    made = CallRecord.of(
        decision(), call_id="c", arguments={"query": "\ud83d"}, policy=ENFORCE, seal=SEAL
    )
    assert CallRecord.opened(made.to_dict(), SEAL) == made
