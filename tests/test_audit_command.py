"""`toolguard audit`: what it shows of a store, and that it neither makes nor changes one."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime

import pytest
from audit_events import KEY, decision, started, tamper
from click.testing import CliRunner

from toolguard.adapters.audit_store import AuditEvent, AuditStore
from toolguard.calibration.cli import CommandEntry, LazyGroup

GROUP = LazyGroup(
    name="toolguard", entries={"audit": CommandEntry("toolguard.calibration.commands.audit", "")}
)


@pytest.fixture
def audit(tmp_path):
    """Give the path of a store with three calls, one of them with a forged id."""
    path = tmp_path / "audit.db"
    with AuditStore.open(path, key=KEY) as store:
        store.write(decision("c1"))
        store.write(started("c1"))
        store.write(AuditEvent(kind="outcome", call_id="c1", tool="search", action="ok"))
        store.write(decision("c2", tool="refund", action="veto", payload={"reason": "doubtful"}))
        store.write(decision("=\x1b[2J", tool=None, action="veto", payload={"reason": "no_record"}))
    return path


@pytest.fixture
def key_file(tmp_path):
    """Give the file of the key the store was begun with."""
    path = tmp_path / "key"
    path.write_text(KEY.hex())
    return path


def run(*args, **options):
    return CliRunner().invoke(GROUP, ["audit", *map(str, args)], prog_name="toolguard", **options)


def test_list_shows_the_newest_first(audit):
    """A table with one line an event."""
    result = run("list", "--audit", audit)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["seq", "time", "(UTC)"]
    assert [line.split()[0] for line in lines[1:]] == ["5", "4", "3", "2", "1"]
    assert "doubtful" in lines[2]
    assert "0.1250" in lines[5]


def test_forged_text_does_not_reach_the_terminal(audit):
    """An escape sequence in an id is shown escaped, in each command."""
    for command in (("list",), ("show", "=\x1b[2J"), ("stats",)):
        result = run(*command, "--audit", audit)
        assert result.exit_code == 0
        assert "\x1b" not in result.stdout
    assert "\\x1b" in run("list", "--audit", audit).stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--kind", "decision"), [5, 4, 1]),
        (("--tool", "search"), [3, 2, 1]),
        (("--action", "veto", "--limit", "1"), [5]),
        (("--call", "c1"), [3, 2, 1]),
        (("--run", "run-1", "--kind", "started"), [2]),
        (("--since", "1h"), [5, 4, 3, 2, 1]),
        (("--since", "2999-01-01"), []),
    ],
)
def test_list_filters(audit, options, expected):
    """Filters go together, in text and JSON alike."""
    result = run("list", "--audit", audit, *options, "--json", "-")
    assert result.exit_code == 0
    assert [event["seq"] for event in json.loads(result.stdout)["events"]] == expected


def test_show_tells_all_of_a_call(audit):
    """Decision, start and outcome with their payload."""
    result = run("show", "c1", "--audit", audit)
    assert result.exit_code == 0
    for words in ("decision allow", "started", "outcome ok", "margins", "hmac-sha256:"):
        assert words in result.stdout
    told = json.loads(run("show", "c1", "--audit", audit, "--json", "-").stdout)
    assert [event["kind"] for event in told["events"]] == ["decision", "started", "outcome"]


def test_show_of_an_unknown_call_fails(audit):
    """A call that is not there ends with exit code 1."""
    result = run("show", "c9", "--audit", audit)
    assert result.exit_code == 1
    assert "no call 'c9'" in result.stderr


def test_export_writes_json_lines(audit, tmp_path):
    """Every event is a line, oldest first; the summary goes elsewhere."""
    out = tmp_path / "events.jsonl"
    result = run("export", "--audit", audit, "--out", out, "--json", "-")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"out": str(out), "format": "jsonl", "events": 5}
    events = [json.loads(line) for line in out.read_text().splitlines()]
    assert [event["seq"] for event in events] == [1, 2, 3, 4, 5]
    assert events[0]["payload"]["evidence"]["p_wrong"] == 0.125


def test_export_writes_csv_without_formulas(audit):
    """A cell that a spreadsheet would run is quoted, and the payload is JSON."""
    result = run("export", "--audit", audit, "--format", "csv")
    assert result.exit_code == 0
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert rows[-1]["call_id"].startswith("'=")
    assert json.loads(rows[0]["payload"])["reason"] == "confident"
    assert "5 events" in result.stderr


def test_export_filters(audit):
    """Only what fits is written, and nothing is no error."""
    assert len(run("export", "--audit", audit, "--tool", "refund").stdout.splitlines()) == 1
    result = run("export", "--audit", audit, "--tool", "nothing")
    assert (result.exit_code, result.stdout) == (0, "")


def test_export_refuses_two_things_on_stdout(audit):
    """Events and summary would mix."""
    assert run("export", "--audit", audit, "--json", "-").exit_code == 2


def test_export_to_a_missing_folder_fails(audit):
    """The file is named."""
    result = run("export", "--audit", audit, "--out", "no/such/folder/x")
    assert result.exit_code == 2
    assert "cannot write no/such/folder/x" in result.stderr


def test_verify_of_a_whole_chain(audit, key_file):
    """The head is printed as --anchor takes it, and taken again."""
    result = run("verify", "--audit", audit, "--key", key_file)
    assert result.exit_code == 0, result.output
    assert "5 rows checked: the chain is whole" in result.stdout
    assert "its signature holds" in result.stdout
    anchor = result.stdout.splitlines()[-1].split()[1].rstrip(";")
    again = run("verify", "--audit", audit, "--key", key_file, "--anchor", anchor, "--json", "-")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["seal"] == "holds"


def test_verify_takes_the_key_from_the_environment(audit):
    """As the agent does."""
    result = run("verify", "--audit", audit, env={"TOOLGUARD_KEY": KEY.hex()})
    assert result.exit_code == 0
    assert "its signature holds" in result.stdout


def test_verify_without_the_key_says_so(audit):
    """The rows are checked, and that the end was not is said."""
    result = run("verify", "--audit", audit)
    assert result.exit_code == 0
    assert "not checked" in result.stdout
    assert "--key" in result.stderr


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE toolguard_events SET action = 'allow' WHERE seq = 4", "changed: row 4"),
        ("DELETE FROM toolguard_events WHERE seq = 2", "missing: row 2"),
        ("DELETE FROM toolguard_events WHERE seq = 5", "truncated: row 5"),
    ],
)
def test_verify_of_a_broken_chain(audit, key_file, statement, words):
    """Exit code 3, and each problem on a line; --json tells the same."""
    tamper(str(audit), statement)
    result = run("verify", "--audit", audit, "--key", key_file)
    assert result.exit_code == 3
    assert words in result.stdout
    told = json.loads(run("verify", "--audit", audit, "--key", key_file, "--json", "-").stdout)
    assert (told["ok"], told["found"]) == (False, 1)


def test_verify_with_another_key_fails(audit, tmp_path):
    """A key that signed something else vouches for nothing."""
    other = tmp_path / "other"
    other.write_text("ab" * 32)
    result = run("verify", "--audit", audit, "--key", other)
    assert result.exit_code == 3
    assert "does not hold" in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--key", "no/key"), "no key file"), (("--anchor", "7"), "SEQ:HASH")],
)
def test_verify_refuses_bad_options(audit, options, words, tmp_path, monkeypatch):
    """A key that is not there is not made; an anchor is a number and a hash."""
    monkeypatch.chdir(tmp_path)
    result = run("verify", "--audit", audit, *options)
    assert result.exit_code == 2
    assert words in result.stderr


def test_stats_counts(audit):
    """Decisions by tool, action and reason, outcomes, and the distribution of P(wrong)."""
    result = run("stats", "--audit", audit)
    assert result.exit_code == 0
    for words in ("3 decision", "refund", "doubtful", "outcome", "0.10-0.15", "unknown"):
        assert words in result.stdout
    told = json.loads(run("stats", "--audit", audit, "--json", "-").stdout)
    assert told["kinds"] == {"decision": 3, "outcome": 1, "started": 1}
    assert told["p_wrong"][2] == 1


def test_stats_of_no_time(audit):
    """Nothing happened from tomorrow on."""
    assert "no events" in run("stats", "--audit", audit, "--since", "2999-01-01").stdout


@pytest.mark.parametrize("wrong", ["yesterday", "7w", "-1h", "999999d", "0001-01-01T00:00+10:00"])
def test_since_is_a_time(audit, wrong):
    """A time that cannot be read is a usage error with an example."""
    result = run("list", "--audit", audit, "--since", wrong)
    assert result.exit_code == 2
    assert "12h" in result.stderr


def test_since_is_utc_unless_it_says_otherwise(audit):
    """The table shows UTC, so a time without a zone is UTC."""
    now = datetime.now(UTC)
    later = now.replace(year=now.year + 1, tzinfo=None).isoformat()
    assert len(run("list", "--audit", audit, "--since", later).stdout.splitlines()) == 1
    assert len(run("list", "--audit", audit, "--since", "2020-01-01").stdout.splitlines()) == 6


@pytest.mark.parametrize(
    "command", [("list",), ("show", "c1"), ("export",), ("verify",), ("stats",)]
)
def test_reading_makes_no_store(tmp_path, command):
    """A path with a typo is an error and no new file."""
    result = run(*command, "--audit", tmp_path / "typo.db")
    assert result.exit_code == 2
    assert "there is no audit store" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_store_is_named_by_the_environment_too(audit):
    """TOOLGUARD_AUDIT stands for --audit; without either it is a usage error."""
    assert run("stats", env={"TOOLGUARD_AUDIT": str(audit)}).exit_code == 0
    assert run("stats").exit_code == 2
