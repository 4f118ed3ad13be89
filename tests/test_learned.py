"""What an agent learned from is known, said, and can be left out."""

from __future__ import annotations

import hashlib
import json

import click
import pytest
from click.testing import CliRunner

from toolguard.calibration.cli import toolguard
from toolguard.calibration.command_data import open_data
from toolguard.calibration.datasets.dataset import open_dataset
from toolguard.calibration.training.examples import tenth_of

IDS = [f"snips/{number}" for number in range(40)]
LEARNED = (0, 1, 2, 3, 4, 5)


@pytest.fixture
def data(tmp_path):
    """A folder with forty records of a source that agents learn from, and one of another."""
    rows = [
        {"id": name, "source": name.split("/")[0], "split": "all", "query": f"play {name}"}
        | {"menu": "m", "call": {"name": "play", "arguments": {"song": name}}}
        for name in [*IDS, "own/1"]
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tool = {"name": "play", "parameters": {"type": "object", "properties": {"song": {}}}}
    (folder / "menus.json").write_text(json.dumps({"m": {"tools": [tool]}}))
    return folder


@pytest.fixture
def agent(tmp_path, data):
    """A folder that says from which tenths of these records its agent learned."""
    digest = hashlib.sha256((data / "records.jsonl").read_bytes()).hexdigest()
    facts = {"parameters": 1, "recipe": {}, "tenths": LEARNED, "seconds": 1.0, "device": "cpu"}
    facts |= {"threads": 1, "records_sha256": {"snips": digest}}
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "training.json").write_text(json.dumps(facts))
    return folder


def run(*args):
    return CliRunner().invoke(toolguard, ["data", "unseen", *map(str, args)])


def test_what_the_agent_did_not_learn_from_is_written(agent, data, tmp_path):
    """Learned tenths are left out of the sources it learned from; other sources stay whole."""
    out = tmp_path / "out"
    result = run("--model", agent, "--data", data, "--out", out)
    assert result.exit_code == 0, result.output
    kept = [name for name in IDS if tenth_of(name) not in LEARNED]
    assert 0 < len(kept) < len(IDS)
    before = {record.id: record for record in open_dataset([data])}
    written = list(open_dataset([out]))
    assert [record.id for record in written] == [*kept, "own/1"]
    assert all(record.call == before[record.id].call for record in written)
    assert f"{len(kept) + 1} records written" in result.stdout


def test_what_was_learned_must_be_known(data, tmp_path):
    """A model that was trained elsewhere is an error: nobody knows what to leave out."""
    result = run("--model", "some/model", "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "nothing is known of what 'some/model' learned from" in result.stderr


def test_a_data_set_is_not_written_over(agent, data):
    """A folder that holds records is refused, and they stay."""
    before = (data / "records.jsonl").read_bytes()
    result = run("--model", agent, "--data", data, "--out", data)
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert (data / "records.jsonl").read_bytes() == before


def test_nothing_left_is_an_error(agent, data, tmp_path):
    """If the agent learned from all records, no empty data set is written."""
    rows = (data / "records.jsonl").read_text().splitlines()
    learned = [row for row in rows if tenth_of(json.loads(row)["id"]) in LEARNED]
    (data / "records.jsonl").write_text("\n".join(learned[:1]))
    result = run("--model", agent, "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "learned from all of these records" in result.stderr
    assert not (tmp_path / "out").exists()


def test_measuring_on_learned_records_is_said(agent, data, tmp_path, capsys):
    """A file that the agent learned from gets a note; what `data unseen` leaves of it does not."""
    run("--model", agent, "--data", data, "--out", tmp_path / "rest")
    for folder, noted in ((data, True), (tmp_path / "rest", False)):
        with click.Context(click.Command("measure")):
            open_data([folder], model=str(agent))
        told = capsys.readouterr().err
        assert ("the model learned from part of" in told) == noted
