"""`toolguard guarantee` end to end on a tiny random model: what it says, writes and refuses."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from made_data import labelled, random_agent, unlabelled, write

from toolguard.calibration.cli import toolguard
from toolguard.calibration.commands.guarantee import command
from toolguard.calibration.datasets.splits import query_fingerprint
from toolguard.guard.errors import DatasetError
from toolguard.guard.profile import Profile

FEW = ("--splits", 20, "--repeats", 10, "--window", 50)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny checkpoint whose choices differ."""
    return random_agent(tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A policy whose tiers ask for targets that are not among the standing ones."""
    path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    path.write_text(
        "mode: enforce\n"
        "risk_target: 0.3\n"
        "tiers:\n"
        "  read: {risk_target: 0.4}\n"
        "  irreversible: {risk_target: 0.25}\n"
        "tools:\n"
        "  '*': {tier: read}\n"
    )
    return path


@pytest.fixture(scope="module")
def profile(model, policy, tmp_path_factory):
    """A profile with a threshold for each of the policy's targets."""
    folder = tmp_path_factory.mktemp("guarantee")
    data = write(folder / "fit.jsonl", labelled(model, unlabelled(120, seed=1)))
    done = CliRunner().invoke(
        toolguard,
        [
            *("calibrate", "--model", str(model), "--data", str(data)),
            *("--out", str(folder / "profile"), "--policy", str(policy), "--layers", "1"),
            *("--max-risk", "0.35", "--max-risk", "0.45"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert "tier read" in done.output
    assert "tier irreversible" in done.output
    return folder / "profile"


@pytest.fixture(scope="module")
def fresh(model, tmp_path_factory):
    """Records that the profile has not seen."""
    rows = labelled(model, unlabelled(160, seed=9))
    return write(tmp_path_factory.mktemp("fresh") / "records.jsonl", rows)


@pytest.fixture(scope="module")
def shifted(model, tmp_path_factory):
    """Records labelled otherwise: every second call is wrong."""
    rows = labelled(model, unlabelled(80, seed=10), wrong_every=2)
    return write(tmp_path_factory.mktemp("shifted") / "records.jsonl", rows)


def run(*args):
    return CliRunner().invoke(command, [*map(str, args)], prog_name="toolguard guarantee")


def test_every_target_of_the_policy_has_a_threshold(profile):
    """The policy's targets and each --max-risk stand beside the standing ones; the first counts."""
    meta = Profile.load(profile).meta
    assert {entry.target for entry in meta.risk} == {
        *(0.01, 0.02, 0.05, 0.1, 0.2),
        *(0.25, 0.3, 0.35, 0.4, 0.45),
    }
    assert meta.requested_risk.target == 0.35


def test_a_run_says_and_writes_what_the_thresholds_are_worth(
    profile, model, fresh, shifted, policy, tmp_path
):
    """Splits, thresholds here and elsewhere, tiers and drift are in table and JSON."""
    path = tmp_path / "found.json"
    given = ("--profile", profile, "--model", model, "--data", fresh, "--shifted", shifted)
    done = run(*given, "--policy", policy, *FEW, "--json", path)
    assert done.exit_code == 0, done.output
    found = json.loads(path.read_text())
    assert found["data"]["same"]["calls"] == 160
    assert found["data"]["shifted"]["calls"] == 80
    assert len(found["splits"]) == 10
    assert all(row["splits"] == 20 for row in found["splits"])
    assert [row["tier"] for row in found["tiers"]] == ["read", "write", "irreversible"]
    assert found["tiers"][0]["target"] == 0.4
    assert [row["window"] for row in found["drift"]["windows"]] == [50]
    assert found["drift"]["windows"][0]["false_alarm"]["n"] == 10
    for words in ("20 splits", "shifted calls", "each tier's own tools", "drift test"):
        assert words in done.stdout


def test_without_shifted_records_the_shift_is_left_out(profile, model, fresh):
    """The promise alone can be checked; JSON goes to stdout and the table to stderr."""
    done = run("--profile", profile, "--model", model, "--data", fresh, *FEW, "--json", "-")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["data"]["shifted"] is None
    assert found["drift"]["windows"][0]["detected"]["value"] is None
    assert "shifted" not in done.stderr


def test_seen_records_are_left_out(profile, model):
    """Data that calibration used gives its test split alone, or nothing at all."""
    data = profile.parent / "fit.jsonl"
    done = run("--profile", profile, "--model", model, "--data", data, *FEW, "--json", "-")
    found = json.loads(done.stdout)
    counts = Profile.load(profile).meta.splits
    assert found["data"]["same"]["leaked"] == counts.fit + counts.select
    assert found["data"]["same"]["calls"] == counts.test


def test_data_without_a_fresh_call_is_refused(profile, model, tmp_path):
    """Where every record took part there is nothing to verify."""
    seen = Profile.load(profile).seen_queries
    rows = [json.loads(line) for line in (profile.parent / "fit.jsonl").read_text().splitlines()]
    used = [row for row in rows if query_fingerprint(row["query"]) in seen][:5]
    data = write(tmp_path / "seen.jsonl", used)
    done = run("--profile", profile, "--model", model, "--data", data)
    assert isinstance(done.exception, DatasetError)
    assert "5 records took part in calibration" in str(done.exception)


@pytest.mark.parametrize(
    ("args", "words"),
    [(("--policy", "none.yaml"), "none.yaml"), (("--window", "3"), "--window")],
)
def test_mistakes_are_told(profile, model, fresh, args, words):
    """A policy that is not there and a window below what the test takes are named."""
    done = run("--profile", profile, "--model", model, "--data", fresh, "--splits", 2, *args)
    assert done.exit_code != 0
    assert words in f"{done.exception}{done.output}"
