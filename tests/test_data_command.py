"""`toolguard data`: tables, JSON, and exit codes."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from toolguard.calibration.cli import toolguard

TOOLS = [{"name": "lamp.on"}, {"name": "kettle.boil"}]


def run(*args):
    return CliRunner().invoke(toolguard, ["data", *map(str, args)], prog_name="toolguard")


def line(number, **fields):
    given = {"id": f"own/{number}", "source": "own", "split": "all", "query": "light", "menu": "m"}
    return given | {"call": {"name": "lamp.on"}} | fields


@pytest.fixture
def folders(tmp_path):
    """A good folder of two records and one with three bad lines, a bad menu and one good line."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    rows = {
        good: [line(1), line(2, call=None)],
        bad: [line(3), line(4, surprise=1), line(5, call={"name": "x"}, query=1), "{"],
    }
    menus = {good: {"m": {"tools": TOOLS}}, bad: {"m": {"tools": TOOLS}, "n": {"tools": []}}}
    for folder, lines in rows.items():
        folder.mkdir()
        texts = [text if isinstance(text, str) else json.dumps(text) for text in lines]
        (folder / "records.jsonl").write_text("\n".join(texts))
        (folder / "menus.json").write_text(json.dumps(menus[folder]))
    return good, bad


def test_valid_files_give_a_table_and_exit_0(folders):
    """A clean file is one row of counts."""
    result = run("validate", folders[0])
    assert result.exit_code == 0
    head, row = result.stdout.splitlines()
    assert head.split() == ["file", "records", "calls", "no-call", "tools", "menus", "problems"]
    assert row.split() == [str(folders[0] / "records.jsonl"), "2", "1", "1", "2", "1", "0"]


def test_bad_records_are_all_listed_and_exit_1(folders):
    """Every fault is a line with file, line and field; the good records are counted."""
    result = run("validate", *folders)
    path = folders[1] / "records.jsonl"
    lines = result.stdout.splitlines()
    assert result.exit_code == 1
    assert lines[3].split() == ["total", "3", "2", "1", "2", "1", "5"]
    assert [text.rsplit(": ", 1)[0] for text in lines[4:8]] == [
        f"{folders[1] / 'menus.json'}: n.tools",
        f"{path}:2: surprise",
        f"{path}:3: query",
        f"{path}:3: call",
    ]
    assert lines[8].startswith(f"{path}:4: not JSON")
    assert "problems: 5" in result.stderr


def test_json_goes_to_stdout_and_the_table_to_stderr(folders):
    """With `--json -` stdout is one JSON value."""
    result = run("validate", *folders, "--json", "-")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [file["records"] for file in report["files"]] == [2, 1]
    assert report["total"]["no_call"] == 1
    assert {problem["line"] for problem in report["problems"]} == {0, 2, 3, 4}
    assert len(report["content_hash"]) == 64
    assert "no-call" in result.stderr


def test_json_goes_to_a_file_beside_the_table(folders, tmp_path):
    """With `--json FILE` the table stays on stdout."""
    result = run("validate", folders[0], "--json", tmp_path / "report.json")
    assert "no-call" in result.stdout
    assert json.loads((tmp_path / "report.json").read_text())["problems"] == []


@pytest.mark.parametrize("args", [["validate"], ["validate", "absent.jsonl"], ["validate", "."]])
def test_usage_and_missing_files_exit_2(args, tmp_path, monkeypatch):
    """No path, a path that is not there, and a folder without records are the user's to fix."""
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_a_record_without_tools_counts(tmp_path):
    """A valid record that offers no tools adds to records and to no menu."""
    path = tmp_path / "records.jsonl"
    fields = {key: value for key, value in line(1, tools=[], call=None).items() if key != "menu"}
    path.write_text(json.dumps(fields))
    row = run("validate", path).stdout.splitlines()[1].split()
    assert row[1:] == ["1", "0", "1", "0", "0", "0"]


def test_import_writes_what_validate_accepts(tmp_path):
    """An import says what it wrote, and the folder validates."""
    data = {"train": [["make light", "lamp_on"]], "oos_train": [["what is love", "oos"]]}
    (tmp_path / "data_full.json").write_text(json.dumps(data))
    out = tmp_path / "out"
    result = run("import", "clinc150", "--input", tmp_path, "--out", out)
    assert result.exit_code == 0
    assert result.stdout.startswith("2 records (1 with a call) and 1 menus")
    assert run("validate", out).exit_code == 0


def test_import_lists_what_it_left_out(tmp_path):
    """Items left out are listed, in JSON too, and the exit code says so."""
    data = {"train": [["make light", "lamp_on"], ["alone"]]}
    (tmp_path / "data_full.json").write_text(json.dumps(data))
    result = run(
        "import", "clinc150", "--input", tmp_path, "--out", tmp_path / "out", "--json", "-"
    )
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (report["records"], report["no_call"]) == (1, 0)
    assert report["problems"][0]["field"] == "train.2"


@pytest.mark.parametrize(
    "args",
    [
        ["import", "other", "--input", "x", "--out", "y"],
        ["import", "snips", "--out", "y"],
        ["import", "snips", "--input", "absent.json", "--out", "y"],
        ["import", "bfcl", "--input", ".", "--out", "y"],
    ],
)
def test_import_usage_errors_exit_2(args, tmp_path, monkeypatch):
    """An unknown data set, a missing option and missing files exit with 2 and write nothing."""
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert not list(tmp_path.glob("y/*"))
