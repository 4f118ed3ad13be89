"""The policy file: defaults, rules, tiers, and errors that name file, key and problem."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_a_tier_left_out_of_doubtful_is_vetoed() -> None:
    """A partial table closes what it does not name."""
    assert Policy.load({"doubtful": {"read": "allow"}}).doubtful_action("t") == "veto"


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


def test_redirects_says_whether_any_rule_does() -> None:
    """A tier's or a tool's redirect is found."""
    assert Policy.load({"doubtful": {"write": "redirect"}}).redirects
    assert Policy.load({"tools": {"t": {"doubtful": "redirect"}}}).redirects


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
        ("tools:\n  send: {tier: dangerous}\n", "tools.send.tier"),
        ("tools:\n  send: {rul: deny}\n", "tools.send.rul"),
        ("tools:\n  send: deny\n", "tools.send"),
        ("tools:\n  1: {rule: deny}\n", "tools.1"),
        ("risk_target: 1.5\n", "risk_target"),
        ("risk_target: .nan\n", "risk_target"),
        ("steering: {alpha: -1}\n", "steering.alpha"),
        ("doubtful: {read: steer}\n", "can be steered"),
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
        Policy.load({"mode": "x", "tools": {"t": {"tier": "y"}}})
    assert len(caught.value.fields["problems"]) == 2


def test_a_missing_file_and_broken_bytes_are_errors(tmp_path: Path) -> None:
    """A path to nothing and a file that is no UTF-8 both say so."""
    with pytest.raises(ConfigError, match="cannot read the policy"):
        Policy.load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_bytes(b"mode: \xff\xfe")
    with pytest.raises(ConfigError, match="not YAML"):
        Policy.load(broken)
