"""Records written back to files, as every command reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolguard.calibration.datasets.dataset import MENUS_FILE, RECORDS_FILE, Dataset, open_dataset
from toolguard.calibration.datasets.records import Record
from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import Menu


def refuse_existing(folder: Path) -> None:
    """Do nothing if the folder holds no data set.

    Raises:
        ConfigError: if it does.
    """
    for target in (folder / RECORDS_FILE, folder / MENUS_FILE):
        if target.exists():
            raise ConfigError(
                f"{target} exists already", hint="name another folder, or remove it first"
            )


def write_dataset(records: Sequence[Record], folder: Path) -> Dataset:
    """Write records in the project's own format and return them as a data set.

    Args:
        records: written in their order; menus by the hash of their content.
        folder: made if need be; files of an earlier run are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    menus = {_menu_id(record): _menu_entry(record) for record in records}
    lines = [json.dumps(_entry(record), ensure_ascii=False) + "\n" for record in records]
    (folder / RECORDS_FILE).write_text("".join(lines), encoding="utf-8")
    (folder / MENUS_FILE).write_text(json.dumps(menus, ensure_ascii=False), encoding="utf-8")
    return open_dataset([folder])


def _menu_id(record: Record) -> str:
    return f"{record.source}:{record.menu.content_hash}"


def _menu_entry(record: Record) -> dict[str, Any]:
    return {
        "source": record.source,
        "tools": [schema["function"] for schema in Menu(record.tools).schemas()],
        **({"system": record.system} if record.system else {}),
    }


def _entry(record: Record) -> dict[str, Any]:
    entry = record.model_dump(
        mode="json", exclude_none=True, exclude={"tools", "system", "menu_id"}
    )
    kept = {key: value for key, value in entry.items() if value not in ([], {})}
    return {**kept, "menu": _menu_id(record), "call": entry.get("call")}
