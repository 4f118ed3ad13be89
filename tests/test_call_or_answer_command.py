"""Whole commands on a tiny random model: a gate is made, kept, measured, and left out."""

from __future__ import annotations

import json
import re

import pytest
import torch
from click.testing import CliRunner
from made_data import labelled, random_agent, unlabelled, write

from toolguard.calibration.cli import toolguard
from toolguard.calibration.commands.call_or_answer import command
from toolguard.calibration.datasets.near_duplicates import query_fingerprint
from toolguard.guard.profile import Profile

RATE = {"value", "low", "high", "n"}
KINDS = {"answer", "ask"}


def silent(count, seed):
    """Records that call for no tool, a third of them because something is missing."""
    rows = unlabelled(count, seed)
    for place, row in enumerate(rows):
        row["tags"] = ["abstain", *(["missing_parameter"] if place % 3 == 0 else [])]
    return rows


def run(*args):
    return CliRunner().invoke(toolguard, [*map(str, args)], prog_name="toolguard")


def survey(*args):
    return CliRunner().invoke(command, [*map(str, args)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_agent(tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="module")
def data(model, tmp_path_factory):
    rows = [*labelled(model, unlabelled(120, seed=1)), *silent(180, seed=2)]
    return write(tmp_path_factory.mktemp("data") / "records.jsonl", rows)


@pytest.fixture(scope="module")
def fresh(model, tmp_path_factory):
    rows = [*labelled(model, unlabelled(40, seed=9)), *silent(90, seed=10)]
    return write(tmp_path_factory.mktemp("fresh") / "records.jsonl", rows)


@pytest.fixture(scope="module")
def calibrated(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "profile"
    done = run("calibrate", "--model", model, "--data", data, "--out", folder, "--layers", "1,2")
    assert done.exit_code == 0, done.output
    return done, folder


def test_calibrate_makes_a_gate_of_records_without_a_call(calibrated, data):
    """The profile knows both kinds, says so in its table, and remembers the queries it used."""
    done, folder = calibrated
    profile = Profile.load(folder)
    section = profile.meta.call_or_answer
    assert set(section.kinds) == KINDS
    assert section.layer in (1, 2)
    assert "call or answer, read at layer" in done.stdout
    assert "should be a question" in done.stdout
    targets = [entry.target for entry in section.kinds["answer"].risk]
    assert targets == [entry.target for entry in profile.meta.risk]
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    turns = section.metrics["turns"]
    used = sum(query_fingerprint(r["query"]) in profile.seen_queries for r in rows)
    assert used == len(rows) - sum(turns["test"].values())


def test_check_shows_what_the_gate_says(calibrated, model):
    """One reading tells, beside P(wrong), whether there should be a call at all."""
    args = ("--profile", calibrated[1], "--model", model, "--query", "find a book about birds")
    done = run("check", *args)
    assert done.exit_code == 0, done.output
    assert re.search(r"^P\(should be an answer\) [01]\.\d{4}$", done.stdout, re.MULTILINE)
    assert re.search(r"^P\(should be a question\) [01]\.\d{4}$", done.stdout, re.MULTILINE)
    found = json.loads(run("check", *args, "--json", "-").stdout)
    assert set(found["no_call"]) == KINDS


def test_an_evaluation_measures_it_on_fresh_turns(calibrated, model, fresh, data):
    """`evaluate` has a section with every signal by source, and the gate's own rates."""
    args = ("--profile", calibrated[1], "--model", model, "--steering", 0, "--votes", "logprob")
    done = run("evaluate", *args, "--data", fresh, "--json", "-")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["call_or_answer"]
    assert found["sources"]["made"]["n"] == {"answer": 60, "ask": 30, "call": 40}
    assert set(found["gate"]) == KINDS
    for kind in KINDS:
        assert set(found["sources"]["made"]["kinds"][kind]["logprob"]["auroc"]) == RATE
        assert found["gate"][kind]["n"]["call"] == 40
    assert "call or answer, cross-fitted" in done.stderr
    again = run("evaluate", *args, "--data", data, "--json", "-")
    turns = Profile.load(calibrated[1]).meta.call_or_answer.metrics["turns"]["test"]
    assert json.loads(again.stdout)["call_or_answer"]["sources"]["made"]["n"] == turns


def test_an_evaluation_may_leave_it_out(calibrated, model, fresh):
    """Without queries that call for no tool there is nothing to measure."""
    args = ("--profile", calibrated[1], "--model", model, "--steering", 0, "--votes", "logprob")
    done = run("evaluate", *args, "--data", fresh, "--no-call", 0, "--json", "-")
    assert json.loads(done.stdout)["call_or_answer"] is None


def test_added_tools_leave_the_gate(calibrated, model, tmp_path):
    """--add-tools keeps the gate bit for bit."""
    before = Profile.load(calibrated[1])
    before.save(tmp_path)
    rows = labelled(model, unlabelled(40, 5, ("play_song", "buy_book")), wrong_every=1000)
    added = write(tmp_path / "new.jsonl", rows)
    done = run("calibrate", "--model", model, "--add-tools", added, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    after = Profile.load(tmp_path)
    assert len(after.names) > len(before.names)
    assert after.meta.call_or_answer == before.meta.call_or_answer
    assert torch.equal(after.gate.readout.weights, before.gate.readout.weights)


def test_a_few_records_make_no_gate(model, tmp_path):
    """Too few records without a call are reported, and the profile is as it would be without."""
    rows = labelled(model, unlabelled(60, seed=1))
    data = write(tmp_path / "records.jsonl", [*rows, *silent(5, seed=2)])
    out = tmp_path / "profile"
    done = run("calibrate", "--model", model, "--data", data, "--out", out, "--layers", "1")
    assert done.exit_code == 0, done.output
    assert Profile.load(out).gate is None
    assert "5 records without a call are too few" in done.stderr


def test_a_survey_needs_no_profile(model, fresh):
    """`call-or-answer` measures any model on any records, as a table or as JSON."""
    done = survey("--model", model, "--data", fresh, "--layers", "1", "--most", 40, "--json", "-")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["gate"], found["layers"], found["skipped"]) == (None, [1], 0)
    assert found["sources"]["made"]["n"] == {"answer": 40, "ask": 30, "call": 40}
    assert "cross-fitted within each source" in done.stderr


def test_a_survey_leaves_out_what_a_profile_has_seen(calibrated, model, data):
    """With a profile only queries that calibration did not use are measured."""
    done = survey("--model", model, "--data", data, "--profile", calibrated[1], "--json", "-")
    assert done.exit_code == 0, done.output
    turns = Profile.load(calibrated[1]).meta.call_or_answer.metrics["turns"]["test"]
    assert json.loads(done.stdout)["sources"]["made"]["n"] == turns


def test_a_survey_of_nothing_is_an_error(model, tmp_path):
    """Where no record tells what is right to do next there is no table of nothing."""
    data = tmp_path / "bad.jsonl"
    data.write_text('{"id": "bad"}\n')
    done = run("call-or-answer", "--model", model, "--data", data)
    assert done.exit_code == 2
    assert "problems in the data: 1" in done.stderr
    assert "no record tells whether to call" in done.stderr
