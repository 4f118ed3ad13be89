"""Audit events as files for other programs: JSON lines or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from typing import IO, Literal

from toolguard.adapters.audit_store import StoredEvent
from toolguard.calibration.audits.text import event_json

ExportFormat = Literal["jsonl", "csv"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export_events(events: Iterable[StoredEvent], out: IO[str], form: ExportFormat) -> int:
    """Write the events to `out` and return how many there were."""
    return _write_csv(events, out) if form == "csv" else _write_lines(events, out)


def _write_lines(events: Iterable[StoredEvent], out: IO[str]) -> int:
    count = 0
    for count, event in enumerate(events, 1):  # noqa: B007 - the last count is the result
        out.write(json.dumps(event_json(event)) + "\n")
    return count


def _write_csv(events: Iterable[StoredEvent], out: IO[str]) -> int:
    names = ("seq", "created_at", "kind", "call_id", "run_id", "tool", "action", "payload", "hash")
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    count = 0
    for count, event in enumerate(events, 1):  # noqa: B007 - as above
        row = event_json(event) | {"payload": json.dumps(event.payload, sort_keys=True)}
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return count


def _cell(value: object) -> object:
    # A spreadsheet runs a cell that begins like a formula, and an id can be forged.
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
