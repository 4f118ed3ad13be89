"""The queries that an agent is measured on, less those it learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolguard.calibration.datasets.records import Record
from toolguard.calibration.training.card_records import (
    capped,
    curated_records,
    frame_records,
    hwu64_records,
    unseen_records,
)
from toolguard.guard.errors import ConfigError

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
