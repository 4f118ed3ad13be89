"""The two tables of the audit store, and the triggers that keep its rows as they were written."""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    inspect,
    select,
    text,
)

from toolguard.adapters.audit_store.chain import genesis, head_signature, key_name
from toolguard.guard.errors import AuditError
from toolguard.guard.seal import Seal

FORMAT = 1  # of the tables and of what is hashed
HEAD_ID = 1
_CREATION_LOCK = 7_306_914_425_118_213_001  # any number that no other program locks

_METADATA = MetaData()

EVENTS = Table(
    "toolguard_events",
    _METADATA,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("call_id", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("tool", Text),
    Column("action", Text, nullable=False),
    Column("reason", Text),
    Column("p_wrong", Float(53)),
    Column("payload", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("previous", Text, nullable=False),
    Column("hash", Text, nullable=False),
    UniqueConstraint("call_id", "kind", name="toolguard_events_once"),
    Index("toolguard_events_kind", "kind", "seq"),
    Index("toolguard_events_tool", "tool", "kind", "created_at"),
    Index("toolguard_events_run", "run_id", "seq"),
    Index("toolguard_events_time", "created_at"),
)
"""The rows; `seq` is given out by the store, so that a missing row leaves a gap."""

HEAD = Table(
    "toolguard_chain",
    _METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("format", Integer, nullable=False),
    Column("store_id", Text, nullable=False),
    Column("key_name", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("hash", Text, nullable=False),
    Column("signature", Text, nullable=False),
)
"""One row: number and hash of the last event, signed. Whoever writes locks it first."""

_REFUSAL = "the audit store is append-only"

_SQLITE_TRIGGERS = tuple(
    f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
    for table, verb in (
        (EVENTS.name, "UPDATE"),
        (EVENTS.name, "DELETE"),
        (HEAD.name, "DELETE"),
    )
)
_POSTGRESQL_FUNCTION = (
    "CREATE FUNCTION toolguard_refuse() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$"
)
_POSTGRESQL_TRIGGERS = tuple(
    f"CREATE TRIGGER toolguard_append_only BEFORE {verbs} ON {table} "
    "FOR EACH STATEMENT EXECUTE FUNCTION toolguard_refuse()"
    for table, verbs in (
        (EVENTS.name, "UPDATE OR DELETE OR TRUNCATE"),
        (HEAD.name, "DELETE OR TRUNCATE"),
    )
)


def tables_exist(connection: Connection) -> bool:
    """Return whether the database holds an audit store."""
    return inspect(connection).has_table(HEAD.name)


def create_tables(connection: Connection, seal: Seal | None) -> None:
    """Make tables, triggers and the head of an empty chain, unless another process has done so.

    To be called in a transaction that may write: all of it is there afterwards, or nothing.
    """
    postgresql = connection.dialect.name == "postgresql"
    if postgresql:
        connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _CREATION_LOCK})
    if tables_exist(connection):
        return
    _METADATA.create_all(connection)
    triggers = (_POSTGRESQL_FUNCTION, *_POSTGRESQL_TRIGGERS) if postgresql else _SQLITE_TRIGGERS
    for statement in triggers:
        connection.execute(text(statement))
    store_id = secrets.token_hex(16)
    start = genesis(store_id)
    connection.execute(
        HEAD.insert().values(
            id=HEAD_ID,
            format=FORMAT,
            store_id=store_id,
            key_name=key_name(seal),
            seq=0,
            hash=start,
            signature=head_signature(seal, store_id, 0, start),
        )
    )


def read_head(connection: Connection, *, lock: bool = False) -> dict[str, Any] | None:
    """Return the head of the chain, held against other writers if `lock`; None if it is gone.

    Raises:
        AuditError: if the tables are of another format.
    """
    query = select(HEAD).where(HEAD.c.id == HEAD_ID)
    row = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
    if row is not None and row["format"] != FORMAT:
        raise AuditError(
            f"the audit store has format {row['format']}, expected {FORMAT}",
            hint="open it with the version of toolguard that wrote it",
        )
    return dict(row) if row is not None else None
