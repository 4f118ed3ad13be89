"""`toolguard report`: what it reads, writes, says and refuses."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from reported_profiles import EVALUATION, reported

from toolguard.calibration.cli import CommandEntry, LazyGroup
from toolguard.calibration.report.tested_calls import FILE

MODULE = "toolguard.calibration.commands.report"
GROUP = LazyGroup(name="toolguard", entries={"report": CommandEntry(MODULE, "Write a page.")})


def run(*args):
    return CliRunner().invoke(GROUP, ["report", *map(str, args)], prog_name="toolguard")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A profile's folder as calibrate leaves it; read it, never change it."""
    folder = tmp_path_factory.mktemp("reported")
    made = reported(400)
    made.profile.save(folder)
    made.tested.save(folder)
    return folder


@pytest.fixture
def data(folder, tmp_path):
    """Records with the ids of the test calls, each with a query of its own."""
    calls = json.loads((folder / FILE).read_text())["calls"]
    rows = [
        {
            "id": call["record_id"],
            "source": "made",
            "split": "all",
            "query": f"what {call['record_id']} asks",
            "tools": [{"name": "tool_0"}],
            "call": {"name": "tool_0"},
        }
        for call in calls
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_it_writes_one_page_and_says_what_it_lacks(folder, tmp_path):
    """The file is a whole page; what would make it fuller is told on stderr."""
    done = run("--profile", folder, "--out", tmp_path / "report.html")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"saved {tmp_path / 'report.html'}\n"
    assert "--evaluation" in done.stderr
    assert "--data" in done.stderr
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert "asks" not in page.split("<blockquote>", 1)[-1] or "<blockquote>" not in page


def test_queries_come_with_the_data_only(folder, data, tmp_path):
    """With --data the examples have their queries."""
    out = tmp_path / "report.html"
    done = run("--profile", folder, "--out", out, "--data", data)
    assert done.exit_code == 0, done.output
    assert "<blockquote>what r" in out.read_text()
    run("--profile", folder, "--out", out)
    assert "what r" not in out.read_text()


def test_an_evaluation_adds_its_section_and_json_tells_the_rest(folder, tmp_path):
    """The section is there, and --json says where the page is and what it lacks."""
    (tmp_path / "evaluate.json").write_text(json.dumps(EVALUATION))
    out = tmp_path / "report.html"
    done = run(
        *("--profile", folder, "--out", out),
        *("--evaluation", tmp_path / "evaluate.json", "--json", "-"),
    )
    assert done.exit_code == 0, done.output
    assert "On other data" in out.read_text()
    found = json.loads(done.stdout)
    assert found["out"] == str(out)
    assert len(found["missing"]) == 1


def test_the_same_input_gives_the_same_page(folder, tmp_path):
    """Nothing on it hangs on the time or on chance."""
    for name in ("one.html", "two.html"):
        run("--profile", folder, "--out", tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--profile", "nowhere", "--out", "OUT"], "no profile at nowhere"),
        (["--profile", "FOLDER", "--out", "missing/report.html"], "cannot write"),
        (["--profile", "FOLDER", "--out", "OUT", "--evaluation", "none.json"], "not an evaluation"),
        (["--profile", "FOLDER", "--out", "OUT", "--evaluation", "OTHER"], "it has no signals"),
        (["--profile", "FOLDER", "--out", "OUT", "--data", "RECORDS"], "none of 100 test calls"),
    ],
)
def test_mistakes_are_told_without_a_traceback(folder, tmp_path, options, words):
    """What cannot be read or written exits with 2, names it, and gives a hint."""
    (tmp_path / "other.json").write_text('{"n": 3}')
    row = {"id": "x", "source": "s", "split": "s", "query": "q", "tools": [], "call": None}
    (tmp_path / "records.jsonl").write_text(json.dumps(row))
    places = {
        "FOLDER": folder,
        "OUT": tmp_path / "report.html",
        "OTHER": tmp_path / "other.json",
        "RECORDS": tmp_path / "records.jsonl",
    }
    done = run(*(places.get(option, option) for option in options))
    assert done.exit_code == 2
    assert words in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "report.html").exists()


def test_a_foreign_file_of_calls_is_refused(folder, tmp_path):
    """Test calls of another calibration would tell about another P(wrong)."""
    copy = tmp_path / "profile"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    other = reported(200, seed=5)
    other.tested.save(copy)
    done = run("--profile", copy, "--out", tmp_path / "report.html")
    assert done.exit_code == 1
    assert "another calibration" in done.stderr
