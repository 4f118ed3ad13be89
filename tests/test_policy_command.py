"""`toolguard policy`: what a file means, what is wrong with it, and what it would have done."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes import fake_profile

from toolguard.adapters.audit_store import AuditEvent, AuditStore
from toolguard.adapters.loading import LoadedModel
from toolguard.calibration.cli import CommandEntry, LazyGroup
from toolguard.calibration.policies.check import effective_rules, policy_problems
from toolguard.calibration.policies.replay import PolicyReplay, replay_decisions
from toolguard.guard.call_record import CallRecord
from toolguard.guard.decision import Decision, Reading
from toolguard.guard.policy import Policy
from toolguard.guard.profile import Profile
from toolguard.guard.seal import Seal
from toolguard.guard.tools import Menu

NAMES = ("get_weather", "get_time", "search", "searchWeb", "send_email")
GROUP = LazyGroup(
    name="toolguard",
    entries={"policy": CommandEntry("toolguard.calibration.commands.policy", "Policies.")},
)


@pytest.fixture(scope="module")
def profile(tiny_loaded: LoadedModel, tiny_menu: Menu) -> Profile:
    """Give a profile of five tools, one of them uncalibrated; 0.3 is its only threshold."""
    return fake_profile(tiny_loaded, tiny_menu, threshold=0.3, uncalibrated=("get_time",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, profile: Profile) -> Path:
    """Give the profile's folder."""
    path = tmp_path_factory.mktemp("profile")
    profile.save(path)
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(GROUP, ["policy", *map(str, args)], terminal_width=100)


def written(folder: Path, text: str) -> Path:
    file = folder / "policy.yaml"
    file.write_text(text, "utf-8")
    return file


def problems(profile: Profile, menu: Menu | None = None, **content: Any) -> list[tuple[str, str]]:
    found = policy_problems(Policy.load(content), profile, menu)
    return [(one.kind, one.where) for one in found]


def test_every_tool_gets_its_effective_rule(profile: Profile) -> None:
    """Static rules, evidence, uncalibrated and unlisted tools each read as one phrase."""
    policy = Policy.load(
        {
            "unlisted": "deny",
            "tiers": {"write": {"risk_target": 0.01}},
            "tools": {
                "get_weather": {"tier": "read"},
                "get_time": {"tier": "read"},
                "search*": {"budget": {"per_run": 2, "per_minute": 9}, "roles": ["clerk"]},
                "other": {"rule": "confirm", "required": ["to"], "irrelevant": ["cc"]},
            },
        }
    )
    effects = {rule.tool: rule.effect for rule in effective_rules(policy, profile)}
    never = "no P(wrong) is allowed at this risk target: confirm"
    assert effects == {
        "get_weather": "runs up to P(wrong) 0.3000, else allow",
        "get_time": "uncalibrated: never runs",
        "search": f"{never}; 2 a run; 9 a minute; roles clerk",
        "searchWeb": f"{never}; 2 a run; 9 a minute; roles clerk",
        "send_email": "never runs",
        "other": "a person confirms; asks for to; without cc",
    }


def test_a_correction_is_told_with_what_the_profile_offers(profile: Profile) -> None:
    """Without an offer the line says that such a call stops."""
    policy = Policy.load({"tools": {"search": {"doubtful": "correct"}}})
    update = {"correction": "between_two"}
    offering = replace(profile, meta=profile.meta.model_copy(update=update))
    for one, words in ((profile, "correct (veto: "), (offering, "correct (between_two)")):
        effects = {rule.tool: rule.effect for rule in effective_rules(policy, one)}
        assert words in effects["search"]


def test_a_sound_policy_has_no_problems(profile: Profile) -> None:
    """Presets, globs with exceptions and redirects to harmless tools are left alone."""
    tools = {
        "get_*": {"tier": "read", "doubtful": "redirect", "redirects": ["search"]},
        "get_time": {"tier": "read", "rule": "deny"},
        "search": {"tier": "read"},
        "search*": {"tier": "read", "doubtful": "correct", "redirects": ["search"]},
        "send_email": {"tier": "irreversible"},
    }
    for preset in ("monitor", "staging", "strict"):
        assert problems(profile, preset=preset, tools=tools) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"tools": {"serch": {}}}, ("unknown", "tools.serch")),
        ({"tools": {"search ": {}}}, ("unknown", "tools.search ")),
        ({"tools": {"drop_*": {}}}, ("dead", "tools.drop_*")),
        ({"tools": {"get_*": {}, "get_t*": {}}}, ("dead", "tools.get_t*")),
        ({"tools": {"searc[h]": {}, "search": {}}}, ("dead", "tools.searc[h]")),
        (
            {"tools": {"search": {"rule": "allow", "doubtful": "veto"}}},
            ("dead", "tools.search.doubtful"),
        ),
        (
            {"tools": {"search": {"rule": "deny", "budget": {"per_run": 1}}}},
            ("dead", "tools.search.budget"),
        ),
        ({"tools": {"search": {"budget": {}}}}, ("dead", "tools.search.budget")),
        ({"tools": {"search": {"redirects": ["searchWeb"]}}}, ("dead", "tools.search.redirects")),
        ({"tools": {"search": {"roles": []}}}, ("contradiction", "tools.search.roles")),
        (
            {"tools": {"search": {"required": ["q"], "irrelevant": ["q"]}}},
            ("contradiction", "tools.search.required"),
        ),
        (
            {"tools": {"search": {"doubtful": "redirect", "redirects": []}}},
            ("contradiction", "tools.search.redirects"),
        ),
        (
            {"tools": {"search": {"doubtful": "redirect", "redirects": ["send_email"]}}},
            ("contradiction", "tools.search.redirects"),
        ),
        (
            {"tools": {"search": {"doubtful": "redirect", "redirects": ["search"]}}},
            ("contradiction", "tools.search.redirects"),
        ),
        (
            {
                "tools": {
                    "search": {"doubtful": "redirect", "redirects": ["get_time"]},
                    "get_time": {"tier": "read", "rule": "confirm"},
                }
            },
            ("contradiction", "tools.search.redirects"),
        ),
        (
            {"tools": {"search": {"doubtful": "redirect", "redirects": ["gone"]}}},
            ("unknown", "tools.search.redirects"),
        ),
        (
            {"tiers": {"irreversible": {"risk_target": 0.2}}},
            ("contradiction", "tiers.irreversible.risk_target"),
        ),
    ],
)
def test_what_cannot_be_meant_is_found(
    profile: Profile, content: dict[str, Any], expected: tuple[str, str]
) -> None:
    """Each contradiction, dead rule and unknown name is told with its place, and only that."""
    assert problems(profile, **content) == [expected]


def test_arguments_are_compared_with_the_tools_schemas(profile: Profile) -> None:
    """Names that no schema has, and a required argument declared irrelevant, are found."""
    schema = {"properties": {"q": {}, "page": {}}, "required": ["q"]}
    menu = Menu.of([{"name": "search", "parameters": schema}, {"name": "not_in_profile"}])
    section = {
        "required": ["querry"],
        "irrelevant": ["q"],
        "arguments": {"properties": {"pages": {}, "page": {}}},
    }
    found = problems(profile, menu, tools={"sear*": section, "not_in_profile": {}})
    assert (
        found
        == [
            ("dead", "tools.sear*"),
            ("unknown", "tools.sear*.required"),
            ("unknown", "tools.sear*.arguments"),
            ("contradiction", "tools.sear*.irrelevant"),
        ][1:]
    )


def test_check_prints_rules_and_ends_with_0_when_all_is_well(tmp_path: Path, folder: Path) -> None:
    """The table has a line a tool and says which entry covers it."""
    file = written(tmp_path, "mode: enforce\ntools: {'search*': {tier: read}, get_time: {}}\n")
    result = run("check", file, "--profile", folder)
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert lines["search"].split()[1:3] == ["search*", "read"]
    assert "its name" in lines["get_time"]
    assert lines["send_email"].split()[1:3] == ["-", "irreversible"]


def test_check_ends_with_3_and_lists_the_problems(tmp_path: Path, folder: Path) -> None:
    """A look-alike name is shown in ASCII with the one that is meant; JSON holds it too."""
    file = written(tmp_path, "tools: {ѕearch: {rule: allow}}\n")
    result = run("check", file, "--profile", folder, "--json", "-")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    (problem,) = report["problems"]
    assert (problem["kind"], problem["where"]) == ("unknown", "tools.ѕearch")
    assert "\\u0455earch" in problem["detail"]
    assert "is 'search' meant?" in problem["detail"]
    assert {tool["tool"] for tool in report["tools"]} == {*NAMES, "ѕearch"}
    assert f"problems in {file}: 1" in result.stderr


def test_check_takes_a_menu_of_its_own(tmp_path: Path, folder: Path) -> None:
    """A tool that only --tools knows is known, and a list that is none is refused."""
    file = written(tmp_path, "tools: {refund: {rule: confirm}}\n")
    menu = tmp_path / "tools.json"
    menu.write_text(json.dumps([{"name": "refund"}]))
    assert run("check", file, "--profile", folder, "--tools", menu).exit_code == 0
    assert run("check", file, "--profile", folder).exit_code == 3
    menu.write_text('"refund"')
    refused = run("check", file, "--profile", folder, "--tools", menu)
    assert refused.exit_code == 2
    assert "no list of tools" in refused.stderr


def test_a_bad_file_ends_with_2(tmp_path: Path, folder: Path) -> None:
    """A policy that cannot be read is an error of usage, not a finding."""
    result = run("check", written(tmp_path, "modus: x\n"), "--profile", folder)
    assert result.exit_code == 2
    assert "modus" in result.stderr


def test_schema_is_printed_and_written(tmp_path: Path) -> None:
    """The JSON Schema goes to stdout, or to the file."""
    assert json.loads(run("schema").stdout) == Policy.json_schema()
    file = tmp_path / "schema.json"
    assert run("schema", "--json", file).exit_code == 0
    assert json.loads(file.read_text("utf-8")) == Policy.json_schema()


RECORDED = Policy.load({"mode": "monitor"})


def record(
    tool: str = "search",
    *,
    action: Any = "allow",
    proposed: Any = "allow",
    reason: Any = "confident",
    policy: Policy = RECORDED,
    p_wrong: float | None = 0.1,
    rival: str = "searchWeb",
    **reading: Any,
) -> dict[str, Any]:
    """Give the payload of a decision as the store holds it."""
    scores = dict.fromkeys(("logprob", "activation"), (-1.0, -0.5, -9.0))
    evidence = {"menu": (tool, rival, "get_weather"), "status": "calibrated", "scores": scores}
    decision = Decision(
        action=action,
        proposed=proposed,
        tool=tool,
        reason=reason,
        detail="why",
        reading=Reading(chosen=tool, p_wrong=p_wrong, **{**evidence, **reading}),
        threshold=0.3,
    )
    kept = CallRecord.of(decision, call_id="c", arguments={}, policy=policy, seal=Seal(b"k" * 32))
    return json.loads(json.dumps(kept.to_dict()))


def replayed(payload: dict[str, Any], profile: Profile | None = None, **policy: Any) -> str:
    found = PolicyReplay(Policy.load({"mode": "enforce", **policy}), profile).judge(payload)
    assert found is not None
    mark = "" if found.changed else " unchanged"
    return f"{found.would} {found.would.reason}{mark}{' kept' if found.kept else ''}"


DOUBTFUL = {"proposed": "veto", "reason": "doubtful", "p_wrong": 0.8}


def test_the_same_policy_changes_nothing() -> None:
    """Judged again by what judged it, a decision stays; the mode alone makes it count."""
    assert replayed(record()) == "allow confident unchanged"
    assert replayed(record(**DOUBTFUL), mode="monitor") == "allow (veto) doubtful unchanged"
    assert replayed(record(**DOUBTFUL)) == "veto doubtful"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"tools": {"search": {"rule": "deny"}}}, "veto rule_deny"),
        ({"tools": {"search": {"rule": "confirm"}}}, "confirm rule_confirm"),
        ({"tools": {"sea*": {"rule": "allow"}}}, "allow rule_allow"),
        ({"unlisted": "deny"}, "veto unlisted"),
        ({"tools": {"search": {"tier": "read"}}}, "allow doubtful"),
        ({"tools": {"search": {"doubtful": "clarify"}}}, "clarify doubtful"),
    ],
)
def test_a_doubtful_call_is_judged_by_the_new_rules(policy: dict[str, Any], expected: str) -> None:
    """Rules, tiers and defaults of the file decide, not those that were in force."""
    assert replayed(record(**DOUBTFUL), **policy) == expected


def test_thresholds_are_the_profiles_where_one_is_given(profile: Profile) -> None:
    """A stricter risk target counts with a profile; without one the recorded threshold does."""
    assert replayed(record(), profile, risk_target=0.01) == "veto doubtful"
    assert replayed(record(), profile) == "allow confident unchanged"
    assert replayed(record(), risk_target=0.01) == "allow confident unchanged"


def test_a_redirect_is_found_from_the_recorded_candidates(profile: Profile) -> None:
    """The best rival stands in if the policy and, where given, the profile let it."""
    tools = {"search*": {"tier": "read", "doubtful": "redirect"}, "get_time": {"tier": "read"}}
    assert replayed(record(**DOUBTFUL), tools=tools) == "redirect doubtful"
    assert replayed(record(**DOUBTFUL), profile, tools=tools) == "redirect doubtful"
    untrusted = record(**DOUBTFUL, rival="get_time")
    assert replayed(untrusted, tools=tools) == "redirect doubtful"
    assert replayed(untrusted, profile, tools=tools) == "veto doubtful"


def test_what_was_uncalibrated_or_faulty_stays_so() -> None:
    """Status and fault are part of the evidence; only a static rule opens them."""
    changed = record(proposed="veto", reason="uncalibrated", status="changed")
    broken = record(proposed="veto", reason="fault", p_wrong=None, fault="NaN")
    unread = record(proposed="veto", reason="fault", p_wrong=None)
    assert replayed(changed) == "veto uncalibrated"
    assert replayed(changed, uncalibrated="allow") == "allow uncalibrated"
    for payload in (broken, unread):
        assert replayed(payload) == "veto fault"
        assert replayed(payload, unlisted="allow") == "allow rule_allow"


def test_a_calibrated_call_without_p_wrong_is_closed() -> None:
    """A rule had let it run; judged by evidence that is not there it does not."""
    payload = record(reason="rule_allow", p_wrong=None)
    assert replayed(payload) == "veto fault"


def test_what_rests_on_arguments_or_roles_is_kept() -> None:
    """The store holds neither, so the recorded reason stands if the call still gets that far."""
    payload = record(action="clarify", proposed="clarify", reason="missing_argument")
    assert replayed(payload) == "clarify missing_argument unchanged kept"
    assert replayed(payload, unlisted="deny") == "veto unlisted"
    unknown = record(
        "made_up", action="veto", proposed="veto", reason="not_on_menu", menu=("a",), scores={}
    )
    assert unknown["tool"] is None
    assert replayed(unknown, unlisted="allow") == "veto not_on_menu unchanged kept"


def test_a_persons_answer_stands_where_a_person_is_asked_again() -> None:
    """Approved stays approved; a policy that asks nobody changes it."""
    approved = record(proposed="confirm", reason="approved_by_person", p_wrong=0.8)
    write = {"tools": {"search": {"tier": "write"}}}
    assert replayed(approved, **write) == "allow (confirm) approved_by_person unchanged"
    assert replayed(approved) == "veto doubtful"
    assert replayed(approved, unlisted="allow") == "allow rule_allow"


def test_a_payload_that_is_no_record_is_counted() -> None:
    """Rows of other writers do not end the replay."""

    @dataclass
    class Event:
        payload: dict[str, Any]
        seq: int = 1
        call_id: str = "c"

    bad = {**record(), "reason": "because"}
    events = [Event(record()), Event({}), Event(bad), Event(record(**DOUBTFUL))]
    report = replay_decisions(PolicyReplay(Policy(mode="enforce")), events)
    assert (report.decisions, report.unreadable, len(report.changes)) == (4, 2, 1)


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    """Give a store of three watched decisions, two of them doubtful."""
    path = tmp_path / "audit.db"
    payloads = [record(), record(**DOUBTFUL), record("send_email", **DOUBTFUL)]
    with AuditStore.open(path) as store:
        for number, payload in enumerate(payloads):
            event = AuditEvent(
                kind="decision",
                call_id=f"c{number}",
                tool=payload["tool"],
                action=payload["action"],
                payload=payload,
            )
            assert store.write(event)
    return path


def test_replay_shows_what_enforce_would_have_stopped(tmp_path: Path, audit: Path) -> None:
    """From a watched store to a table of changes, grouped by tool and change."""
    file = written(tmp_path, "mode: enforce\ntools: {search: {tier: write}}\n")
    result = run("replay", file, "--audit", audit)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "3 decisions, 2 would change",
        "2 that ran would not, 0 that did not would run",
        "",
        "tool        was           would be  reason    calls",
        "search      allow (veto)  confirm   doubtful  1",
        "send_email  allow (veto)  veto      doubtful  1",
        "(in parentheses: what the policy proposed)",
    ]


def test_replay_writes_json(tmp_path: Path, audit: Path, folder: Path) -> None:
    """Each changed call is listed with what was and what would be."""
    file = written(tmp_path, "mode: enforce\n")
    result = run("replay", file, "--audit", audit, "--profile", folder, "--json", "-")
    report = json.loads(result.stdout)
    assert (report["decisions"], report["changed"], report["stopped"]) == (3, 2, 2)
    assert [change["call_id"] for change in report["changes"]] == ["c1", "c2"]
    assert report["changes"][0]["would"]["action"] == "veto"


def test_replay_of_a_store_that_is_not_there_makes_none(tmp_path: Path) -> None:
    """A mistyped path is an error, not an empty result."""
    gone = tmp_path / "gone.db"
    result = run("replay", written(tmp_path, "mode: enforce\n"), "--audit", gone)
    assert result.exit_code == 2
    assert not gone.exists()
