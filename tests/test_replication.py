"""The replication: what can be read by label, whose records are asked, and the tables."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from training_fixtures import catalog_tokenizer, tiny_agent, write_data

from toolguard.adapters.loading import load_model
from toolguard.adapters.wire import get_format
from toolguard.calibration.cli import toolguard
from toolguard.calibration.datasets.dataset_writing import write_dataset
from toolguard.calibration.fitting.named_readout import NamedStates, fit_named
from toolguard.calibration.replication.claims import SECTIONS
from toolguard.calibration.replication.readability import (
    ReadabilityOptions,
    measure_readability,
)
from toolguard.calibration.replication.replicate import Subject, kept_steps
from toolguard.calibration.replication.sources import Need, source_records
from toolguard.calibration.replication.table import NOT_RUN, cell, replication_table, write_into
from toolguard.calibration.training.examples import tenth_of
from toolguard.calibration.training.learned import agent_facts
from toolguard.guard.errors import CalibrationError, ConfigError

HERMES = get_format("hermes")
SMALL = ("--limit", "60", "--turns", "4", "--pairs", "4")


def run(*args):
    return CliRunner().invoke(toolguard, ["replicate", *map(str, args)], prog_name="toolguard")


# --- readouts by label


def test_states_far_apart_are_read_by_name():
    """A state is given to the name whose mean is nearest; a name without a mean scores -inf."""
    states = torch.eye(4).repeat(6, 1) + 0.01 * torch.arange(24.0)[:, None]
    names = ["a", "b", "c", "d"] * 6
    given = NamedStates(ids=[str(n) for n in range(24)], names=names, states=states)
    readout = fit_named("cosine", given.first(2))
    (scores,) = readout.menu_scores(states[1:2], [["x", "a", "b"]])
    assert scores[0] == -torch.inf
    assert int(scores.argmax()) == 2


def test_the_first_states_hang_on_the_ids_alone():
    """Which queries make a mean does not hang on the order in which they come."""
    ids, names = [str(n) for n in range(20)], ["a", "b"] * 10
    states = torch.arange(40.0).view(20, 2)
    turned = list(reversed(range(20)))
    given = NamedStates(ids=ids, names=names, states=states)
    assert sorted(given.first(3).ids) == sorted(given.at(turned).first(3).ids)
    assert sorted(given.first(3).names) == ["a"] * 3 + ["b"] * 3


def test_no_state_is_no_readout():
    """Without a state there is a typed error, not a readout of nothing."""
    with pytest.raises(CalibrationError, match="no hidden state"):
        fit_named("cosine", NamedStates(ids=[], names=[], states=torch.zeros(0, 3)))


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """Give the folder of an untrained agent that names the tenths it would have learned from."""
    folder = tmp_path_factory.mktemp("agent")
    tiny_agent().save_pretrained(folder)
    catalog_tokenizer().save_pretrained(folder)
    facts = {"parameters": 1, "recipe": {}, "tenths": [0, 1, 2, 3, 4, 5], "records_sha256": {}}
    facts |= {"seconds": 0, "device": "cpu", "threads": 1}
    (folder / "training.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_every_readout_is_measured_at_every_block(agent):
    """Accuracies of the model and of three readouts a block come with n and an interval."""
    records = source_records("curated", Need(data=None, learned=(), limit=40, seed=0))
    options = ReadabilityOptions(layers=(0, 1), turns=3)
    told = measure_readability(load_model(str(agent)), HERMES, records, options)
    assert (told["n"], told["written"]["n"], told["chosen"]["n"]) == (40, 3, 40)
    assert {(row["readout"], row["layer"]) for row in told["read"]} == {
        (readout, layer) for readout in ("cosine_3", "cosine", "lda") for layer in (0, 1)
    }
    assert all(row["accuracy"]["n"] == 40 for row in told["read"])


# --- whose records


def test_records_that_an_agent_learned_from_are_not_asked(agent, data):
    """Human-written records of learned tenths are left out; a foreign model is asked everything."""
    facts = agent_facts(str(agent))
    assert facts is not None
    learned = facts.tenths
    need = Need(data=data, learned=learned, limit=1000, seed=0)
    asked = source_records("snips", need)
    assert asked
    assert all(tenth_of(record.id) not in learned for record in asked)
    assert agent_facts("some/model") is None
    assert len(source_records("snips", Need(data=data, learned=(), limit=999, seed=0))) > len(asked)


def test_a_written_data_set_says_what_the_records_say(data, tmp_path):
    """Records come back from their files with the same menus, conversations and labels."""
    records = source_records("clinc150", Need(data=data, learned=(), limit=20, seed=0))
    back = list(write_dataset(records, tmp_path))
    assert [record.call for record in back] == [record.call for record in records]
    assert [record.menu.content_hash for record in back] == [r.menu.content_hash for r in records]
    assert [record.conversation for record in back] == [record.conversation for record in records]


@pytest.mark.parametrize(
    ("source", "words"), [("nowhere", "unknown source"), ("snips", "needs --data")]
)
def test_a_source_that_is_not_there_is_refused(source, words):
    """An unknown source, and a public one without data, end in a clear error."""
    with pytest.raises(ConfigError, match=words):
        source_records(source, Need(data=None, learned=(), limit=1, seed=0))


def test_subjects_have_a_title():
    """A column's title is the name before the sign, or the model itself."""
    assert Subject.parse("small=runs/x") == Subject(name="small", model="runs/x")
    assert Subject.parse("reference").name == "reference"
    with pytest.raises(ConfigError, match="NAME=MODEL"):
        Subject.parse("small=")


def test_steps_rise_and_must_be_there(tmp_path):
    """Kept steps come in the order of training; a folder without any is an error."""
    for name in ("1000", "20", "notes"):
        (tmp_path / name).mkdir()
    assert list(kept_steps(tmp_path)) == [20, 1000]
    with pytest.raises(ConfigError, match="no kept steps"):
        kept_steps(tmp_path / "notes")


# --- the tables


def test_a_cell_shows_value_interval_and_n():
    """Shares are in per cent, other numbers are not, and nothing is shown as a dash."""
    rate = {"value": 0.9731, "low": 0.948, "high": 0.986, "n": 300}
    assert cell(rate, percent=True) == "97.3 [94.8, 98.6] n=300"
    assert cell(rate, percent=False) == "0.973 [0.948, 0.986] n=300"
    assert cell(None, percent=True) == "-"
    assert cell({**rate, "value": None}, percent=True) == "-"


def test_a_page_without_marks_is_left_alone(tmp_path):
    """Where there is no place for the tables nothing is written."""
    page = tmp_path / "page.md"
    page.write_text("words\n")
    with pytest.raises(ConfigError, match="no place"):
        write_into(page, "table")
    assert page.read_text() == "words\n"


@pytest.fixture(scope="module")
def replicated(agent, data, tmp_path_factory):
    """Give the result of a small run, its page and its work folder."""
    folder = tmp_path_factory.mktemp("replication")
    page = folder / "page.md"
    page.write_text("before\n<!-- replication -->\nold\n<!-- end -->\nafter\n")
    steps = folder / "steps"
    shutil.copytree(agent, steps / "0")
    words = ("--model", f"tiny={agent}", "--steps", steps, "--data", data)
    words += ("--sources", "curated,snips", "--work", folder / "work", "--page", page, *SMALL)
    result = run(*words, "--json", folder / "all.json")
    assert result.exit_code == 0, result.output
    return result, page, folder, words


def test_the_page_gets_every_claim_and_says_what_was_not_run(replicated):
    """Each claim has a row a source; larger models stand there as not run."""
    _, page, folder, _ = replicated
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    for section in SECTIONS:
        for claim in section.claims:
            rows = [line for line in text.splitlines() if line.startswith(f"| {claim.words} |")]
            assert len(rows) == 2
            assert all(row.endswith("| not run |") for row in rows)
    assert NOT_RUN in text
    told = json.loads((folder / "all.json").read_text())
    assert list(told["steps"]) == ["0"]
    assert replication_table(told) in text


def test_a_run_goes_on_where_it_stopped(replicated):
    """What was measured before is read back, not measured again."""
    first, _, folder, words = replicated
    times = {path: path.stat().st_mtime_ns for path in (folder / "work").rglob("all.json")}
    again = run(*words)
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    assert times == {path: path.stat().st_mtime_ns for path in (folder / "work").rglob("all.json")}


def test_two_columns_of_one_title_are_refused(agent, tmp_path):
    """A title names one model."""
    result = run("--model", agent, "--model", agent, "--work", tmp_path)
    assert result.exit_code == 2
    assert "one name" in result.output
