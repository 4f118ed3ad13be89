"""`toolguard calibrate` end to end on a tiny random model: what it writes, says, and refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import tiny_models
import torch
from click.testing import CliRunner
from made_data import NAMES, labelled, random_agent, tools, unlabelled, write

from toolguard.adapters.guarded_agent import model_facts
from toolguard.adapters.loading import load_model
from toolguard.adapters.wire import get_format
from toolguard.calibration.cli import toolguard
from toolguard.calibration.datasets.dataset import open_dataset
from toolguard.calibration.datasets.record_choice import choose_records, read_menu_file
from toolguard.calibration.datasets.splits import make_splits
from toolguard.calibration.fitting.calibration_run import (
    Progress,
    RunOptions,
    calibrate,
    parse_layers,
)
from toolguard.calibration.fitting.fit_input import FitOptions
from toolguard.calibration.reading.name_rows import distinguishing_token
from toolguard.guard.errors import ConfigError
from toolguard.guard.profile import Profile
from toolguard.guard.tools import Menu
from toolguard.guard.trie import NameTrie

CALLS = 120


def run(*args):
    return CliRunner().invoke(toolguard, ["calibrate", *map(str, args)], prog_name="toolguard")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny checkpoint whose choices differ."""
    return random_agent(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(model, tmp_path_factory):
    """A file of good, call-less, bad and too long records."""
    rows = labelled(model, unlabelled(CALLS, seed=1))
    no_call = unlabelled(3, seed=2)
    too_long = {**rows[0], "id": "long", "query": "word " * 5000}
    path = write(tmp_path_factory.mktemp("data") / "records.jsonl", [*rows, *no_call, too_long])
    with path.open("a") as stream:
        stream.write('{"id": "bad", "query": 1}\n')
    return path


@pytest.fixture(scope="module")
def finished(model, data, tmp_path_factory):
    """One plain run: its result and the folder of the profile."""
    out = tmp_path_factory.mktemp("profile") / "out"
    return run("--model", model, "--data", data, "--out", out, "--json", out.parent / "r.json"), out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_run_writes_a_profile_that_fits_its_model(finished, model):
    """The profile loads, belongs to the model, and knows every tool that was offered."""
    result, out = finished
    assert result.exit_code == 0, result.output
    profile = Profile.load(out)
    profile.verify(model_facts(load_model(str(model)), get_format("hermes")))
    assert set(profile.names) == set(NAMES)
    assert profile.meta.splits.fit + profile.meta.splits.select + profile.meta.splits.test == CALLS
    assert len(profile.meta.metrics["choice"]["candidates"]) == 3 * 4
    assert profile.meta.prefix_ids
    assert {path.name for path in out.iterdir()} == {
        "profile.json",
        "profile.safetensors",
        "seen.safetensors",
        "test_calls.json",
    }


def test_seen_queries_are_those_of_fit_and_select(finished, data):
    """Evaluation can leave out what fitted or selected, and nothing of the test split."""
    splits = make_splits(record for record in open_dataset(data) if record.is_call)
    seen = Profile.load(finished[1]).seen_queries
    assert seen == splits.fingerprints("fit") | splits.fingerprints("select")
    assert seen.isdisjoint(splits.fingerprints("test"))


def test_the_table_says_all_that_matters(finished):
    """Model, format, layer, splits, signals, thresholds and the next step stand on stdout."""
    text = finished[0].stdout
    for words in (
        "model            ",
        "hermes, decision token",
        "best of 12 in 5 folds",
        "model right",
        "readout right",
        "logprob ",
        "activation ",
        "combined ",
        "P(wrong)",
        "0.05  *",
        "3 without a call",
        "1 that could not be read",
        "next             ",
    ):
        assert words in text
    assert not any(len(line) > 160 for line in text.splitlines())


def test_nothing_is_left_out_unseen(finished):
    """Bad lines and records that cannot be read are named on stderr and counted in the JSON."""
    result, out = finished
    assert "problems in the data" in result.stderr
    assert f"records.jsonl:{CALLS + 3 + 1 + 1}: " in result.stderr
    assert "long: record 'long'" in result.stderr
    report = json.loads((out.parent / "r.json").read_text())
    assert [one["id"] for one in report["skipped"]] == ["long"]
    assert len(report["problems"]) >= 1
    assert report["metrics"]["collection"]["no_call"] == 3
    assert report["metrics"]["collection"]["leak_check"]


class StopError(Exception):
    """Stands for an interruption."""


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(finished, model, data, tmp_path):
    """What was read before the interruption is used, and the profile is the unbroken one's."""
    read = []

    def stop(count):
        read.append(count)
        if sum(read) > 60:
            raise StopError

    options = RunOptions(spool=tmp_path / "out" / ".spool", layers=(0, 1, 2))
    with pytest.raises(StopError):
        calibrate(
            load_model(str(model)),
            get_format("hermes"),
            choose_records(open_dataset(data)),
            options,
            FitOptions(),
            Progress(records=stop),
        )
    result = run("--model", model, "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "going on with" in result.stderr
    assert contents(tmp_path / "out") == contents(finished[1])


def test_a_kept_spool_saves_the_reading_and_changes_nothing(model, data, tmp_path):
    """With --keep-spool a second run reads no decision and writes the same profile."""
    args = ("--model", model, "--data", data, "--limit", 60, "--out", tmp_path, "--keep-spool")
    assert run(*args).exit_code == 0
    first = contents(tmp_path)
    shards = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".spool").iterdir()}
    again = run(*args, "--seed", 0)
    assert contents(tmp_path) == first
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / ".spool").iterdir()} == shards
    assert "calls read before" in again.stderr


def test_another_seed_gives_other_splits(finished, model, data, tmp_path):
    """The seed decides the splits."""
    result = run("--model", model, "--data", data, "--out", tmp_path, "--seed", 7, "--layers", "1")
    assert result.exit_code == 0, result.output
    other = Profile.load(tmp_path)
    assert other.meta.layer == 1
    assert other.seen_queries != Profile.load(finished[1]).seen_queries


def test_adding_tools_keeps_every_other_row(finished, model, tmp_path):
    """Tools of a file of records come in; thresholds and all other rows stay bit for bit."""
    out = tmp_path / "out"
    shutil.copytree(finished[1], out)
    before = Profile.load(out)
    rows = labelled(model, unlabelled(40, 5, ("play_song", "buy_book")), wrong_every=1000)
    rows[0]["call"] = rows[1]["call"]
    added = write(tmp_path / "new.jsonl", labelled(model, rows, wrong_every=1000))
    result = run("--model", model, "--add-tools", added, "--out", out, "--json", "-")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    after = Profile.load(out)
    assert {*report["calibrated"], *report["uncalibrated"]} == {"play_song", "buy_book"}
    assert report["calibrated"]
    count = len(before.names)
    assert after.names[:count] == before.names
    assert torch.equal(after.readout.weights[:count], before.readout.weights)
    assert torch.equal(after.means[:count], before.means)
    assert after.meta.risk == before.meta.risk
    assert not (out / ".spool").exists()


def test_the_paper_preset(model, data, tmp_path):
    """The published recipe reads names-only menus at the second-to-last block."""
    result = run("--model", model, "--data", data, "--out", tmp_path, "--preset", "paper")
    assert result.exit_code == 0, result.output
    profile = Profile.load(tmp_path)
    assert (profile.meta.preset, profile.meta.layer, profile.meta.readout) == ("paper", 1, "cosine")
    assert "as published" in result.stdout


@pytest.mark.parametrize("offered", [3, 5])
def test_tools_replace_every_menu(data, offered):
    """A list of tools is offered with every record, and calls it does not offer are counted."""
    names = NAMES[:offered]
    called = [record.call.name for record in open_dataset(data) if record.call]
    chosen = choose_records(open_dataset(data), menu=Menu.of(tools(names)))
    assert chosen.counts["call_not_offered"] == sum(name not in names for name in called)
    for record in chosen:
        assert record.menu.names == names
        assert record.right_names <= set(names)


def test_a_file_of_tools_is_one_menu_or_many(tmp_path):
    """A JSON list is one menu for all; an object is a menus.json; anything else is refused."""
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([{"type": "function", "function": tools(NAMES)[0]}]))
    assert read_menu_file(path).menu.names == NAMES[:1]
    path.write_text(json.dumps({"all": {"tools": tools(NAMES)}}))
    assert (read_menu_file(path).menu, read_menu_file(path).menus) == (None, path)
    assert read_menu_file(None).menu is None
    for bad in ("[", '[{"name": ""}]', '[{"name": "a"}, {"name": "a"}]', "[]"):
        path.write_text(bad)
        with pytest.raises(ConfigError):
            read_menu_file(path)


def test_one_menu_for_all_runs_to_the_end(model, data, tmp_path):
    """--tools reaches the model: the profile holds its tools alone, or says what is missing."""
    menu = tmp_path / "tools.json"
    menu.write_text(json.dumps(tools(NAMES)))
    args = ("--model", model, "--data", data, "--out", tmp_path / "out", "--layers", "0")
    result = run(*args, "--tools", menu, "--min-examples", 1)
    assert result.exit_code == 0, result.output
    assert set(Profile.load(tmp_path / "out").names) == set(NAMES)


def test_a_gate_that_is_not_met_exits_with_3(model, data, tmp_path):
    """--require-coverage fails the run, after the profile was written."""
    args = ("--model", model, "--data", data, "--out", tmp_path, "--layers", "2")
    result = run(*args, "--require-coverage", "1", "--max-risk", "0.01")
    assert result.exit_code == 3, result.output
    assert "is below the 1 required" in result.stderr
    assert Profile.load(tmp_path)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--limit", "5"), 1, "too few"),
        (("--layers", "9"), 2, "the model has blocks 0 to 2"),
        (("--layers", "first"), 2, "all"),
        (("--max-risk", "0"), 2, "--max-risk must lie in"),
        (("--max-risk", "0.1", "--max-risk", "1"), 2, "--max-risk must lie in"),
        (("--signals", "logprob,entropie"), 2, "signals are logprob, activation, entropy"),
        (("--policy", "none.yaml"), 2, "none.yaml"),
        (("--folds", "1"), 2, "--folds"),
        (("--format", "none"), 2, "unknown wire format"),
        (("--add-tools", "x.jsonl"), 2, "cannot be combined with --data"),
    ],
)
def test_mistakes_have_exit_codes_and_no_traceback(model, data, tmp_path, args, code, words):
    """Usage errors give 2, data that does not suffice gives 1, each in one message."""
    result = run("--model", model, "--data", data, "--out", tmp_path, *args)
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_signals_can_be_fixed(model, data, tmp_path):
    """--signals decides what P(wrong) uses; the table says who decided."""
    args = ("--model", model, "--data", data, "--out", tmp_path, "--layers", "1")
    result = run(*args, "--signals", "logprob, entropy")
    assert result.exit_code == 0, result.output
    assert Profile.load(tmp_path).meta.signals == ("logprob", "entropy")
    assert "P(wrong) uses logprob and entropy, fixed by --signals" in result.stdout


def test_data_is_needed(model, tmp_path):
    """Without --data or --add-tools there is nothing to do."""
    result = run("--model", model, "--out", tmp_path)
    assert result.exit_code == 2
    assert "--data" in result.stderr


def test_add_tools_needs_a_profile(model, data, tmp_path):
    """Without a profile in --out there is nothing to add to."""
    result = run("--model", model, "--add-tools", data, "--out", tmp_path)
    assert result.exit_code == 2
    assert "there is no profile" in result.stderr


def test_a_profile_of_another_model_is_not_extended(finished, data, tmp_path):
    """--add-tools checks that the profile belongs to the model."""
    other = tiny_models.save_tiny(tmp_path / "model", seed=3)
    result = run("--model", other, "--add-tools", data, "--out", finished[1])
    assert result.exit_code == 1
    assert "fingerprint" in result.stderr


@pytest.mark.parametrize(
    ("text", "blocks", "expected"),
    [
        (None, 3, (0, 1, 2)),
        (None, 12, tuple(range(12))),
        (None, 36, tuple(range(28, 36))),
        ("all", 14, tuple(range(14))),
        ("late", 4, (0, 1, 2, 3)),
        ("3,1,3", 4, (1, 3)),
    ],
)
def test_layers_are_parsed(text, blocks, expected):
    """All, late, a list, and the default by depth."""
    assert parse_layers(text, blocks) == expected


def test_layers_out_of_range_are_refused():
    """A block that does not exist is an error, not a shorter list."""
    with pytest.raises(ConfigError, match="blocks 0 to 3"):
        parse_layers("2,4", 4)


def test_the_distinguishing_token_is_at_the_first_branch():
    """Shared first tokens say nothing about a tool; a lone path has its first token."""
    trie = NameTrie({"a": (5, 6, 9), "b": (5, 7, 9), "c": (5, 6, 8)})
    assert [distinguishing_token(trie, p) for p in ((5, 6, 9), (5, 7, 9), (5, 6, 8))] == [6, 7, 6]
    assert distinguishing_token(NameTrie({"a": (5, 6)}), (5, 6)) == 5


def test_a_limit_does_not_hang_on_the_order(data):
    """Which records a limit keeps depends on ids and seed."""
    chosen = choose_records(open_dataset(data), limit=30, seed=4)
    assert len(chosen.items) == 30
    assert chosen.counts["beyond_limit"] == CALLS + 1 - 30
    assert [record.id for record in chosen] == [item.id for item in chosen.items]
    other = choose_records(open_dataset(data), limit=30, seed=5)
    assert {item.id for item in other.items} != {item.id for item in chosen.items}
    assert replace(chosen, menu=None) == chosen
