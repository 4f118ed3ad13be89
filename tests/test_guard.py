"""The guard: every branch of the verdict, and a closed door whenever something breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import fake_profile, quiet_guard
from torch import Tensor

from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import LoadedModel
from toolguard.guard.decision import Decision
from toolguard.guard.errors import ReadoutError, ShapeError
from toolguard.guard.guard import Evidence, Guard
from toolguard.guard.policy import Policy
from toolguard.guard.profile import Profile
from toolguard.guard.tools import Menu, Tool

NAMES = ("get_weather", "get_time", "search", "searchWeb", "send_email")
WRITE = {name: {"tier": "write"} for name in NAMES}


@pytest.fixture(scope="module")
def profile(tiny_loaded: LoadedModel, tiny_menu: Menu) -> Profile:
    """Give a profile whose threshold lets sure calls pass and doubtful ones not."""
    return fake_profile(tiny_loaded, tiny_menu, threshold=0.3)


def near(profile: Profile, name: str, other: str | None = None) -> Tensor:
    """Give a hidden state in the direction of a tool, or between two, a little nearer to it."""
    rows = torch.nn.functional.normalize(profile.means - profile.centre, dim=1)
    second = 0.0 if other is None else 0.9 * rows[profile.names.index(other)]
    return profile.centre + rows[profile.names.index(name)] + second


def favouring(first: str, second: str | None = None, menu: tuple[str, ...] = NAMES) -> Tensor:
    scores = torch.full((len(menu),), -9.0)
    scores[menu.index(first)] = -0.1
    if second is not None:
        scores[menu.index(second)] = -0.2
    return scores


def sure(profile: Profile, name: str, **extra: Any) -> Evidence:
    return Evidence(chosen=name, hidden=near(profile, name), logprob=favouring(name), **extra)


def unsure(profile: Profile, name: str, rival: str) -> Evidence:
    return Evidence(chosen=name, hidden=near(profile, rival), logprob=favouring(rival, name))


def check(profile: Profile | None, menu: Menu, evidence: Evidence, **policy: Any) -> Decision:
    guard = quiet_guard(profile, **{"mode": "enforce", **policy})
    view = profile.view(menu) if profile else quiet_guard_view(menu)
    return guard.check(evidence, view)


def quiet_guard_view(menu: Menu) -> Any:
    from toolguard.adapters.menu_plan import blank_view

    return blank_view(menu, 32)


def test_a_sure_call_is_allowed(profile: Profile, tiny_menu: Menu) -> None:
    """Within the threshold the call goes on, with both margins in the reading."""
    decision = check(profile, tiny_menu, sure(profile, "search"))
    assert (decision.action, decision.reason) == ("allow", "confident")
    assert decision.reading.p_wrong < 0.3
    assert set(decision.reading.margins) == {"logprob", "activation"}


@pytest.mark.parametrize(
    ("rule", "action", "reason"),
    [
        ("deny", "veto", "rule_deny"),
        ("confirm", "confirm", "rule_confirm"),
        ("allow", "allow", "rule_allow"),
    ],
)
def test_a_static_rule_counts_whatever_the_evidence(
    profile: Profile, tiny_menu: Menu, rule: str, action: str, reason: str
) -> None:
    """A listed tool's rule decides, for sure calls, for doubtful ones and for broken readings."""
    broken = Evidence(chosen="search", hidden=torch.full((32,), torch.nan), fault="broken")
    for evidence in (
        sure(profile, "search"),
        unsure(profile, "search", "get_time"),
        broken,
        Evidence(chosen="search", hidden=torch.full((32,), torch.nan)),
    ):
        decision = check(profile, tiny_menu, evidence, tools={"search": {"rule": rule}})
        assert (decision.action, decision.reason) == (action, reason)


@pytest.mark.parametrize(("rule", "action"), [("deny", "veto"), ("confirm", "confirm")])
def test_an_unlisted_tool_follows_the_default_rule(
    profile: Profile, tiny_menu: Menu, rule: str, action: str
) -> None:
    """`unlisted` decides over a tool that the policy does not name."""
    decision = check(profile, tiny_menu, sure(profile, "search"), unlisted=rule)
    assert (decision.action, decision.reason) == (action, "unlisted")


def test_a_name_off_the_menu_is_vetoed_even_if_listed(profile: Profile, tiny_menu: Menu) -> None:
    """A policy that allows a tool does not put it on the menu."""
    evidence = Evidence(chosen="drop", hidden=near(profile, "search"), logprob=favouring("search"))
    decision = check(profile, tiny_menu, evidence, tools={"drop": {"rule": "allow"}})
    assert (decision.action, decision.reason) == ("veto", "not_on_menu")


@pytest.mark.parametrize("action", ["allow", "confirm", "veto", "clarify"])
def test_a_doubtful_call_gets_its_tools_action(
    profile: Profile, tiny_menu: Menu, action: str
) -> None:
    """Above the threshold the tool's own doubtful action is taken."""
    evidence = unsure(profile, "search", "get_time")
    decision = check(profile, tiny_menu, evidence, tools={"search": {"doubtful": action}})
    assert (decision.action, decision.reason) == (action, "doubtful")


def test_no_threshold_means_every_call_is_doubtful(
    tiny_loaded: LoadedModel, tiny_menu: Menu
) -> None:
    """Where calibration could not show any P(wrong) safe, none passes."""
    closed = fake_profile(tiny_loaded, tiny_menu, threshold=None)
    decision = check(closed, tiny_menu, sure(closed, "search"))
    assert (decision.action, decision.reason) == ("veto", "doubtful")


def test_a_stricter_target_than_any_stored_allows_nothing(
    profile: Profile, tiny_menu: Menu
) -> None:
    """A risk target below the calibrated ones has no threshold."""
    assert check(profile, tiny_menu, sure(profile, "search"), risk_target=0.01).threshold is None


def test_a_tiers_risk_target_gives_its_tools_their_own_threshold(
    profile: Profile, tiny_menu: Menu
) -> None:
    """The same evidence lets a tool of a lax tier run and stops one of a strict tier."""
    policy = {
        "tiers": {"read": {"risk_target": 0.1}, "write": {"risk_target": 0.01}},
        "tools": {"search": {"tier": "read"}, "get_*": {"tier": "write"}},
    }
    lax = check(profile, tiny_menu, sure(profile, "search"), **policy)
    strict = check(profile, tiny_menu, sure(profile, "get_time"), **policy)
    assert (lax.action, lax.threshold) == ("allow", 0.3)
    assert (strict.action, strict.threshold) == ("confirm", None)
    guard = quiet_guard(profile, **policy)
    assert [guard.threshold_for(name) for name in ("search", "get_time")] == [0.3, None]
    assert quiet_guard(None).threshold_for("search") is None


def test_a_tool_that_a_glob_lists_is_not_unlisted(profile: Profile, tiny_menu: Menu) -> None:
    """Its reason is the rule; a tool that only the default covers says so."""
    policy = {"unlisted": "deny", "tools": {"sear*": {"rule": "deny"}}}
    covered = check(profile, tiny_menu, sure(profile, "searchWeb"), **policy)
    other = check(profile, tiny_menu, sure(profile, "get_time"), **policy)
    assert (covered.reason, other.reason) == ("rule_deny", "unlisted")


@pytest.mark.parametrize(
    ("rule", "action"), [("deny", "veto"), ("allow", "allow"), ("confirm", "confirm")]
)
@pytest.mark.parametrize("status", ["uncalibrated", "changed", "unknown"])
def test_what_the_profile_cannot_vouch_for_follows_its_rule(
    tiny_loaded: LoadedModel, tiny_menu: Menu, status: str, rule: str, action: str
) -> None:
    """Too few examples, another description, or an unknown name: the policy's `uncalibrated`."""
    tools = list(tiny_menu.tools)
    uncalibrated = ("search",) if status == "uncalibrated" else ()
    profile = fake_profile(tiny_loaded, tiny_menu, uncalibrated=uncalibrated)
    chosen = "search"
    if status == "changed":
        tools[2] = Tool(name="search", description="Now it deletes the notes.")
    if status == "unknown":
        chosen = "brand_new"
        tools.append(Tool(name=chosen))
    menu = Menu.of(tools)
    evidence = Evidence(
        chosen=chosen,
        hidden=near(profile, "search"),
        logprob=favouring(chosen, menu=menu.names),
    )
    decision = check(profile, menu, evidence, uncalibrated=rule)
    assert (decision.action, decision.reason) == (action, "uncalibrated")
    assert decision.reading.status == status


def test_an_untrusted_reading_never_redirects(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """Judged as doubtful, an uncalibrated tool whose action is redirect is vetoed."""
    profile = fake_profile(tiny_loaded, tiny_menu, uncalibrated=("search",))
    policy = {"uncalibrated": "judge", "tools": {"search": {"doubtful": "redirect"}}}
    decision = check(profile, tiny_menu, unsure(profile, "search", "get_time"), **policy)
    assert (decision.action, decision.reason) == ("veto", "uncalibrated")


def redirecting(**tiers: str) -> dict[str, Any]:
    return {
        "tools": {
            name: {"tier": tiers.get(name, "write"), "doubtful": "redirect"} for name in NAMES
        }
    }


def test_a_redirect_goes_to_the_rival_all_signals_agree_on(
    profile: Profile, tiny_menu: Menu
) -> None:
    """Both signals prefer the same other tool of the same tier: its name is the target."""
    evidence = unsure(profile, "search", "get_time")
    decision = check(profile, tiny_menu, evidence, **redirecting())
    assert (decision.action, decision.target) == ("redirect", "get_time")
    assert decision.executed_tool == "get_time"


def test_signals_that_disagree_do_not_redirect(profile: Profile, tiny_menu: Menu) -> None:
    """Different rivals by logprob and activation leave a veto."""
    evidence = Evidence(
        chosen="search",
        hidden=near(profile, "get_time"),
        logprob=favouring("get_weather", "search"),
    )
    assert check(profile, tiny_menu, evidence, **redirecting()).action == "veto"


def test_a_redirect_never_goes_up_a_tier(profile: Profile, tiny_menu: Menu) -> None:
    """From a write to an irreversible tool there is only a veto."""
    evidence = unsure(profile, "search", "get_time")
    decision = check(profile, tiny_menu, evidence, **redirecting(get_time="irreversible"))
    assert (decision.action, decision.target) == ("veto", None)


def test_a_redirect_never_goes_to_a_tool_that_is_not_trusted(
    tiny_loaded: LoadedModel, tiny_menu: Menu
) -> None:
    """A rival without calibration would not have passed itself, so it is no target."""
    profile = fake_profile(tiny_loaded, tiny_menu, threshold=0.3, uncalibrated=("get_time",))
    evidence = unsure(profile, "search", "get_time")
    assert check(profile, tiny_menu, evidence, **redirecting()).action == "veto"


def test_a_menu_of_one_has_nothing_to_redirect_to(tiny_loaded: LoadedModel) -> None:
    """The only tool competes with nothing: its margins are infinite and there is no rival."""
    menu = Menu.of([{"name": "search"}])
    profile = fake_profile(tiny_loaded, Menu.of([{"name": "search"}, {"name": "other"}]))
    evidence = Evidence(chosen="search", hidden=torch.ones(32), logprob=torch.zeros(1))
    decision = check(profile, menu, evidence, tools={"search": {"doubtful": "redirect"}})
    assert decision.reading.margins == {"logprob": torch.inf, "activation": torch.inf}
    assert decision.action == "allow"


CORRECTING = {"tools": {name: {"tier": "write", "doubtful": "correct"} for name in NAMES}}


def offering(profile: Profile, correction: str | None) -> Profile:
    return replace(profile, meta=profile.meta.model_copy(update={"correction": correction}))


def test_a_correction_is_what_the_profile_offers(profile: Profile, tiny_menu: Menu) -> None:
    """Where calibration showed redirects to help, `correct` redirects by the same rules."""
    evidence = unsure(profile, "search", "get_time")
    decision = check(offering(profile, "redirect"), tiny_menu, evidence, **CORRECTING)
    assert (decision.action, decision.target) == ("redirect", "get_time")
    torn = Evidence(
        chosen="search",
        hidden=near(profile, "get_time"),
        logprob=favouring("get_weather", "search"),
    )
    assert check(offering(profile, "redirect"), tiny_menu, torn, **CORRECTING).action == "veto"


def test_only_calls_more_likely_wrong_are_corrected_where_that_is_offered(
    profile: Profile, tiny_menu: Menu
) -> None:
    """Doubtful but more likely right, a call stops; more likely wrong, it is redirected."""
    offer = offering(profile, "redirect_above_half")
    wrong = check(offer, tiny_menu, unsure(profile, "search", "get_time"), **CORRECTING)
    assert wrong.reading.p_wrong > 0.5
    assert (wrong.action, wrong.target) == ("redirect", "get_time")
    scores = favouring("search", "get_time")
    torn = Evidence(chosen="search", hidden=near(profile, "search", "get_time"), logprob=scores)
    right = check(offer, tiny_menu, torn, **CORRECTING)
    assert 0.3 < right.reading.p_wrong <= 0.5
    assert (right.action, right.reason) == ("veto", "doubtful")
    assert "not corrected" in right.detail
    assert check(offering(profile, "redirect"), tiny_menu, torn, **CORRECTING).action == "redirect"


def test_without_a_correction_that_helps_the_call_stops(profile: Profile, tiny_menu: Menu) -> None:
    """A profile that offers none closes the door and says why; a sure call passes all the same."""
    evidence = unsure(profile, "search", "get_time")
    decision = check(profile, tiny_menu, evidence, **CORRECTING)
    assert (decision.action, decision.reason) == ("veto", "doubtful")
    assert "the profile offers no correction" in decision.detail
    assert check(profile, tiny_menu, sure(profile, "search"), **CORRECTING).action == "allow"


def test_an_untrusted_reading_is_never_corrected(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """Judged as doubtful, an uncalibrated tool is vetoed whatever the profile offers."""
    profile = fake_profile(tiny_loaded, tiny_menu, uncalibrated=("search",))
    evidence = unsure(profile, "search", "get_time")
    policy = {"uncalibrated": "judge", **CORRECTING}
    decision = check(offering(profile, "redirect"), tiny_menu, evidence, **policy)
    assert (decision.action, decision.reason) == ("veto", "uncalibrated")


def test_rivals_the_profile_never_met_give_no_margin(profile: Profile, tiny_menu: Menu) -> None:
    """Leading only unknown tools is no evidence, so the verdict cannot be given and is closed."""
    menu = Menu.of([tiny_menu.tools[2], {"name": "new_one"}, {"name": "new_two"}])
    evidence = Evidence(
        chosen="search",
        hidden=near(profile, "search"),
        logprob=favouring("search", menu=menu.names),
    )
    decision = check(profile, menu, evidence)
    assert "activation" not in decision.reading.margins
    assert (decision.action, decision.reason) == ("veto", "fault")


def test_without_a_profile_only_static_rules_open(tiny_menu: Menu) -> None:
    """No profile vouches for nothing; an allowed tool runs all the same."""
    policy = {"tools": {"get_time": {"rule": "allow"}}}
    assert check(None, tiny_menu, Evidence(chosen="search"), **policy).action == "veto"
    assert check(None, tiny_menu, Evidence(chosen="get_time"), **policy).action == "allow"


BROKEN: dict[str, Callable[[Profile], Evidence]] = {
    "NaN hidden": lambda p: Evidence(
        chosen="search", hidden=torch.full((32,), torch.nan), logprob=favouring("search")
    ),
    "infinite hidden": lambda p: Evidence(
        chosen="search", hidden=torch.full((32,), torch.inf), logprob=favouring("search")
    ),
    "zero hidden of a centred readout": lambda p: Evidence(
        chosen="search", hidden=p.centre.clone(), logprob=favouring("search")
    ),
    "wrong width": lambda p: Evidence(
        chosen="search", hidden=torch.ones(31), logprob=favouring("search")
    ),
    "NaN logprob": lambda p: Evidence(
        chosen="search", hidden=near(p, "search"), logprob=torch.full((5,), torch.nan)
    ),
    "too few log-probabilities": lambda p: Evidence(
        chosen="search", hidden=near(p, "search"), logprob=torch.zeros(3)
    ),
    "too many log-probabilities": lambda p: Evidence(
        chosen="search", hidden=near(p, "search"), logprob=torch.zeros(6)
    ),
    "no logprob": lambda p: Evidence(chosen="search", hidden=near(p, "search")),
    "no hidden": lambda p: Evidence(chosen="search", logprob=favouring("search")),
    "a named fault": lambda p: Evidence(chosen="search", fault="the token was not read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_evidence_closes_enforce(profile: Profile, tiny_menu: Menu, case: str) -> None:
    """Whatever is missing or not a number, the call does not run and the record says why."""
    decision = check(profile, tiny_menu, BROKEN[case](profile), tools=WRITE)
    assert (decision.action, decision.proposed, decision.reason) == ("veto", "veto", "fault")
    assert decision.detail


@pytest.mark.parametrize("case", BROKEN)
def test_broken_evidence_goes_on_in_monitor_and_says_so(
    profile: Profile, tiny_menu: Menu, case: str
) -> None:
    """Monitor mode runs the call and proposes the veto."""
    decision = check(profile, tiny_menu, BROKEN[case](profile), mode="monitor")
    assert (decision.action, decision.proposed, decision.reason) == ("allow", "veto", "fault")


class CrashingGuard(Guard):
    """Its calibrator divides by zero."""

    def _p_wrong(self, margins: dict[str, float]) -> float | None:
        return 1 / 0


@pytest.mark.parametrize(("mode", "action"), [("enforce", "veto"), ("monitor", "allow")])
def test_a_crash_inside_the_guard_is_a_closed_verdict(
    profile: Profile, tiny_menu: Menu, mode: str, action: str
) -> None:
    """Any exception at all ends in a verdict, not in a traceback."""
    guard = CrashingGuard(profile, Policy(mode=mode), logger=quiet_guard(None).logger)
    decision = guard.check(sure(profile, "search"), profile.view(tiny_menu))
    assert (decision.action, decision.proposed) == (action, "veto")
    assert decision.detail == "the guard failed: ZeroDivisionError"


async def test_a_crash_closes_sync_and_async_generation(
    tiny_loaded: LoadedModel,
    tiny_menu: Menu,
    profile: Profile,
    scripted: Callable[..., dict[str, Any]],
) -> None:
    """The same failure gives the same refusal through generate and agenerate."""
    guard = CrashingGuard(profile, Policy(mode="enforce"), logger=quiet_guard(None).logger)
    agent = GuardedAgent.of(tiny_loaded, guard)
    text = '<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'
    ask = [{"role": "user", "content": "find it"}]
    plain = agent.generate(ask, tiny_menu.tools, **scripted(tiny_loaded, text))
    later = await agent.agenerate(ask, tiny_menu.tools, **scripted(tiny_loaded, text))
    for result in (plain, later):
        assert result.calls == ()
        assert result.decisions[0].reason == "fault"
        assert "arguments" not in result.text
    assert plain.tokens == later.tokens


def test_read_raises_what_check_hides(profile: Profile, tiny_menu: Menu) -> None:
    """Outside a verdict the typed error is told."""
    guard = quiet_guard(profile)
    view = profile.view(tiny_menu)
    with pytest.raises(ReadoutError):
        guard.read(BROKEN["NaN hidden"](profile), view)
    with pytest.raises(ShapeError):
        guard.read(BROKEN["too few log-probabilities"](profile), view)


@pytest.mark.parametrize("doubtful", ["redirect", "veto", "clarify"])
def test_monitor_opens_every_closed_action(
    profile: Profile, tiny_menu: Menu, doubtful: str
) -> None:
    """The chosen tool runs untouched; what enforce would do is proposed."""
    decision = check(
        profile,
        tiny_menu,
        unsure(profile, "search", "get_time"),
        mode="monitor",
        tools={**WRITE, "search": {"doubtful": doubtful}},
    )
    assert (decision.action, decision.proposed) == ("allow", doubtful)
    assert decision.executed_tool == "search"


def test_denied_names_are_those_of_static_rules(profile: Profile) -> None:
    """Masking follows deny rules, listed or by default, and never in monitor mode."""
    listed = {"tools": {"search": {"rule": "deny"}, "get_time": {"rule": "judge"}}}
    assert quiet_guard(profile, mode="enforce", **listed).denied(NAMES) == {"search"}
    rest = quiet_guard(profile, mode="enforce", unlisted="deny", **listed).denied(NAMES)
    assert rest == set(NAMES) - {"get_time"}
    assert quiet_guard(profile, unlisted="deny", **listed).denied(NAMES) == frozenset()


STEER = {"steering": {"alpha": 0.5, "max_gap": 0.2}, "tools": WRITE}


def steering(profile: Profile, menu: Menu, hidden: Tensor, **policy: Any) -> Any:
    guard = quiet_guard(profile, **{"mode": "enforce", **STEER, **policy})
    return guard.steering_direction(hidden, profile.view(menu))


def test_steering_pushes_a_close_reading_to_its_best_tool(
    profile: Profile, tiny_menu: Menu
) -> None:
    """Between two tools the state gets alpha times the difference of their means."""
    target, vector = steering(profile, tiny_menu, near(profile, "search", "get_time"))
    assert target == "search"
    means = dict(zip(profile.names, profile.means, strict=True))
    torch.testing.assert_close(vector, 0.5 * (means["search"] - means["get_time"]))


def test_steering_leaves_a_clear_reading_alone(profile: Profile, tiny_menu: Menu) -> None:
    """A gap at or above the gate is not touched."""
    assert steering(profile, tiny_menu, near(profile, "search")) is None


def test_steering_uses_the_profiles_gate_by_default(profile: Profile, tiny_menu: Menu) -> None:
    """Without max_gap the calibrated lower quartile, here 10, lets everything pass."""
    assert steering(profile, tiny_menu, near(profile, "search"), steering={}) is not None


@pytest.mark.parametrize(
    "policy",
    [
        {"mode": "monitor"},
        {"steering": None},
        {"tools": {**WRITE, "search": {"rule": "deny"}}},
        {"tools": {**WRITE, "search": {"tier": "irreversible"}}},
    ],
    ids=["monitor", "off", "denied target", "up a tier"],
)
def test_steering_keeps_to_the_policy(
    profile: Profile, tiny_menu: Menu, policy: dict[str, Any]
) -> None:
    """Not in monitor mode, not unasked, not to a denied tool, not up a tier."""
    assert steering(profile, tiny_menu, near(profile, "search", "get_time"), **policy) is None


def test_steering_needs_two_trusted_tools(tiny_loaded: LoadedModel, tiny_menu: Menu) -> None:
    """An uncalibrated mean is no direction."""
    profile = fake_profile(tiny_loaded, tiny_menu, uncalibrated=("get_time",))
    assert steering(profile, tiny_menu, near(profile, "search", "get_time")) is None


def test_a_steered_call_says_so(profile: Profile, tiny_menu: Menu) -> None:
    """A sure call of the tool steered to is recorded as steered, with its target."""
    decision = check(profile, tiny_menu, sure(profile, "search", steered_to="search"))
    assert (decision.action, decision.target) == ("steer", "search")
    other = check(profile, tiny_menu, sure(profile, "search", steered_to="get_time"))
    assert (other.action, other.executed_tool) == ("allow", "search")


def test_load_takes_a_folder_and_a_policy_in_any_form(
    tmp_path: Any, profile: Profile, tiny_menu: Menu
) -> None:
    """A value, a YAML file or nothing: the guard loads."""
    profile.save(tmp_path / "profile")
    file = tmp_path / "policy.yaml"
    file.write_text("mode: enforce\n")
    assert Guard.load(tmp_path / "profile").monitoring
    assert not Guard.load(tmp_path / "profile", file).monitoring
    assert not Guard.load(str(tmp_path / "profile"), Policy(mode="enforce")).monitoring
