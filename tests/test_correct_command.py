"""`toolguard correct` and the correction that `calibrate` offers, on a tiny random model."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from made_data import labelled, random_agent, unlabelled, write

from toolguard.calibration.cli import toolguard
from toolguard.calibration.commands.correct import command, table
from toolguard.guard.errors import DatasetError
from toolguard.guard.profile import Profile

FREE = {"keep", "redirect", "redirect_above_half"}
SERVED = {*FREE, "between_two"}
METHODS = {*SERVED, "contrast", "re_ask"}
RATE = {"value", "low", "high", "n"}


def correct(*args):
    return CliRunner().invoke(command, [*map(str, args)], prog_name="correct")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_agent(tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="module")
def calibrated(model, tmp_path_factory):
    """Calibrate on records of which every sixth is labelled against the model's choice."""
    folder = tmp_path_factory.mktemp("correct")
    data = write(folder / "fit.jsonl", labelled(model, unlabelled(120, seed=1, menu_size=4)))
    out = folder / "profile"
    args = ["calibrate", "--model", model, "--data", data, "--out", out]
    done = CliRunner().invoke(toolguard, [*map(str, args)])
    assert done.exit_code == 0, done.output
    return done, out, data


@pytest.fixture(scope="module")
def fresh(model, tmp_path_factory):
    rows = labelled(model, unlabelled(40, seed=9, menu_size=4))
    rows += unlabelled(3, seed=10)
    return write(tmp_path_factory.mktemp("fresh") / "records.jsonl", rows)


@pytest.fixture(scope="module")
def result(model, calibrated, fresh):
    _, profile, _ = calibrated
    options = ("--new-tokens", 8, "--flagged", 20, "--json", "-")
    done = correct("--profile", profile, "--model", model, "--data", fresh, *options)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_every_correction_is_measured_on_the_same_calls(result):
    """Each has its cost, its counts, and intervals for tools and for whole calls."""
    assert set(result["methods"]) == METHODS
    assert result["read"] == 40
    assert result["flagged"] == 40  # so few calls cannot show any threshold to be safe
    assert result["without_call"] == 3
    assert result["n"] == 20
    for found in result["methods"].values():
        for part in ("tool", "whole_call"):
            assert set(found[part]["net"]) == set(found[part]["right"]) == RATE
            assert found[part]["net"]["n"] == 20
            assert found[part]["fixed"] + found[part]["broken"] <= 20
        assert sum(found["whole_call"]["outcomes"].values()) == 20
    prompts = {name: found["cost"]["prompts"] for name, found in result["methods"].items()}
    assert prompts == {name: 0 if name in FREE else 1 for name in METHODS}


def test_the_net_gain_is_the_difference_of_the_rates(result):
    """Right after a correction less right before it is what was fixed less what was broken."""
    for part in ("tool", "whole_call"):
        kept = result["methods"]["keep"][part]["right"]["value"]
        for found in result["methods"].values():
            gained = found[part]["right"]["value"] - kept
            assert gained == pytest.approx(found[part]["net"]["value"])


def test_the_table_is_for_people(result):
    """One line a correction, what asking costs, and a verdict in words."""
    text = table(result)
    assert "40 calls read, 40 flagged (nothing is allowed)" in text
    for name in METHODS:
        assert sum(line.startswith(name) for line in text.splitlines()) >= 1
    assert "or ask the user: 1.000" in text
    assert "no correction helps" in text


def test_a_verdict_says_what_the_guard_cannot_do(result):
    """A question that helps is told as such, for the guard does not ask again by itself."""
    assert table({**result, "helps": "contrast"}).endswith("; the guard does not do this by itself")
    assert "by itself" not in table({**result, "helps": "redirect"})


def test_calibrate_says_whether_a_correction_helps(calibrated):
    """The table and the profile agree, and the select split is what it was measured on."""
    done, out, _ = calibrated
    meta = Profile.load(out).meta
    report = meta.metrics["correction"]
    assert set(report["methods"]) == SERVED
    assert report["read"] == meta.splits.select
    assert meta.correction == report["helps"] is None
    assert "no correction helps" in done.output
    assert "redirect: " in done.output


def test_what_calibration_saw_is_left_out(model, calibrated):
    """Of the calibration's own file the test split alone is corrected."""
    _, profile, data = calibrated
    args = ("--profile", profile, "--model", model, "--data", data, "--new-tokens", 0)
    done = correct(*args, "--json", "-")
    found = json.loads(done.stdout)
    assert (found["leaked"], found["read"]) == (90, 30)


def test_nothing_to_correct_is_an_error(model, calibrated, tmp_path):
    """Records without a call leave nothing to flag."""
    _, profile, _ = calibrated
    data = write(tmp_path / "silent.jsonl", unlabelled(3, seed=3))
    done = correct("--profile", profile, "--model", model, "--data", data)
    assert isinstance(done.exception, DatasetError)
    assert "no fresh call is left" in str(done.exception)


def test_bad_records_are_told_and_counted(model, calibrated, fresh, tmp_path):
    """A broken line costs one record, not the run."""
    _, profile, _ = calibrated
    data = tmp_path / "bad.jsonl"
    data.write_text(fresh.read_text() + '{"id": "bad"}\n')
    done = correct(
        *("--profile", profile, "--model", model, "--data", data),
        *("--new-tokens", 0, "--limit", 30, "--json", "-"),
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bad_records"] >= 1
    assert "bad.jsonl:44" in done.stderr
