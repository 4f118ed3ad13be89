"""The project's curated queries as a data set in the format of every command's --data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolguard.calibration.importers.upstream import ImportReport, RecordWriter
from toolguard.calibration.training.catalog import base_menu, curated_queries

SOURCE, SPLIT = "curated", "all"
_NOTE = "the ten base tools of the bundled agent; queries and tools written for toolguard"


def write_curated(out: Path) -> ImportReport:
    """Write `records.jsonl` and `menus.json` with the curated queries, and return what was written.

    Every query has one right call, under the one menu of ten tools. No training ever sees them.

    Args:
        out: folder, made if need be; must not hold records yet.

    Raises:
        ConfigError: if `out` holds records already or cannot be written.
    """
    writer = RecordWriter(out=out, source=SOURCE, menu_fields={"note": _NOTE})
    tools: list[dict[str, Any]] = [schema["function"] for schema in base_menu().schemas()]
    with writer:
        menu = writer.add_menu(tools, name="base")
        for number, (tool, query) in enumerate(curated_queries(), start=1):
            record = {
                "id": f"{number:03}",
                "split": SPLIT,
                "query": query.query,
                "menu": menu,
                "call": {"name": tool, "arguments": dict(query.arguments)},
            }
            writer.write(record, out, number)
    return writer.report()
