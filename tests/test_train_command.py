"""`toolguard train`: the commands, their help, and what they leave behind."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from training_fixtures import write_data

from toolguard.adapters.loading import load_model
from toolguard.calibration.cli import toolguard

TINY = ("--width", "64", "--layers", "2", "--rows", "1", "--steps", "2")
HELP = {
    "agent": (
        "--out",
        "--data",
        "--steps",
        "--seed",
        "--tenths",
        "--device",
        "--json",
        "log.jsonl",
    ),
    "card": ("--model", "--data", "--seed", "--limit", "--generated", "--json", "README.md"),
}


def run(*args):
    return CliRunner().invoke(toolguard, ["train", *map(str, args)], prog_name="toolguard")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """Give the result of a two-step run and its folder."""
    out = tmp_path_factory.mktemp("run")
    return run("agent", "--out", out, "--data", data, *TINY, "--json", "-"), out


@pytest.mark.parametrize("name", HELP)
def test_help(name):
    """The help of each command names its options and what it writes."""
    result = run(name, "--help")
    assert result.exit_code == 0
    assert [word for word in HELP[name] if word not in result.stdout] == []


def test_two_steps_give_an_agent(trained):
    """A run leaves a log, a checkpoint, and a folder that every --model takes."""
    result, out = trained
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"agent": str(out / "agent")}
    assert "loss" in (out / "log.jsonl").read_text()
    assert (out / "checkpoint.pt").exists()
    loaded = load_model(str(out / "agent"))
    assert loaded.view.hidden_size == 64
    assert len(loaded.view.blocks) == 2


def test_the_run_is_written_down(trained):
    """training.json says what the model card needs: recipe, tenths, data hashes, times."""
    _, out = trained
    facts = json.loads((out / "agent" / "training.json").read_text())
    assert facts["recipe"]["steps"] == 2
    assert facts["tenths"] == [0, 1, 2, 3, 4, 5]
    assert sorted(facts["records_sha256"]) == ["clinc150", "hwu64", "snips"]
    assert facts["seconds"] >= 0
    assert facts["cpu_seconds"] >= 0


def test_weights_are_small_and_safe(trained):
    """Weights ship as bfloat16 in safetensors, and no pickle goes with them."""
    _, out = trained
    names = {path.name for path in (out / "agent").iterdir()}
    assert "model.safetensors" in names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert json.loads((out / "agent" / "config.json").read_text())["dtype"] == "bfloat16"


def test_missing_data_is_a_usage_error(tmp_path):
    """A --data folder without the sources is exit code 2 with a message, not a traceback."""
    result = run("agent", "--out", tmp_path / "run", "--data", tmp_path, *TINY)
    assert result.exit_code == 2
    assert "snips" in result.stderr
    assert "Traceback" not in result.output
