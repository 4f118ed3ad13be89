"""The audit store: one event of a kind per call, kept through threads, processes and crashes."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from audit_events import KEY, START, Clock, decision, started, tamper
from postgres import running_server

from toolguard.adapters.audit_store import AuditEvent, AuditStore, StartLimit
from toolguard.adapters.audit_store.event import PAYLOAD_LIMIT, stored_text
from toolguard.guard.errors import AuditError, ConfigError

SECRET = "hunter2-hunter2"


@pytest.fixture
def store(audit_url):
    """Give an empty store, on each kind of database in turn."""
    with AuditStore.open(audit_url, key=KEY) as store:
        yield store


def ids(events):
    return [event.call_id for event in events]


def test_what_was_written_is_read_back(store):
    """Every field of an event comes back, with its place, time and hash."""
    event = decision("c1")
    assert store.write(event)
    found = store.get("c1", "decision")
    for name in ("kind", "call_id", "run_id", "tool", "action", "payload"):
        assert getattr(found, name) == getattr(event, name)
    assert found.seq == 1
    assert found.created_at.utcoffset().total_seconds() == 0
    assert len(found.hash) == 64
    assert list(store.events()) == [found]


def test_the_second_event_of_a_kind_changes_nothing(store):
    """A call has one decision: the first stays, the second is answered with False."""
    assert store.write(decision("c1", action="veto"))
    assert not store.write(decision("c1", action="allow"))
    assert store.get("c1", "decision").action == "veto"
    assert len(list(store.events())) == 1


def test_a_call_has_one_event_of_each_kind(store):
    """Request, approval, start and outcome of one call stand beside its decision."""
    kinds = ["decision", "approval_request", "approval", "started", "outcome"]
    assert all(store.write(AuditEvent(kind=kind, call_id="c1")) for kind in kinds)
    assert [event.kind for event in store.events(call_id="c1")] == kinds


def test_what_is_not_there_is_none(store):
    """An unknown call has no event."""
    assert store.get("nobody", "decision") is None
    assert list(store.events(call_id="nobody")) == []
    assert store.pending_approvals() == ()


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["c1", "c2", "c3", "c1"]),
        ({"kind": "decision"}, ["c1", "c2", "c3"]),
        ({"call_id": "c1"}, ["c1", "c1"]),
        ({"tool": "refund"}, ["c2"]),
        ({"action": "veto"}, ["c2", "c3"]),
        ({"action": "veto", "run_id": "run-2"}, ["c3"]),
        ({"after_seq": 2}, ["c3", "c1"]),
        ({"limit": 2}, ["c1", "c2"]),
        ({"limit": 0}, []),
        ({"newest_first": True}, ["c1", "c3", "c2", "c1"]),
        ({"newest_first": True, "limit": 1, "kind": "decision"}, ["c3"]),
        ({"newest_first": True, "after_seq": 2}, ["c1", "c3"]),
        ({"tool": "' OR 1=1 --"}, []),
    ],
)
def test_filters_go_together(store, filters, expected):
    """Events that fit all filters are given in order, from either end."""
    store.write(decision("c1"))
    store.write(decision("c2", tool="refund", action="veto"))
    store.write(decision("c3", tool=None, action="veto", run_id="run-2"))
    store.write(started("c1"))
    assert ids(store.events(**filters)) == expected


def test_since_counts_from_the_moment_itself(audit_url):
    """An event of exactly that time is in, one before is not."""
    clock = Clock()
    with AuditStore.open(audit_url, clock=clock) as store:
        for call_id in ("c1", "c2"):
            store.write(decision(call_id))
            clock.move(0.5)
        assert ids(store.events(since=START)) == ["c1", "c2"]
        assert ids(store.events(since=store.get("c2", "decision").created_at)) == ["c2"]
        assert store.stats(START).kinds == {"decision": 2}
        assert store.stats(clock.now).kinds == {}


def test_many_events_come_in_pages(store):
    """More events than a page holds come each once, in either order, with a limit too."""
    count = 1100
    for at in range(count):
        store.write(decision(f"c{at}"))
    expected = [f"c{at}" for at in range(count)]
    assert ids(store.events()) == expected
    assert ids(store.events(newest_first=True)) == expected[::-1]
    assert ids(store.events(limit=501)) == expected[:501]
    assert store.verify().checked == count


def test_reading_ends_although_somebody_writes(store):
    """What is written while one reads is for the next time."""
    store.write(decision("c0"))
    seen = 0
    for seen, _ in enumerate(store.events(), 1):
        store.write(decision(f"c{seen}"))
    assert seen == 1


def test_pending_approvals_are_those_without_an_answer(store):
    """A request is pending until its call has an approval."""
    for call_id in ("c1", "c2"):
        store.write(AuditEvent(kind="approval_request", call_id=call_id))
    store.write(AuditEvent(kind="approval", call_id="c1", action="reject"))
    store.write(AuditEvent(kind="started", call_id="c2"))
    assert ids(store.pending_approvals()) == ["c2"]


def test_starts_are_counted_by_tool_and_time(audit_url):
    """Starts older than the span, and those of other tools, do not count."""
    clock = Clock()
    with AuditStore.open(audit_url, clock=clock) as store:
        store.write(started("c1"))
        clock.move(40)
        store.write(started("c2"))
        store.write(started("c3", tool="refund"))
        store.write(decision("c4"))
        assert store.count_started("search", 60) == 2
        clock.move(30)
        assert store.count_started("search", 60) == 1
        assert store.count_started("unknown", 60) == 0


def test_a_call_starts_once_and_within_its_limits(audit_url):
    """A repeated start and one over a limit are told apart, and neither is written."""
    clock = Clock()

    def start(call_id, run_id):
        limits = (StartLimit(most=3, seconds=60), StartLimit(most=2, run_id=run_id))
        return store.write_started(started(call_id, run_id=run_id), limits)

    with AuditStore.open(audit_url, clock=clock) as store:
        assert start("c1", "run-1") == "started"
        assert start("c1", "run-1") == "repeated"
        assert start("c2", "run-1") == "started"
        assert start("c3", "run-1") == "over_limit"
        assert start("c3", "run-2") == "started"
        assert start("c4", "run-2") == "over_limit"
        clock.move(60)
        assert start("c4", "run-2") == "started"
        assert store.count_started("search", 1e6) == 4
        with pytest.raises(AuditError, match="expected a started event"):
            store.write_started(decision("c9"))


def test_a_budget_of_nothing_starts_nothing(store):
    """A limit of zero is a limit."""
    assert store.write_started(started("c1"), [StartLimit(most=0)]) == "over_limit"


def test_statistics_count_by_tool_action_and_reason(store):
    """Counts, outcomes and the histogram of P(wrong), known and unknown, at its edges too."""
    for at, p_wrong in enumerate([0.0, 0.05, 0.999, 1, None, 7.0]):
        payload = {"reason": "confident", "evidence": {"p_wrong": p_wrong}}
        store.write(decision(f"c{at}", payload=payload))
    store.write(decision("v", tool=None, action="veto", payload={"p_wrong": 0.5}))
    store.write(AuditEvent(kind="outcome", call_id="c0", tool="search", action="error"))
    statistics = store.stats()
    assert statistics.kinds == {"decision": 7, "outcome": 1}
    told = [(row.tool, row.action, row.reason, row.count) for row in statistics.decisions]
    assert told == [("search", "allow", "confident", 6), (None, "veto", None, 1)]
    assert [(row.tool, row.action, row.count) for row in statistics.outcomes] == [
        ("search", "error", 1)
    ]
    assert statistics.p_wrong[0] == statistics.p_wrong[1] == statistics.p_wrong[10] == 1
    assert statistics.p_wrong[19] == 2
    assert (sum(statistics.p_wrong), statistics.p_wrong_unknown) == (5, 2)
    assert statistics.first <= statistics.last


def test_statistics_of_an_empty_store_are_zero(store):
    """Nothing was decided, and nothing fails."""
    statistics = store.stats()
    assert statistics.kinds == {}
    assert (sum(statistics.p_wrong), statistics.first) == (0, None)


@pytest.mark.parametrize(
    "call_id",
    ["c\0", "half \ud83d", "x" * 300, "sha256:" + "0" * 64, "cafe\u0301", "' OR 1=1 --", "\x1b[2J"],
)
def test_any_forged_id_can_be_recorded(store, call_id):
    """An id that a database cannot take is recorded under its hash, and found again by itself."""
    assert store.write(decision(call_id, payload={"reason": "no_record\0", "x": call_id}))
    assert not store.write(decision(call_id))
    assert store.get(call_id, "decision").payload["x"] == call_id
    assert len(list(store.events(call_id=call_id))) == 1
    assert store.verify().ok


def test_two_texts_never_become_one():
    """The hash in place of an odd text cannot be written as an ordinary text."""
    odd = stored_text("a\0")
    assert stored_text(odd) != odd
    assert stored_text("a") == "a"


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (decision(""), "no call id"),
        (AuditEvent(kind="rumour", call_id="c1"), "one of decision"),
        (decision("c1", payload={"x": float("nan")}), "no JSON"),
        (decision("c1", payload={"x": {SECRET}}), "no JSON"),
        (decision("c1", payload={"x": nested(100_000)}), "no JSON"),
        (decision("c1", payload={"x": SECRET * PAYLOAD_LIMIT}), "bytes"),
    ],
)
def test_what_cannot_be_stored_is_refused(store, event, words):
    """An event that is none is refused without a word of its content, and nothing is written."""
    with pytest.raises(AuditError, match=words) as caught:
        store.write(event)
    assert SECRET not in str(caught.value)
    assert list(store.events()) == []


def test_errors_of_the_database_tell_no_values(store, audit_url):
    """A table that is gone ends in an AuditError that names the database and no event."""
    tamper(audit_url, "DROP TABLE toolguard_events")
    calls = (
        lambda: store.write(decision(SECRET)),
        lambda: store.get(SECRET, "decision"),
        lambda: store.count_started(SECRET, 60),
        lambda: list(store.events(tool=SECRET)),
        store.stats,
        store.verify,
    )
    for call in calls:
        with pytest.raises(AuditError, match="toolguard_events") as caught:
            call()
        assert SECRET not in str(caught.value)
        assert caught.value.__suppress_context__


def test_threads_write_each_call_once(store):
    """Of threads that write the same calls at once, one a call succeeds, and the chain is whole."""
    threads, calls = 12, 20
    barrier = Barrier(threads)

    def work(_at):
        barrier.wait()
        return sum(store.write(decision(f"c{call}")) for call in range(calls))

    with ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(work, range(threads))) == calls
    assert sorted(ids(store.events())) == sorted(f"c{call}" for call in range(calls))
    assert store.verify().ok


def test_verifying_while_others_write_finds_nothing(store):
    """The walk sees one moment, in which rows and head agree."""
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(lambda: [store.write(decision(f"c{at}")) for at in range(150)])
        reports = [store.verify()]
        while not writing.done():
            reports.append(store.verify())
    assert all(report.ok for report in reports)
    assert store.verify().checked == len(writing.result()) == 150


def test_threads_never_exceed_a_limit(store):
    """Of calls that start at once, exactly as many do as the limit allows."""
    limits = [StartLimit(most=5, seconds=60)]
    barrier = Barrier(16)

    def work(at):
        barrier.wait()
        return store.write_started(started(f"c{at}"), limits)

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(work, range(16)))
    assert outcomes.count("started") == 5
    assert outcomes.count("over_limit") == 11


WRITER = """
import sys
from toolguard.adapters.audit_store import AuditEvent, AuditStore
store = AuditStore.open(sys.argv[1], key=bytes(range(32)))
print("ready", flush=True)
sys.stdin.readline()
for at in range(int(sys.argv[2])):
    if store.write(AuditEvent(kind="decision", call_id=f"c{at}", payload={"by": sys.argv[3]})):
        print(at, flush=True)
"""


def writer(url, count, name):
    return subprocess.Popen(
        [sys.executable, "-P", "-c", WRITER, url, str(count), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_write_each_call_once(audit_url):
    """Two processes that make the store and write the same calls at once share them out."""
    count = 60
    processes = [writer(audit_url, count, name) for name in ("one", "two")]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    written = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(map(int, [*written[0], *written[1]])) == list(range(count))
    with AuditStore.open(audit_url, key=KEY, create=False) as store:
        for name, calls in zip(("one", "two"), written, strict=True):
            assert all(store.get(f"c{at}", "decision").payload == {"by": name} for at in calls)
        assert store.verify().ok


def test_a_killed_process_loses_nothing_it_was_told_is_written(audit_url):
    """After SIGKILL in the middle of writing, all that was confirmed is there, the chain whole."""
    process = writer(audit_url, 100_000, "one")
    process.stdin.write("go\n")
    process.stdin.flush()
    confirmed = [process.stdout.readline() for _ in range(40)][1:]
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate(timeout=60)
    confirmed += rest.splitlines(keepends=True)
    told = [int(line) for line in confirmed if line.endswith("\n")]
    with AuditStore.open(audit_url, key=KEY, create=False) as store:
        there = ids(store.events())
        assert [f"c{at}" for at in told] == there[: len(told)]
        assert len(there) - len(told) in (0, 1)  # the last may be written and not yet told
        assert store.verify().ok
        assert store.write(decision("after"))


def test_a_store_is_opened_again(audit_url):
    """What one process wrote the next one reads and goes on from."""
    for call_id in ("c1", "c2"):
        with AuditStore.open(audit_url, key=KEY) as store:
            assert store.write(decision(call_id))
    with AuditStore.open(audit_url, key=KEY) as store:
        assert ids(store.events()) == ["c1", "c2"]
        assert store.verify().ok


@pytest.mark.parametrize("key", [None, b"another key of some length"])
def test_another_key_may_read_and_not_write(audit_url, key):
    """Only the key a store was begun with goes on with its chain."""
    with AuditStore.open(audit_url, key=KEY) as store:
        store.write(decision("c1"))
    with AuditStore.open(audit_url, key=key) as store:
        assert ids(store.events()) == ["c1"]
        with pytest.raises(AuditError, match="another key"):
            store.write(decision("c2"))


def test_a_forked_process_must_open_its_own(audit_url):
    """Connections carried into another process would corrupt the database, so they are refused."""
    with AuditStore.open(audit_url) as store:
        store._pid += 1
        with pytest.raises(AuditError, match="another process"):
            store.write(decision("c1"))
        with pytest.raises(AuditError, match="another process"):
            store.get("c1", "decision")


def test_without_create_nothing_is_made(audit_url):
    """Reading a store that is not there is an error and leaves no trace."""
    with pytest.raises(ConfigError, match="there is no audit store"):
        AuditStore.open(audit_url, create=False)
    assert "/" not in audit_url or not Path(audit_url).exists()


def test_sqlite_keeps_what_it_confirms(tmp_path):
    """Write-ahead log, every commit synced to the disk, and the file for its owner alone."""
    path = tmp_path / "audit.db"
    with AuditStore.open(path) as store, store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_write_takes_a_few_milliseconds(tmp_path):
    """The guard waits for the store on each call, so a synced write must be quick."""
    with AuditStore.open(tmp_path / "audit.db", key=KEY) as store:
        times = []
        for at in range(60):
            begin = time.perf_counter()
            store.write(decision(f"c{at}"))
            times.append(time.perf_counter() - begin)
    assert sorted(times)[30] < 0.1  # about 0.001 on a free machine


@pytest.mark.parametrize("url", ["sqlite:///{}", "{}"])
def test_sqlite_is_named_by_url_or_path(tmp_path, url):
    """A bare path is an SQLite file."""
    path = tmp_path / "audit.db"
    with AuditStore.open(url.format(path)) as store:
        assert store.write(decision("c1"))
    assert path.is_file()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://host/name",
        "sqlite://",
        ":memory:",
        "sqlite:///:memory:",
        "",
        "://",
        "postgres:x://",
    ],
)
def test_other_places_are_refused(url):
    """Another database, none in particular, or one that is gone with the process."""
    with pytest.raises(ConfigError) as caught:
        AuditStore.open(url)
    assert "postgresql://" in caught.value.hint


def test_a_file_that_is_no_database_is_refused(tmp_path):
    """Another file is neither read nor overwritten; nor is a folder, or a path without one."""
    other = tmp_path / "notes.txt"
    other.write_text("not a database, but long enough to look at " * 100)
    before = other.read_bytes()
    for path in (other, tmp_path, tmp_path / "no" / "folder.db"):
        with pytest.raises(AuditError, match="cannot open"):
            AuditStore.open(path)
    assert other.read_bytes() == before


def test_a_missing_driver_is_named(monkeypatch):
    """Without psycopg the error says what to install."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match="psycopg") as caught:
        AuditStore.open("postgresql://nobody@localhost/nothing")
    assert "postgresql" in caught.value.hint


@pytest.mark.usefixtures("postgres_server")
def test_a_server_that_is_gone_closes_the_store():
    """Reads and writes fail when the server stops, and the password is not in the message."""
    with running_server() as server:
        url = server.new_database().replace("postgres@", f"postgres:{SECRET}@")
        store = AuditStore.open(url)
        assert store.write(decision("c1"))
    for call in (lambda: store.write(decision("c2")), lambda: store.get("c1", "decision")):
        with pytest.raises(AuditError) as caught:
            call()
        assert SECRET not in str(caught.value)
    with pytest.raises(AuditError):
        AuditStore.open(url)
    store.close()


def test_a_dropped_connection_is_replaced(postgres_server):
    """A connection that the server closed while it was idle does not cost an event."""
    url = postgres_server.new_database()
    with AuditStore.open(url) as store:
        store.write(decision("c1"))
        tamper(
            url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        assert store.write(decision("c2"))


def test_a_bad_key_is_refused(tmp_path):
    """A key that could be guessed is none."""
    with pytest.raises(ConfigError, match="16 bytes"):
        AuditStore.open(tmp_path / "audit.db", key=b"short")


def test_the_store_needs_no_torch():
    """A page or a command that only reads the store opens at once."""
    code = """
import sys
import toolguard.adapters.audit_store
sys.exit(", ".join({"torch", "transformers", "opentelemetry", "psycopg"} & set(sys.modules)) or 0)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_adapters_imports_no_database():
    """SQLAlchemy comes with the audit store and not before."""
    code = """
import sys
import toolguard.guard, toolguard.adapters
sys.exit("sqlalchemy" in sys.modules)
"""
    assert (
        subprocess.run([sys.executable, "-P", "-c", code], timeout=120, check=False).returncode == 0
    )
