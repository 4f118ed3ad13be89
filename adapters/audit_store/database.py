"""Connections: which databases there are, how they are set up to keep what they confirm, errors."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from toolguard.guard.errors import AuditError, ConfigError

WAIT_SECONDS = 10  # for another process's write, or for a server's lock
_WRITES = "toolguard_writes"


def parse_url(url: str | Path) -> URL:
    """Return the URL of a database; a bare path is an SQLite file.

    Raises:
        ConfigError: if it is no URL, of another kind of database, or an SQLite database in memory.
    """
    text = str(url)
    try:
        parsed = make_url(text) if "://" in text else URL.create("sqlite", database=text)
    except ArgumentError:
        raise ConfigError("the URL of the audit store cannot be read", hint=_URL_HINT) from None
    backend = parsed.get_backend_name()
    if backend in {"postgresql", "postgres"}:
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ConfigError(f"an audit store cannot be kept in {backend!r}", hint=_URL_HINT)
    if parsed.database in {None, "", ":memory:"} or parsed.query:
        raise ConfigError("an audit store on SQLite needs a file", hint=_URL_HINT)
    return parsed.set(drivername="sqlite")


_URL_HINT = "give a path, sqlite:///PATH or postgresql://USER@HOST/NAME"


def open_engine(url: URL) -> Engine:
    """Return an engine whose commits are on disk when they return. Connects to nothing yet.

    Raises:
        ConfigError: if the database's driver is not installed.
    """
    sqlite = url.get_backend_name() == "sqlite"
    try:
        engine = create_engine(
            url,
            hide_parameters=True,  # they are the audited values
            pool_pre_ping=not sqlite,
            pool_timeout=WAIT_SECONDS,
            connect_args={} if sqlite else {"connect_timeout": WAIT_SECONDS},
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{url.get_backend_name()} needs the module {error.name}, which is not installed",
            hint="pip install 'toolguard-margin[postgresql]'",
        ) from error
    event.listen(engine, "connect", _set_up_sqlite if sqlite else _set_up_postgresql)
    if sqlite:
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def writing(engine: Engine) -> Engine:
    """Return the engine with transactions that take SQLite's write lock at once.

    A transaction that reads first and locks later fails when another has written in between.
    """
    return engine.execution_options(**{_WRITES: True})


def make_file(url: URL) -> None:
    """Make the SQLite file, readable by its owner alone, if there is none; nothing on a server."""
    if url.get_backend_name() != "sqlite" or url.database is None:
        return
    try:
        os.close(os.open(url.database, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise AuditError(f"cannot open {url.database}: {error.strerror}") from error


@contextmanager
def told_errors(url: URL, doing: str) -> Iterator[None]:
    """Turn the database's errors into ours, without the values of the statement.

    Raises:
        AuditError: instead of SQLAlchemy's errors.
    """
    try:
        yield
    except SQLAlchemyError as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        # The first line names the problem; PostgreSQL's next ones may quote values.
        first = str(cause).partition("\n")[0] if isinstance(error, DBAPIError) else ""
        raise AuditError(
            f"cannot {doing} the audit store {url.render_as_string(hide_password=True)}:"
            f" {type(cause).__name__}{': ' if first else ''}{first}",
            hint="look at disk space, permissions and the server",
        ) from None


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, see _begin_sqlite
    # A damaged text is read as such, so that verifying reports the row instead of failing on it.
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    connection.execute(f"PRAGMA busy_timeout = {WAIT_SECONDS * 1000}")
    _into_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")  # NORMAL can lose the last commits with power
    connection.execute("PRAGMA trusted_schema = OFF")


def _into_wal(connection: Any) -> None:
    """Switch to write-ahead logging; SQLite waits for no other process here, so this does."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)
            continue
        if mode != "wal":
            raise sqlite3.OperationalError(f"no write-ahead log on this file system, only {mode}")
        return


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _set_up_postgresql(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{WAIT_SECONDS}s'")
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') = 'off'"
        )
    connection.commit()
