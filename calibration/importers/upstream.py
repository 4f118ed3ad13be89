"""What the importers share: reading upstream files and writing records with their menus."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from toolguard.calibration.datasets.dataset import (
    MENUS_FILE,
    RECORDS_FILE,
    RecordProblem,
    build_record,
    parse_json,
)
from toolguard.calibration.datasets.dataset_writing import refuse_existing
from toolguard.guard.errors import ConfigError, DatasetError
from toolguard.guard.tools import Menu


class UpstreamError(DatasetError):
    """One upstream item cannot become a record; `field` is where, relative to the item."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message, field=field)
        self.field = field


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import wrote and what it could not.

    Args:
        out: the folder written.
        records: number of records written.
        calls: how many of them have a call.
        menus: number of menus written.
        problems: upstream items left out, each with its file and line (or item number).
        skipped: files of a folder that have no labels of a kind that can be imported.
    """

    out: Path
    records: int
    calls: int
    menus: int
    problems: tuple[RecordProblem, ...]
    skipped: tuple[Path, ...] = ()


def read_text(path: Path, encodings: Sequence[str] = ("utf-8-sig",)) -> str:
    """Return the text of a file in the first of `encodings` that fits.

    Raises:
        DatasetError: if the file cannot be read, is empty, or no encoding fits.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}", path=str(path)) from None
    if not raw.strip():
        raise DatasetError(f"{path} is empty", hint="fetch the upstream file again", path=str(path))
    for encoding in encodings:
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode(encoding)
    raise DatasetError(f"{path} is not {' or '.join(encodings)}", path=str(path))


def read_object(path: Path, encodings: Sequence[str] = ("utf-8-sig",)) -> dict[str, Any]:
    """Return the JSON object that is the whole file.

    Raises:
        DatasetError: if it is not one.
    """
    try:
        value = parse_json(read_text(path, encodings))
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON: {error}", path=str(path)) from None
    if not isinstance(value, dict):
        raise DatasetError(
            f"{path} must be a JSON object, found {type(value).__name__}", path=str(path)
        )
    return value


def read_lines(path: Path) -> Iterator[tuple[int, object]]:
    """Yield line number and value of each line of JSON; a ValueError stands for a bad line.

    Raises:
        DatasetError: if the file cannot be read.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                yield number, error


@dataclass(slots=True, kw_only=True)
class RecordWriter:
    """Writes `records.jsonl` and `menus.json` into `out`; both appear only when all is written.

    Every record is validated as it will be when read; one that fails becomes a problem.

    Args:
        out: folder to write, made if need be; must not hold records yet.
        source: value of `source` in every record, and prefix of ids.
        menu_fields: further fields of every menu, such as `note`.
    """

    out: Path
    source: str
    menu_fields: Mapping[str, Any] = field(default_factory=dict)
    problems: list[RecordProblem] = field(default_factory=list)
    _menus: dict[str, Menu] = field(default_factory=dict)
    _entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)
    _ids: set[str] = field(default_factory=set)
    _records: int = 0
    _calls: int = 0
    _stream: IO[str] | None = None

    def __enter__(self) -> Self:
        refuse_existing(self.out)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._stream = self._part(RECORDS_FILE).open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write to {self.out}: {error.strerror}") from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        if kind is None and self._records:
            entries = {name: self._entries[name] for name in self._entries if name in self._used}
            text = json.dumps(entries, ensure_ascii=False, indent=1)
            self._part(MENUS_FILE).write_text(text + "\n", encoding="utf-8")
            self._part(MENUS_FILE).replace(self.out / MENUS_FILE)
            self._part(RECORDS_FILE).replace(self.out / RECORDS_FILE)
        self._part(RECORDS_FILE).unlink(missing_ok=True)

    def add_menu(self, tools: Iterable[Mapping[str, Any]], name: str | None = None) -> str:
        """Return the id of the menu with these tools; equal menus are written once.

        Args:
            tools: `{name, description, parameters}` each.
            name: last part of the id; by default the start of the content hash.

        Raises:
            UpstreamError: if they make no menu.
        """
        entries = [dict(tool) for tool in tools]
        try:
            menu = Menu.of(entries)
        except ConfigError as error:
            raise UpstreamError("function", error.message) from None
        # Not the content hash, which ignores the order of keys that the prompt shows.
        text = json.dumps(entries)
        if text not in self._names:
            identity = f"{self.source}:{name or menu.content_hash[:12]}"
            while identity in self._menus:
                identity += "'"
            self._names[text] = identity
            self._menus[identity] = menu
            self._entries[identity] = {
                "source": self.source,
                "tools": entries,
                **self.menu_fields,
            }
        return self._names[text]

    def write(self, record: Mapping[str, Any], path: Path, line: int) -> None:
        """Write one record, or note why not.

        Args:
            record: its `menu` from `add_menu`, no `source`, its `id` without the source's prefix.
            path: upstream file it comes from.
            line: its line or item number there.
        """
        whole = {"id": f"{self.source}/{record['id']}", "source": self.source}
        whole |= {key: value for key, value in record.items() if key != "id"}
        try:
            build_record(whole, self._menus)
        except DatasetError as error:
            for where, why in error.fields["faults"]:
                self.note(path, line, where, why)
            return
        if whole["id"] in self._ids:
            self.note(path, line, "id", f"{whole['id']!r} occurs twice")
            return
        self._ids.add(whole["id"])
        self._used.add(whole["menu"])
        self._records += 1
        self._calls += whole["call"] is not None
        if self._stream is None:
            raise ConfigError("the writer is not open", hint="use it in a with statement")
        self._stream.write(json.dumps(whole, ensure_ascii=False) + "\n")

    def note(self, path: Path, line: int, where: str, message: str) -> None:
        """Note an upstream item that is left out."""
        self.problems.append(RecordProblem(path=path, line=line, field=where, message=message))

    def report(self) -> ImportReport:
        """Return what was written.

        Raises:
            DatasetError: if that is nothing.
        """
        if not self._records:
            first = f"; the first problem: {self.problems[0]}" if self.problems else ""
            raise DatasetError(
                f"no record could be made from the {self.source} files{first}",
                hint="check that these are the upstream files",
            )
        return ImportReport(
            out=self.out,
            records=self._records,
            calls=self._calls,
            menus=len(self._used),
            problems=tuple(self.problems),
        )

    def _part(self, name: str) -> Path:
        return self.out / f"{name}.part"


def phrase_of(name: str) -> str:
    """Return an identifier as words: `PlayMusic` and `play_music` give "play music"."""
    spaced = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name)
    return " ".join(spaced.replace("_", " ").split())
