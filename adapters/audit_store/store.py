"""The audit store: appends events once each, reads them back, and checks its own chain."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from sqlalchemy import URL, ColumnElement, Connection, Engine, select

from toolguard.adapters.audit_store.chain import (
    Anchor,
    ChainReport,
    check_chain,
    head_seal,
    head_signature,
    key_name,
    row_hash,
)
from toolguard.adapters.audit_store.database import (
    make_file,
    open_engine,
    parse_url,
    told_errors,
    writing,
)
from toolguard.adapters.audit_store.event import (
    AuditEvent,
    EventKind,
    StoredEvent,
    event_row,
    stored_event,
    stored_text,
    timestamp,
)
from toolguard.adapters.audit_store.queries import (
    PAGE,
    StartLimit,
    all_rows,
    conditions,
    count_starts,
    find_row,
    last_seq,
    unanswered,
)
from toolguard.adapters.audit_store.statistics import AuditStatistics, read_statistics
from toolguard.adapters.audit_store.tables import (
    EVENTS,
    HEAD,
    HEAD_ID,
    create_tables,
    read_head,
    tables_exist,
)
from toolguard.adapters.audit_store.telemetry import Telemetry
from toolguard.guard.errors import AuditError, ConfigError
from toolguard.guard.seal import Seal

StartOutcome = Literal["started", "repeated", "over_limit"]
"""Whether a call may run: not if it was started before, nor if its tool's limit is spent."""


def _now() -> datetime:
    return datetime.now(UTC)


class AuditStore:
    """A database of audit events. Threads may share a store; each process opens its own.

    An event that `write` confirmed is on disk. Made by `open`, closed by `close` or a with block.
    """

    def __init__(
        self,
        url: URL,
        engine: Engine,
        *,
        seal: Seal | None,
        clock: Callable[[], datetime],
        telemetry: Telemetry | None,
    ) -> None:
        self._url, self._engine, self._writer = url, engine, writing(engine)
        self._seal, self._clock, self._telemetry = seal, clock, telemetry
        self._pid = os.getpid()
        # SQLite has one writer; threads that queue here are served at once, those that poll the
        # file's lock are not. A server queues by itself.
        self._turn = threading.Lock() if url.get_backend_name() == "sqlite" else nullcontext()

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        key: bytes | None = None,
        create: bool = True,
        telemetry: Telemetry | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> Self:
        """Return the store at `url`, making its tables if they are not there.

        Args:
            url: path of an SQLite file, `sqlite:///PATH`, or `postgresql://USER@HOST/NAME`.
            key: signs the end of the chain; a store that was begun with a key is written with that
                key only. Without one, whoever can write the database can recompute the chain.
            create: whether to make what is missing; else it is an error.
            telemetry: told of each event after it was written.
            clock: gives the time of an event, with time zone.

        Raises:
            ConfigError: if `url` or `key` cannot be used, or there is no store and none is made.
            AuditError: if the database cannot be opened.
        """
        parsed = parse_url(url)
        shown = parsed.render_as_string(hide_password=True)
        missing = ConfigError(
            f"there is no audit store at {shown}",
            hint="name the database that the guarded agent writes to",
        )
        if create:
            make_file(parsed)
        elif parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
            raise missing
        seal = None if key is None else Seal(key)
        engine = open_engine(parsed)
        store = cls(parsed, engine, seal=seal, clock=clock, telemetry=telemetry)
        try:
            with store._reading("open") as connection:
                found = tables_exist(connection)
            if not found and not create:
                raise missing
            if not found:
                with store._writing("create") as connection:
                    create_tables(connection, seal)
        except (AuditError, ConfigError):
            store.close()
            raise
        return store

    def write(self, event: AuditEvent) -> bool:
        """Append the event; return False, changing nothing, if its call has one of its kind.

        Raises:
            AuditError: if it could not be written, or the end of the chain is not as it was left.
        """
        row = event_row(event, self._clock())
        with self._writing("write") as connection:
            head = self._trusted_head(connection)
            if find_row(connection, row["call_id"], event.kind) is not None:
                return False
            self._append(connection, head, row)
        self._tell(event)
        return True

    def write_started(self, event: AuditEvent, limits: Sequence[StartLimit] = ()) -> StartOutcome:
        """Append a `started` event unless the call was started or one of `limits` is reached.

        Counting and writing are one step, also between processes: a limit is never exceeded.

        Raises:
            AuditError: as `write`, and for an event of another kind.
        """
        if event.kind != "started":
            raise AuditError(f"expected a started event, found {event.kind!r:.40}")
        now = self._clock()
        row = event_row(event, now)
        with self._writing("write") as connection:
            head = self._trusted_head(connection)
            if find_row(connection, row["call_id"], "started") is not None:
                return "repeated"
            for limit in limits:
                if count_starts(connection, row["tool"], now, limit) >= limit.most:
                    return "over_limit"
            self._append(connection, head, row)
        self._tell(event)
        return "started"

    def get(self, call_id: str, kind: EventKind) -> StoredEvent | None:
        """Return the event of this kind of a call, or None.

        Raises:
            AuditError: if the store cannot be read.
        """
        with self._reading("read") as connection:
            row = find_row(connection, stored_text(call_id), kind)
        return None if row is None else stored_event(row)

    def events(  # noqa: PLR0913 - one keyword a filter
        self,
        *,
        kind: EventKind | None = None,
        call_id: str | None = None,
        tool: str | None = None,
        action: str | None = None,
        run_id: str | None = None,
        since: datetime | None = None,
        after_seq: int = 0,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[StoredEvent]:
        """Return the events that stand there now and fit all filters, as they are asked for.

        Memory does not grow with their number, and no transaction stays open between them.

        Raises:
            AuditError: if the store cannot be read, or a row is damaged.
        """
        where = conditions(
            since, kind=kind, call_id=call_id, tool=tool, action=action, run_id=run_id
        )
        return self._pages(where, after_seq, limit, newest_first=newest_first)

    def pending_approvals(self) -> tuple[StoredEvent, ...]:
        """Return the approval requests that nobody has answered yet, oldest first.

        Raises:
            AuditError: if the store cannot be read, or a row is damaged.
        """
        return tuple(self._pages(unanswered(), 0, None))

    def count_started(self, tool: str, seconds: float) -> int:
        """Return how many calls of `tool` were started within the last `seconds`.

        Raises:
            AuditError: if the store cannot be read.
        """
        limit = StartLimit(most=0, seconds=seconds)
        with self._reading("read") as connection:
            return count_starts(connection, stored_text(tool), self._clock(), limit)

    def stats(self, since: datetime | None = None) -> AuditStatistics:
        """Return counts over all events, or over those written from `since` on.

        Raises:
            AuditError: if the store cannot be read.
        """
        with self._reading("read") as connection:
            return read_statistics(connection, None if since is None else timestamp(since))

    def verify(self, anchor: Anchor | None = None) -> ChainReport:
        """Return what is wrong with the chain, after a walk over all rows at one moment.

        Args:
            anchor: a row that an earlier report named; shows a store that was begun anew or set
                back to an older copy.

        Raises:
            AuditError: if the store cannot be read.
        """
        with self._reading("verify", snapshot=True) as connection:
            head = read_head(connection)
            return check_chain(all_rows(connection), head, self._seal, anchor)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _trusted_head(self, connection: Connection) -> dict[str, Any]:
        """Return the head, locked, if the chain may go on from it."""
        head = read_head(connection, lock=True)
        if head is None:
            raise _broken("the head of the chain is missing")
        if head["key_name"] != key_name(self._seal):
            raise AuditError(
                "the audit store was begun with another key",
                hint="open it with that key, or begin a new store",
            )
        if head_seal(self._seal, head) not in {"holds", "unkeyed"}:
            raise _broken("the signature of its head does not hold")
        last = select(EVENTS.c.seq, EVENTS.c.hash).order_by(EVENTS.c.seq.desc()).limit(1)
        found = connection.execute(last).one_or_none()
        if (0 if found is None else found.seq) != head["seq"]:
            raise _broken("its last row is not the one its head names")
        if found is not None and found.hash != head["hash"]:
            raise _broken("its last row was changed")
        return head

    def _append(self, connection: Connection, head: dict[str, Any], row: dict[str, Any]) -> None:
        seq, digest = head["seq"] + 1, row_hash(head["hash"], row)
        values = {**row, "seq": seq, "previous": head["hash"], "hash": digest}
        connection.execute(EVENTS.insert(), values)
        signature = head_signature(self._seal, head["store_id"], seq, digest)
        moved = {"seq": seq, "hash": digest, "signature": signature}
        connection.execute(HEAD.update().where(HEAD.c.id == HEAD_ID), moved)

    def _pages(
        self,
        where: list[ColumnElement[bool]],
        after: int,
        limit: int | None,
        *,
        newest_first: bool = False,
    ) -> Iterator[StoredEvent]:
        with self._reading("read") as connection:
            end = last_seq(connection)
        first, last, left = after + 1, end, limit
        order = EVENTS.c.seq.desc() if newest_first else EVENTS.c.seq
        while first <= last and left != 0:
            size = PAGE if left is None else min(PAGE, left)
            query = select(EVENTS).where(*where, EVENTS.c.seq.between(first, last))
            with self._reading("read") as connection:
                rows = connection.execute(query.order_by(order).limit(size)).mappings().all()
            yield from map(stored_event, map(dict, rows))
            if len(rows) < size:
                return
            left = None if left is None else left - len(rows)
            first, last = (
                (first, rows[-1]["seq"] - 1) if newest_first else (rows[-1]["seq"] + 1, last)
            )

    def _tell(self, event: AuditEvent) -> None:
        if self._telemetry is not None:
            self._telemetry.emit(event)

    @contextmanager
    def _writing(self, doing: str) -> Iterator[Connection]:
        self._own_process()
        with self._turn, told_errors(self._url, doing), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self, doing: str, *, snapshot: bool = False) -> Iterator[Connection]:
        self._own_process()
        engine = self._engine
        if snapshot and engine.dialect.name == "postgresql":  # SQLite's transactions are such
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        with told_errors(self._url, doing), engine.begin() as connection:
            yield connection

    def _own_process(self) -> None:
        if os.getpid() != self._pid:
            raise AuditError(
                "the audit store was opened in another process",
                hint="open it after the fork, in each process",
            )


def _broken(what: str) -> AuditError:
    return AuditError(
        f"the audit store is not as it was left: {what}",
        hint="run `toolguard audit verify`, and keep the database for the inquiry",
    )
