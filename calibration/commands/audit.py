"""`toolguard audit`: read, export and verify what an audit store holds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from toolguard.adapters.audit_store import Anchor, AuditStore, StoredEvent
from toolguard.adapters.audit_store.event import KINDS
from toolguard.calibration.audits.export import ExportFormat, export_events
from toolguard.calibration.audits.text import (
    event_json,
    event_lines,
    event_table,
    report_lines,
    statistics_lines,
)
from toolguard.calibration.command_options import json_option
from toolguard.calibration.command_output import show_result, write_json
from toolguard.guard.errors import AuditError, ConfigError
from toolguard.guard.seal import KEY_VARIABLE, load_key

Function = TypeVar("Function", bound=Callable[..., Any])

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _moment(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    """Return a time written as ISO 8601, or as a span back from now: 30s, 15m, 12h, 7d."""
    if value is None:
        return None
    if span := re.fullmatch(r"(\d{1,5})([smhd])", value):
        return datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: int(span[1])})
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(
            f"{value!r} is no time; write 2026-01-31T12:00 or 15m, 12h, 7d"
        ) from error


_AUDIT = click.option(
    "--audit",
    "url",
    required=True,
    envvar="TOOLGUARD_AUDIT",
    show_envvar=True,
    metavar="URL",
    help="Path of an SQLite file, or postgresql://USER@HOST/NAME.",
)
_SINCE = click.option(
    "--since",
    callback=_moment,
    metavar="TIME",
    help="From this time (UTC) on, or within 30s, 15m, 12h, 7d.",
)
_FILTERS = (
    click.option("--kind", type=click.Choice(KINDS), help="Events of one kind."),
    click.option("--tool", metavar="NAME", help="Events of one tool."),
    click.option("--action", metavar="WORD", help="Events with this action, as veto or approve."),
    click.option("--run", "run_id", metavar="ID", help="Events of one run."),
    click.option("--call", "call_id", metavar="ID", help="Events of one call."),
    _SINCE,
)


def _filters(function: Function) -> Function:
    for option in reversed(_FILTERS):
        function = option(function)
    return function


@click.group()
def command() -> None:
    """Read, export and verify what an audit store holds."""


@command.command("list")
@_AUDIT
@_filters
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Most to show."
)
@json_option
def list_(url: str, limit: int, json_path: str | None, **filters: Any) -> None:
    """List events, the newest first."""
    with AuditStore.open(url, create=False) as store:
        events = list(store.events(**filters, limit=limit, newest_first=True))
    found = {"events": [event_json(event) for event in events]}
    show_result(found, "\n".join(event_table(events)), json_path)


@command.command()
@click.argument("call_id")
@_AUDIT
@json_option
def show(call_id: str, url: str, json_path: str | None) -> None:
    """Show all that is known of one call."""
    with AuditStore.open(url, create=False) as store:
        events = list(store.events(call_id=call_id))
    if not events:
        raise AuditError(f"the audit store holds no call {call_id!r:.80}")
    found = {"events": [event_json(event) for event in events]}
    text = "\n".join(line for event in events for line in event_lines(event))
    show_result(found, text, json_path)


@command.command()
@_AUDIT
@_filters
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="One JSON object a line, or CSV with the payload as JSON.",
)
@click.option(
    "--out", default="-", show_default=True, metavar="PATH", help="File to write; - is stdout."
)
@json_option
def export(url: str, form: ExportFormat, out: str, json_path: str | None, **filters: Any) -> None:
    """Write events to a file, the oldest first."""
    if out == json_path == "-":
        raise click.UsageError("--out and --json cannot both be stdout")
    with AuditStore.open(url, create=False) as store:
        count = _export(store.events(**filters), out, form)
    if json_path:
        write_json({"out": out, "format": form, "events": count}, json_path)
    click.echo(f"{count:,} events written to {'stdout' if out == '-' else out}", err=True)


@command.command()
@_AUDIT
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    help=f"File of the key the store was begun with; default: the variable {KEY_VARIABLE}.",
)
@click.option(
    "--anchor",
    metavar="SEQ:HASH",
    help="A head that was printed before: the store must still go on from there.",
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    url: str,
    key_file: Path | None,
    anchor: str | None,
    json_path: str | None,
) -> None:
    """Check every row against the chain.

    Finds what was changed, missing, moved, added, or cut off at the end. Exit code 3 if anything is
    wrong. Keep the printed head elsewhere, and give it as --anchor the next time: it finds a store
    that was replaced by an older copy or begun anew.
    """
    key = _key(key_file)
    with AuditStore.open(url, key=key, create=False) as store:
        report = store.verify(Anchor.parse(anchor) if anchor else None)
    show_result(asdict(report), "\n".join(report_lines(report)), json_path)
    if report.seal == "unchecked":
        click.echo(f"give the key with --key or {KEY_VARIABLE} to check the end too", err=True)
    if not report.ok:
        ctx.exit(3)


@command.command()
@_AUDIT
@_SINCE
@json_option
def stats(url: str, since: datetime | None, json_path: str | None) -> None:
    """Count events, decisions and outcomes.

    Decisions by tool, by action and by reason, with P(wrong).
    """
    with AuditStore.open(url, create=False) as store:
        statistics = store.stats(since)
    show_result(asdict(statistics), "\n".join(statistics_lines(statistics)), json_path)


def _export(events: Iterator[StoredEvent], out: str, form: ExportFormat) -> int:
    try:
        with click.open_file(out, "w", encoding="utf-8") as file:
            return export_events(events, file, form)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error


def _key(path: Path | None) -> bytes | None:
    """Return the key that is there; verifying makes none."""
    if KEY_VARIABLE in os.environ:
        return load_key(path)
    if path is None:
        return None
    if not path.is_file():
        raise ConfigError(f"there is no key file {path}")
    return load_key(path)
