"""The policy: defaults, rules, tiers, globs, and errors that name file, key and problem."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from toolguard.guard.errors import ConfigError
from toolguard.guard.policy import Policy


def written(folder: Path, text: str) -> Path:
    file = folder / "policy.yaml"
    file.write_text(text, "utf-8")
    return file


def test_the_default_watches_and_trusts_nothing_it_does_not_know() -> None:
    """Without a file the guard monitors, judges what is unlisted and distrusts the uncalibrated."""
    policy = Policy()
    assert (policy.mode, policy.unlisted, policy.uncalibrated) == ("monitor", "judge", "deny")
    assert policy.risk_target is None
    assert policy.steering is None
    assert not policy.redirects


def test_an_unlisted_tool_counts_as_irreversible() -> None:
    """What nobody described gets the strictest tier and is vetoed when in doubt."""
    policy = Policy()
    assert policy.tier_of("anything") == "irreversible"
    assert policy.doubtful_action("anything") == "veto"


@pytest.mark.parametrize(
    ("tier", "action"), [("read", "allow"), ("write", "confirm"), ("irreversible", "veto")]
)
def test_a_tier_decides_what_doubt_means(tier: str, action: str) -> None:
    """A doubtful read goes on, a write asks, an irreversible call stops."""
    assert Policy.load({"tools": {"t": {"tier": tier}}}).doubtful_action("t") == action


def test_a_tool_may_override_its_tier() -> None:
    """The action given for the tool itself counts."""
    policy = Policy.load({"tools": {"t": {"tier": "read", "doubtful": "clarify"}}})
    assert policy.doubtful_action("t") == "clarify"


def test_tiers_are_ordered_and_custom_ones_close_by_default() -> None:
    """A list with a new tier is the whole list in its order; what it does not say is a veto."""
    policy = Policy.load(
        {
            "tiers": {"read": {}, "money": {"risk_target": 0.01}},
            "tools": {"pay": {"tier": "money"}, "look": {"tier": "read"}},
        }
    )
    assert tuple(policy.tiers) == ("read", "money")
    assert (policy.tier_of("pay"), policy.tier_of("unlisted")) == ("money", "money")
    assert policy.doubtful_action("pay") == "veto"
    assert policy.doubtful_action("look") == "allow"
    assert policy.may_replace("pay", "look")
    assert not policy.may_replace("look", "pay")


def test_a_known_tier_is_changed_in_its_place() -> None:
    """Naming only known tiers keeps the others, the order, and the keys left out."""
    policy = Policy.load({"tiers": {"irreversible": {"rule": "confirm"}, "read": {}}})
    assert tuple(policy.tiers) == ("read", "write", "irreversible")
    assert policy.tiers["irreversible"].doubtful == "veto"
    assert policy.rule_for("unlisted") == "confirm"


def test_a_tools_rule_goes_before_its_tiers() -> None:
    """A tier's rule covers its tools; one that says otherwise for itself is believed."""
    policy = Policy.load(
        {
            "tiers": {"write": {"rule": "confirm"}},
            "tools": {"a": {}, "b": {"rule": "judge"}},
            "unlisted": "allow",
        }
    )
    assert [policy.rule_for(name) for name in "abc"] == ["confirm", "judge", "allow"]


def test_risk_targets_come_from_the_tier_then_from_the_policy() -> None:
    """A tier's target counts for its tools, the policy's for the rest, None is the profile's."""
    tools = {"look": {"tier": "read"}, "change": {"tier": "write"}}
    policy = Policy.load(
        {"risk_target": 0.1, "tiers": {"write": {"risk_target": 0.01}}, "tools": tools}
    )
    assert policy.risk_target_for("look") == 0.1
    assert policy.risk_target_for("change") == 0.01
    assert Policy.load({"tools": tools}).risk_target_for("look") is None


def test_a_glob_covers_what_no_exact_name_does() -> None:
    """Exact names go first, then globs in the order of the file; case counts, spaces too."""
    policy = Policy.load(
        {
            "unlisted": "deny",
            "tools": {
                "read_*": {"rule": "allow"},
                "*_file": {"rule": "confirm"},
                "read_secret": {"rule": "deny"},
                "[xy]": {"rule": "judge"},
            },
        }
    )
    names = ("read_file", "write_file", "read_secret", "Read_mail", "read_ ", "x", "[xy]")
    expected = ["allow", "confirm", "deny", "deny", "allow", "judge", "deny"]
    assert [policy.rule_for(name) for name in names] == expected
    assert policy.entry_for("write_file") == "*_file"
    assert policy.tool_policy("write_file") == policy.tools["*_file"]
    assert policy.tool_policy("mail") is None


@pytest.mark.parametrize("lookalike", ["ѕearch", "search ", " search", "search\u200b", "SEARCH"])
def test_a_lookalike_name_is_another_name(lookalike: str) -> None:
    """A Cyrillic letter, a space or another case makes a tool nobody listed."""
    policy = Policy.load({"unlisted": "deny", "tools": {"search": {"rule": "allow"}}})
    assert policy.rule_for(lookalike) == "deny"


def test_a_redirect_goes_only_where_the_tool_says() -> None:
    """A list of targets narrows what may replace, an empty one closes it, none opens the tier."""
    tools = {name: {"tier": "read"} for name in ("a", "b", "c")}
    tools["a"] = {"tier": "read", "redirects": ["b"]}
    tools["c"] = {"tier": "read", "redirects": []}
    policy = Policy.load({"tools": tools})
    pairs = ("ab", "ac", "ba", "bc", "ca")
    found = {"".join(pair): policy.may_replace(*pair) for pair in pairs}
    assert found == {"ab": True, "ac": False, "ba": True, "bc": True, "ca": False}


def test_arguments_budgets_and_roles_are_read() -> None:
    """What the tool boundary enforces stands in the section as written."""
    section = {
        "arguments": {"properties": {"amount": {"maximum": 50}}},
        "required": ["amount"],
        "irrelevant": ["note"],
        "budget": {"per_run": 1, "per_minute": 5},
        "roles": ["clerk"],
    }
    policy = Policy.load({"tools": {"refund": section}})
    listed = policy.tool_policy("refund")
    assert listed is not None
    assert (listed.required, listed.irrelevant, listed.roles) == (
        ("amount",),
        ("note",),
        ("clerk",),
    )
    assert (listed.budget.per_run, listed.budget.per_minute) == (1, 5)
    assert policy.constraints_for("refund") == section["arguments"]
    assert policy.constraints_for("other") is None


def test_the_hash_knows_all_that_decides() -> None:
    """Equal policies share a hash; another value, order of tiers or order of globs changes it."""
    tools = {"a*": {"rule": "deny"}, "*b": {"rule": "allow"}}
    turned = dict(reversed(tools.items()))
    contents = [
        {},
        {"mode": "enforce"},
        {"tools": tools},
        {"tools": turned},
        {"tiers": {"x": {}, "write": {}}},
        {"tiers": {"write": {}, "x": {}}},
    ]
    hashes = [Policy.load(content).content_hash for content in contents]
    assert len(set(hashes)) == len(contents)
    assert hashes == [Policy.load(content).content_hash for content in contents]


def test_a_copy_is_checked_and_has_its_own_hash() -> None:
    """A changed copy is validated like a new policy and does not keep the old hash."""
    policy = Policy(preset="staging")
    before = policy.content_hash
    copy = policy.model_copy(update={"risk_target": 0.01})
    assert (copy.risk_target, copy.mode) == (0.01, "enforce")
    assert before == policy.content_hash != copy.content_hash
    with pytest.raises(ValidationError):
        policy.model_copy(update={"risk_target": 2})


def test_names_match_exactly() -> None:
    """A rule for one name says nothing about a longer, shorter or differently cased one."""
    policy = Policy.load({"unlisted": "deny", "tools": {"search": {"rule": "allow"}}})
    found = [policy.rule_for(name) for name in ("search", "searchWeb", "sear", "Search", "search ")]
    assert found == ["allow", "deny", "deny", "deny", "deny"]


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        ("write", "read", True),
        ("write", "other_write", True),
        ("read", "write", False),
        ("write", "irreversible", False),
        ("irreversible", "denied_read", False),
        ("irreversible", "asked_read", False),
        ("read", "unlisted", False),
        ("unlisted", "unlisted_too", True),
    ],
)
def test_a_replacement_never_climbs_or_evades_a_rule(
    source: str, target: str, allowed: bool
) -> None:
    """A call may turn into one of the same or a lower tier that is neither denied nor asked for."""
    policy = Policy.load(
        {
            "tools": {
                "read": {"tier": "read"},
                "write": {"tier": "write"},
                "other_write": {"tier": "write", "rule": "allow"},
                "irreversible": {"tier": "irreversible"},
                "denied_read": {"tier": "read", "rule": "deny"},
                "asked_read": {"tier": "read", "rule": "confirm"},
            }
        }
    )
    assert policy.may_replace(source, target) is allowed


def test_a_denied_default_closes_unlisted_targets() -> None:
    """With `unlisted: deny` no call is turned into one of a tool nobody listed."""
    assert not Policy.load({"unlisted": "deny"}).may_replace("a", "b")


def test_every_target_a_policy_can_ask_is_listed_once() -> None:
    """The policy's own target and each tier's, rising; what leaves it to the profile is none."""
    assert Policy().risk_targets == ()
    assert Policy.load({"preset": "strict"}).risk_targets == (0.01, 0.02, 0.05)
    policy = Policy.load(
        {"risk_target": 0.1, "tiers": {"write": {"risk_target": 0.1}, "read": {"risk_target": 0.3}}}
    )
    assert policy.risk_targets == (0.1, 0.3)
    assert (policy.tier_target("read"), policy.tier_target("irreversible")) == (0.3, 0.1)


def test_redirects_says_whether_any_rule_does() -> None:
    """A tier's or a tool's redirect is found."""
    assert Policy.load({"tiers": {"write": {"doubtful": "redirect"}}}).redirects
    assert Policy.load({"tools": {"t": {"doubtful": "redirect"}}}).redirects
    assert Policy.load({"tools": {"t": {"doubtful": "correct"}}}).redirects


def test_a_file_is_read(tmp_path: Path) -> None:
    """Mode, rules and unicode names come from YAML."""
    text = "mode: enforce\nunlisted: deny\ntools:\n  métro.hours: {tier: read, rule: allow}\n"
    policy = Policy.load(written(tmp_path, text))
    assert policy.mode == "enforce"
    assert policy.rule_for("métro.hours") == "allow"


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    """Nothing written means nothing changed."""
    assert Policy.load(written(tmp_path, "# nothing yet\n")) == Policy()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mode: enforced\n", "mode: Input should be 'monitor' or 'enforce'"),
        ("modus: enforce\n", "modus: Extra inputs"),
        ("tools:\n  send: {tier: dangerous}\n", "tools.send.tier: 'dangerous' is none of read"),
        ("tiers: {money: {}}\ntools: {pay: {}}\n", "tools.pay.tier: 'write' is none of money"),
        ("tiers: {}\ntools: {send: {tier: write, budget: {per_run: 0}}}\n", "budget.per_run"),
        ("tiers: [read]\n", "tiers"),
        ("tiers: {read: allow}\n", "tiers.read"),
        ("tiers: {read: {rules: allow}}\n", "tiers.read.rules"),
        ("doubtful: {read: allow}\n", "doubtful: Extra inputs"),
        ("preset: lax\n", "preset"),
        ("preset: [strict]\n", "preset"),
        ("vetoed_retries: 0\n", "vetoed_retries"),
        ("audit: {arguments: clear}\n", "audit.arguments"),
        ("audit: {argument: plain}\n", "audit.argument"),
        ("tools: {t: {required: ['']}}\n", "tools.t.required.0"),
        ("tools: {t: {redirects: b}}\n", "tools.t.redirects"),
        ("tools:\n  send: {rul: deny}\n", "tools.send.rul"),
        ("tools:\n  send: deny\n", "tools.send"),
        ("tools:\n  1: {rule: deny}\n", "tools.1"),
        ("risk_target: 1.5\n", "risk_target"),
        ("risk_target: .nan\n", "risk_target"),
        ("steering: {alpha: -1}\n", "steering.alpha"),
        ("tiers: {read: {doubtful: steer}}\n", "can be steered"),
        ("tools:\n  send: {doubtful: steer}\n", "can be steered"),
        ("version: 2\n", "version"),
        ("mode: [\n", "not YAML"),
        ("- mode\n", "must be a mapping, found list"),
        ("tools:\n  send: {rule: deny}\n  send: {rule: allow}\n", "'send' is given twice"),
        ("mode: enforce\nmode: monitor\n", "'mode' is given twice"),
    ],
)
def test_a_bad_file_is_an_error_that_names_file_and_key(
    tmp_path: Path, text: str, problem: str
) -> None:
    """The message says which file, which key, and what is wrong; the exit code is that of usage."""
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        Policy.load(file)
    assert str(file) in caught.value.message
    assert problem in caught.value.message
    assert caught.value.exit_code == 2


def test_every_problem_is_listed_at_once() -> None:
    """Two mistakes are told together."""
    with pytest.raises(ConfigError) as caught:
        Policy.load({"mode": "x", "tools": {"t": {"rule": "y"}}})
    assert len(caught.value.fields["problems"]) == 2


def test_a_missing_file_and_broken_bytes_are_errors(tmp_path: Path) -> None:
    """A path to nothing and a file that is no UTF-8 both say so."""
    with pytest.raises(ConfigError, match="cannot read the policy"):
        Policy.load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_bytes(b"mode: \xff\xfe")
    with pytest.raises(ConfigError, match="not YAML"):
        Policy.load(broken)
