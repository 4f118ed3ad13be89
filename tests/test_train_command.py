"""`toolguard train`: the commands, their help, and what they leave behind."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from training_fixtures import write_data

from toolguard.adapters.loading import load_model
from toolguard.calibration.cli import toolguard
from toolguard.calibration.training.architecture import FAMILIES

TINY = ("--width", "64", "--layers", "2", "--rows", "1", "--steps", "2")
HELP = {
    "agent": (
        "--out",
        "--data",
        "--steps",
        "--seed",
        "--tenths",
        "--family",
        "--keep",
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
    kept = ("--keep", 0, "--keep", 1)
    return run("agent", "--out", out, "--data", data, *TINY, *kept, "--json", "-"), out


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


def test_steps_to_keep_are_kept(trained):
    """Each kept step is a folder that loads, differs from the others, and says which step it is."""
    _, out = trained
    assert sorted(folder.name for folder in (out / "steps").iterdir()) == ["0", "1"]
    for step in (0, 1):
        folder = out / "steps" / str(step)
        assert json.loads((folder / "training.json").read_text())["steps_done"] == step
    weights = [
        load_model(str(folder)).view.unembedding
        for folder in (out / "steps" / "0", out / "steps" / "1", out / "agent")
    ]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_trains(tmp_path, trained, family):
    """Two steps of each architecture leave an agent of that architecture."""
    shutil.copytree(trained[1] / "tokenizer", tmp_path / "tokenizer")  # the slowest part
    result = run("agent", "--out", tmp_path, *TINY, "--family", family)
    assert result.exit_code == 0, result.output
    loaded = load_model(str(tmp_path / "agent"))
    assert loaded.model.config.model_type.removesuffix("_text") == family


def test_missing_data_is_a_usage_error(tmp_path):
    """A --data folder without the sources is exit code 2 with a message, not a traceback."""
    result = run("agent", "--out", tmp_path / "run", "--data", tmp_path, *TINY)
    assert result.exit_code == 2
    assert "snips" in result.stderr
    assert "Traceback" not in result.output
