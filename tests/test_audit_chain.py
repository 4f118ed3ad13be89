"""The hash chain: whatever is changed behind the store's back is found, and writing stops there."""

from __future__ import annotations

import pytest
from audit_events import KEY, START, decision, tamper
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from toolguard.adapters.audit_store import Anchor, AuditStore
from toolguard.adapters.audit_store.chain import (
    check_chain,
    genesis,
    head_signature,
    key_name,
    row_hash,
)
from toolguard.adapters.audit_store.database import parse_url
from toolguard.adapters.audit_store.event import event_row
from toolguard.adapters.audit_store.tables import EVENTS
from toolguard.guard.errors import AuditError, ConfigError
from toolguard.guard.seal import Seal

ROWS = 6
CONTENT = ["kind", "call_id", "run_id", "tool", "action", "reason", "payload", "created_at"]


@pytest.fixture
def filled(audit_url):
    """Give the URL of a store of six rows, closed."""
    with AuditStore.open(audit_url, key=KEY) as store:
        for at in range(1, ROWS + 1):
            store.write(decision(f"c{at}"))
    return audit_url


def verify(url, key=KEY, anchor=None):
    with AuditStore.open(url, key=key, create=False) as store:
        return store.verify(anchor)


def found(report):
    assert report.ok == (not report.problems)
    return {(problem.kind, problem.seq) for problem in report.problems}


def write(url, key=KEY):
    with AuditStore.open(url, key=key) as store:
        return store.write(decision("next"))


def rechain(connection, *, after=0):
    """Compute the chain anew from a row on, as somebody without the key can."""
    rows = connection.execute(EVENTS.select().order_by(EVENTS.c.seq)).mappings().all()
    store_id = connection.execute(text("SELECT store_id FROM toolguard_chain")).scalar_one()
    previous = genesis(store_id)
    for row in rows:
        if row["seq"] > after:
            digest = row_hash(previous, row)
            change = EVENTS.update().where(EVENTS.c.seq == row["seq"])
            connection.execute(change.values(previous=previous, hash=digest))
        previous = digest if row["seq"] > after else row["hash"]
    connection.execute(
        text("UPDATE toolguard_chain SET seq = :seq, hash = :hash"),
        {"seq": rows[-1]["seq"], "hash": previous},
    )


def test_an_untouched_chain_is_whole(filled):
    """Every row is checked, the signature holds, and the head is told."""
    report = verify(filled)
    assert (report.ok, report.checked, report.seq, report.seal) == (True, ROWS, ROWS, "holds")
    with AuditStore.open(filled) as store:
        assert report.hash == store.get(f"c{ROWS}", "decision").hash


def test_an_empty_store_is_whole(audit_url):
    """Nothing was written, and nothing is missing."""
    with AuditStore.open(audit_url, key=KEY) as store:
        report = store.verify()
    assert (report.ok, report.checked, report.seq) == (True, 0, 0)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE toolguard_events SET action = 'allow' WHERE seq = 3",
        "DELETE FROM toolguard_events WHERE seq = 3",
        "DELETE FROM toolguard_chain",
    ],
)
def test_the_database_refuses_changes(filled, statement):
    """An ordinary UPDATE or DELETE fails on the triggers."""
    engine = create_engine(parse_url(filled))
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
    assert verify(filled).ok


def test_postgresql_refuses_truncate(postgres_server):
    """TRUNCATE, which fires no row trigger, fails too."""
    url = postgres_server.new_database()
    with AuditStore.open(url, key=KEY) as store:
        store.write(decision("c1"))
    engine = create_engine(parse_url(url))
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(text("TRUNCATE toolguard_events"))
    engine.dispose()


@pytest.mark.parametrize("column", CONTENT)
def test_a_changed_value_is_found(filled, column):
    """A change in any column is found, in its row alone."""
    change = EVENTS.update().where(EVENTS.c.seq == 3).values({column: "x"})
    tamper(filled, lambda connection: connection.execute(change))
    assert found(verify(filled)) == {("changed", 3)}


def test_a_changed_probability_is_found(filled):
    """The column that is kept for counting must say what the payload says."""
    tamper(filled, "UPDATE toolguard_events SET p_wrong = 0.01 WHERE seq = 3")
    assert found(verify(filled)) == {("changed", 3)}


def test_a_changed_row_with_its_own_hash_made_anew_is_found(filled):
    """Whoever recomputes one row's hash breaks the link to the next."""

    def change(connection):
        connection.execute(text("UPDATE toolguard_events SET action = 'veto' WHERE seq = 3"))
        row = connection.execute(EVENTS.select().where(EVENTS.c.seq == 3)).mappings().one()
        values = {"hash": row_hash(row["previous"], row)}
        connection.execute(EVENTS.update().where(EVENTS.c.seq == 3).values(**values))

    tamper(filled, change)
    assert found(verify(filled)) == {("reordered", 4)}


@pytest.mark.parametrize(("first", "last"), [(1, 1), (3, 3), (2, 5)])
def test_missing_rows_are_found(filled, first, last):
    """A gap is told once, with its ends; the rows around it are still good."""
    delete = "DELETE FROM toolguard_events WHERE seq BETWEEN :first AND :last"
    tamper(filled, delete, first=first, last=last)
    report = verify(filled)
    assert found(report) == {("missing", first)}
    assert str(last) in report.problems[0].detail


def test_missing_rows_whose_gap_was_closed_are_found(filled):
    """Renumbering hides the gap and not the broken link."""
    tamper(
        filled,
        "DELETE FROM toolguard_events WHERE seq = 3",
        "UPDATE toolguard_events SET seq = 3 WHERE seq = 4",
        "UPDATE toolguard_events SET seq = 4 WHERE seq = 5",
        "UPDATE toolguard_events SET seq = 5 WHERE seq = 6",
        "UPDATE toolguard_chain SET seq = 5",
    )
    assert found(verify(filled)) == {("reordered", 3), ("head", 0)}


@pytest.mark.parametrize("left", [0, 1, 5])
def test_truncation_is_found(filled, left):
    """Rows missing at the end are found, since the head names the last."""
    tamper(filled, "DELETE FROM toolguard_events WHERE seq > :left", left=left)
    assert found(verify(filled)) == {("truncated", left + 1)}
    assert found(verify(filled, key=None)) == {("truncated", left + 1)}


def test_truncation_with_the_head_moved_back_is_found_with_the_key(filled):
    """Moving the head back needs its signature."""
    tamper(filled, "DELETE FROM toolguard_events WHERE seq = 6", lambda c: rechain(c, after=5))
    assert found(verify(filled)) == {("head", 0)}
    without = verify(filled, key=None)
    assert (without.ok, without.seal) == (True, "unchecked")


def test_an_old_copy_is_found_with_an_anchor(filled):
    """A store set back to an older state is sound in itself; a noted row shows that it is old."""
    with AuditStore.open(filled, key=KEY) as store:
        store.write(decision("late"))
        now = store.verify()
        anchor = Anchor.parse(f"{now.seq}:{now.hash}")
        assert store.verify(anchor).ok

    def set_back(connection):
        connection.execute(text("DELETE FROM toolguard_events WHERE seq = 7"))
        rechain(connection, after=6)
        store_id = connection.execute(text("SELECT store_id FROM toolguard_chain")).scalar_one()
        last = connection.execute(text("SELECT hash FROM toolguard_chain")).scalar_one()
        signature = head_signature(Seal(KEY), store_id, 6, last)  # as the old head had it
        values = {"signature": signature}
        connection.execute(text("UPDATE toolguard_chain SET signature = :signature"), values)

    tamper(filled, set_back)
    assert verify(filled).ok
    assert found(verify(filled, anchor=anchor)) == {("anchor", 7)}
    with AuditStore.open(filled, key=KEY) as store:
        store.write(decision("another"))
        assert found(store.verify(anchor)) == {("anchor", 7)}


@pytest.mark.parametrize("wrong", ["", "7", "7:abc", "x:" + "0" * 64, "0:" + "0" * 64])
def test_an_anchor_is_a_number_and_a_hash(wrong):
    """Anything else is refused."""
    with pytest.raises(ConfigError, match="SEQ:HASH"):
        Anchor.parse(wrong)


def test_swapped_rows_are_found(filled):
    """Two rows that exchange their places follow the wrong rows."""
    tamper(
        filled,
        "UPDATE toolguard_events SET seq = 99 WHERE seq = 3",
        "UPDATE toolguard_events SET seq = 3 WHERE seq = 4",
        "UPDATE toolguard_events SET seq = 4 WHERE seq = 99",
    )
    assert found(verify(filled)) == {("reordered", 3), ("reordered", 4), ("reordered", 5)}


def copy_row(connection, source, seq, call_id):
    row = dict(connection.execute(EVENTS.select().where(EVENTS.c.seq == source)).mappings().one())
    row |= {"seq": seq, "call_id": call_id, "previous": row["hash"]}
    connection.execute(EVENTS.insert(), row | {"hash": row_hash(row["previous"], row)})


def test_an_inserted_row_is_found(filled):
    """A row put in between, sound in itself and with the later ones renumbered, does not fit."""

    def insert(connection):
        for at in range(ROWS, 3, -1):
            connection.execute(EVENTS.update().where(EVENTS.c.seq == at).values(seq=at + 1))
        copy_row(connection, 3, 4, "forged")

    tamper(filled, insert)
    assert found(verify(filled)) == {("inserted", 4), ("inserted", 7)}


@pytest.mark.parametrize("seq", [0, ROWS + 1])
def test_a_row_at_either_end_is_found(filled, seq):
    """A row before the first, or after the last that was written, is no event."""
    tamper(filled, lambda connection: copy_row(connection, ROWS, seq, "forged"))
    assert ("inserted", seq) in found(verify(filled))


def test_a_chain_made_anew_is_found_with_the_key(filled):
    """Whoever may write the database can compute every hash, but not sign the head."""
    tamper(filled, "UPDATE toolguard_events SET action = 'veto' WHERE seq = 2", rechain)
    assert found(verify(filled)) == {("head", 0)}


def test_a_store_made_keyless_is_found_with_the_key(filled):
    """Taking the signature away is no way around it."""
    tamper(filled, rechain, "UPDATE toolguard_chain SET key_name = '', signature = ''")
    assert found(verify(filled)) == {("head", 0)}
    assert verify(filled, key=None).seal == "unkeyed"


def test_the_wrong_key_does_not_vouch(filled):
    """With another key the head's signature does not hold."""
    assert found(verify(filled, key=b"another key of some length")) == {("head", 0)}


def test_a_missing_head_is_found(filled):
    """Without a head nobody knows where the chain ends."""
    tamper(filled, "DELETE FROM toolguard_chain")
    report = verify(filled)
    assert found(report) == {("head", 0)}
    assert (report.seal, report.hash) == ("broken", "")


def test_a_head_with_another_hash_is_found(filled):
    """The head must name the last row's hash."""
    tamper(filled, "UPDATE toolguard_chain SET hash = 'x'")
    assert ("head", ROWS) in found(verify(filled, key=None))


def test_values_of_another_type_are_found(tmp_path):
    """SQLite takes anything in any column: bytes and text that is no UTF-8 are found, not fatal."""
    url = str(tmp_path / "audit.db")
    with AuditStore.open(url, key=KEY) as store:
        for at in range(3):
            store.write(decision(f"c{at}"))
    tamper(
        url,
        "UPDATE toolguard_events SET payload = x'ff00' WHERE seq = 1",
        "UPDATE toolguard_events SET action = CAST(x'ff' AS TEXT) WHERE seq = 2",
        "UPDATE toolguard_events SET hash = 5 WHERE seq = 3",
    )
    assert {("changed", 1), ("changed", 2), ("changed", 3)} <= found(verify(url))


@pytest.mark.parametrize("payload", ["x", "[" * 100_000, '"a"'])
def test_a_damaged_payload_is_told(filled, payload):
    """Reading a row that holds no JSON says which row, and to verify; JSON of another kind is."""
    tamper(filled, "UPDATE toolguard_events SET payload = :p WHERE seq = 2", p=payload)
    with AuditStore.open(filled) as store:
        if payload == '"a"':
            assert store.get("c2", "decision").payload == {"value": "a"}
        else:
            with pytest.raises(AuditError, match=r"row 2 .* damaged"):
                list(store.events())
    assert found(verify(filled)) == {("changed", 2)}


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (["DELETE FROM toolguard_events WHERE seq = 6"], "last row"),
        (["DELETE FROM toolguard_events"], "last row"),
        (["DELETE FROM toolguard_chain"], "head of the chain is missing"),
        (["UPDATE toolguard_chain SET seq = 5"], "signature"),
        (["UPDATE toolguard_events SET hash = 'x' WHERE seq = 6"], "last row was changed"),
        (["UPDATE toolguard_chain SET signature = ''"], "signature"),
        (["UPDATE toolguard_chain SET format = 9"], "format 9"),
    ],
)
def test_a_broken_end_is_not_written_on(filled, statements, words):
    """The next event is refused, so that a call does not run on a store that was tampered with."""
    tamper(filled, *statements)
    with pytest.raises(AuditError, match=words):
        write(filled)


def test_a_row_appended_by_hand_stops_writing(filled):
    """A row after the head's is seen at once."""
    tamper(filled, lambda connection: copy_row(connection, ROWS, ROWS + 1, "forged"))
    with pytest.raises(AuditError, match="last row"):
        write(filled)


def test_many_problems_are_counted_and_some_are_kept():
    """A report of a store with every row changed stays small."""
    rows, head = chain(1200)
    for row in rows:
        row["action"] = "x"
    report = check_chain(rows, head, Seal(KEY))
    assert (report.found, len(report.problems)) == (1200, 1000)


def chain(count):
    """Return rows and head as a store would hold them."""
    seal, previous, rows = Seal(KEY), genesis("s"), []
    for at in range(1, count + 1):
        row = event_row(decision(f"c{at}"), START) | {"seq": at, "previous": previous}
        previous = row_hash(previous, row)
        rows.append(row | {"hash": previous})
    head = {
        "store_id": "s",
        "key_name": key_name(seal),
        "seq": count,
        "hash": previous,
        "signature": head_signature(seal, "s", count, previous),
    }
    return rows, head


@given(data=st.data())
def test_no_single_change_goes_unseen(data):
    """Deleting, moving, doubling or changing any row of any chain is a problem."""
    count = data.draw(st.integers(1, 6))
    rows, head = chain(count)
    assert check_chain(rows, head, Seal(KEY)).ok
    at = data.draw(st.integers(0, count - 1))
    how = data.draw(st.sampled_from(["delete", "double", "swap", *CONTENT, "previous", "hash"]))
    if how == "delete":
        del rows[at]
    elif how == "double":
        rows.insert(at, dict(rows[at]))
    elif how == "swap":
        rows.append(rows.pop(at) | {"seq": count + 1})
    else:
        rows[at][how] = data.draw(st.one_of(st.none(), st.text(), st.integers())) or "changed"
    if data.draw(st.booleans()):
        for seq, row in enumerate(rows, 1):
            row["seq"] = seq
        head["seq"] = len(rows)
    assert not check_chain(rows, head, Seal(KEY)).ok or rows == chain(count)[0]
