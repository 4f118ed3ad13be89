"""The queries that an agent is measured on, less those it learned from, as data sets on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolguard.calibration.datasets.dataset import MENUS_FILE, RECORDS_FILE, Dataset, open_dataset
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.training.card import TrainingFacts
from toolguard.calibration.training.card_records import (
    capped,
    curated_records,
    frame_records,
    hwu64_records,
    unseen_records,
)
from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import Menu

OWN = ("curated", "frames")
PUBLIC = ("snips", "clinc150", "hwu64", "tau_airline")
SOURCES = (*OWN, *PUBLIC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Which records are wanted.

    Args:
        data: folder of the public sources; None leaves them out.
        learned: tenths of the human-written records that the agent learned from.
        limit: most records a source.
        seed: of draws and menus.
    """

    data: Path | None
    learned: tuple[int, ...]
    limit: int
    seed: int


def learned_tenths(folder: Path | None) -> tuple[int, ...]:
    """Return which tenths an agent of this project learned from; none for any other model."""
    if folder is None or not (folder / "training.json").is_file():
        return ()
    return TrainingFacts.read(folder).tenths


def source_records(source: str, need: Need) -> list[Record]:
    """Return at most `need.limit` labelled calls of one source that the agent never saw.

    Raises:
        ConfigError: for an unknown source, or a public one without a data folder.
        DatasetError: if the source's folder is missing.
    """
    if source not in SOURCES:
        raise ConfigError(
            f"unknown source {source!r}", hint=f"choose from: {', '.join(SOURCES)}", source=source
        )
    if source in PUBLIC and need.data is None:
        raise ConfigError(f"source {source!r} needs --data", source=source)
    return capped(_READERS[source](need), need.limit, need.seed)


def _public(source: str) -> Callable[[Need], list[Record]]:
    return lambda need: unseen_records(_folder(need), source, need.learned)


def _folder(need: Need) -> Path:
    if need.data is None:
        raise ConfigError("there is no data folder")
    return need.data


_READERS: Mapping[str, Callable[[Need], list[Record]]] = {
    "curated": lambda _need: curated_records(),
    "frames": lambda need: frame_records(need.seed),
    "snips": _public("snips"),
    "clinc150": _public("clinc150"),
    "hwu64": lambda need: hwu64_records(_folder(need), need.learned, need.seed),
    # Its agents' dialogues are in no tenth: nothing here was trained on them.
    "tau_airline": lambda need: unseen_records(_folder(need), "tau_airline", ()),
}


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
