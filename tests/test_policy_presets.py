"""The presets, and how a file's own keys stand over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml

from toolguard.guard.policy import Policy
from toolguard.guard.policy_presets import PRESETS, PresetName

ROOT = Path(__file__).resolve().parents[1]


def tiered(preset: str, **more: object) -> Policy:
    """Give a preset with one listed tool in each default tier, named after it."""
    tools = {tier: {"tier": tier} for tier in ("read", "write", "irreversible")}
    return Policy.load({"preset": preset, "tools": tools, **more})


def test_every_preset_has_its_name() -> None:
    """The names that a file may give are those of the table."""
    assert set(get_args(PresetName)) == set(PRESETS)


def test_monitor_lets_everything_run() -> None:
    """It watches and judges what is unlisted too."""
    policy = tiered("monitor")
    assert (policy.mode, policy.unlisted) == ("monitor", "judge")
    assert {policy.rule_for(name) for name in (*policy.tiers, "other")} == {"judge"}


@pytest.mark.parametrize("preset", ["staging", "strict"])
def test_staging_and_strict_close_the_unknown_and_ask_before_harm(preset: str) -> None:
    """Unlisted and uncalibrated tools are denied; a person confirms every irreversible call."""
    policy = tiered(preset)
    assert (policy.mode, policy.unlisted, policy.uncalibrated) == ("enforce", "deny", "deny")
    assert policy.rule_for("irreversible") == "confirm"
    assert policy.doubtful_action("write") == "confirm"
    assert policy.rule_for("unlisted") == "deny"


def test_strict_is_stricter_than_staging() -> None:
    """Lower risk targets by tier, doubtful irreversible calls vetoed, unknown arguments refused."""
    staging, strict = tiered("staging"), tiered("strict")
    assert [strict.risk_target_for(tier) for tier in strict.tiers] == [0.05, 0.02, 0.01]
    assert [staging.risk_target_for(tier) for tier in staging.tiers] == [None, None, None]
    assert strict.doubtful_action("irreversible") == "veto"
    assert (staging.unknown_arguments, strict.unknown_arguments) == ("allow", "deny")


def test_the_files_keys_go_before_the_presets() -> None:
    """One key of one tier is changed, the preset's others stand."""
    policy = tiered(
        "strict", mode="monitor", tiers={"irreversible": {"risk_target": 0.005}}, risk_target=0.1
    )
    assert policy.mode == "monitor"
    assert policy.unlisted == "deny"
    assert policy.risk_target == 0.1
    irreversible = policy.tiers["irreversible"]
    assert (irreversible.risk_target, irreversible.rule) == (0.005, "confirm")
    assert policy.tiers["read"].risk_target == 0.05


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_written_out_is_the_same_policy(preset: str) -> None:
    """All keys of a loaded preset, loaded again, give an equal policy with the same hash."""
    policy = tiered(preset)
    again = Policy.load(json.loads(policy.model_dump_json()))
    assert again == policy
    assert again.content_hash == policy.content_hash


def test_the_json_schema_takes_what_the_loader_takes() -> None:
    """The schema is a valid one, explains each key, and accepts the example and every preset."""
    schema = Policy.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    example = yaml.safe_load((ROOT / "examples" / "policy.yaml").read_text("utf-8"))
    for content in (example, *({"preset": name} for name in PRESETS)):
        assert list(validator.iter_errors(content)) == []
    assert all("description" in entry for entry in schema["properties"].values())


@pytest.mark.parametrize(
    "content", [{"modus": "enforce"}, {"tools": {"t": {"rul": "deny"}}}, {"mode": "enforced"}]
)
def test_the_json_schema_refuses_what_the_loader_refuses(content: dict[str, object]) -> None:
    """An editor marks unknown keys and values."""
    assert list(jsonschema.Draft202012Validator(Policy.json_schema()).iter_errors(content))
