"""Reading records from files, one at a time, with every bad one reported by file, line and field.

Memory holds the menus and eight bytes an id (to find ids used twice), never the records.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from toolguard.calibration.datasets.records import MenuEntry, Record, ToolEntry
from toolguard.guard.errors import ConfigError, DatasetError
from toolguard.guard.tools import Menu

RECORDS_FILE = "records.jsonl"
MENUS_FILE = "menus.json"
_PROBE_LINES = 20
_INLINE_MENUS = 256  # bound on the inline menus remembered, so that memory stays flat


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordProblem:
    """One reason why a record or menu cannot be used.

    Args:
        path: the file, as the user named it.
        line: 1-based line, or item of a JSON array; 0 if the problem is the whole file's.
        field: path of the field, as `call.name`; empty if it is the whole line.
        message: what is wrong with it; never the text of the record.
    """

    path: Path
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else str(self.path)
        return (
            f"{where}: {self.field}: {self.message}" if self.field else f"{where}: {self.message}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedRecord:
    """A record with the file and 1-based line it was read from."""

    record: Record
    path: Path
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One file of records and the file of its menus, if there is one."""

    records: Path
    menus: Path | None


OnProblem = Callable[[RecordProblem], None]
"""What is told of each problem, as it is met."""


class _BadRecordError(Exception):
    """What is wrong with one line: pairs of field and message."""

    def __init__(self, *faults: tuple[str, str]) -> None:
        super().__init__(*faults)
        self.faults = faults


def parse_json(text: str) -> Any:  # any JSON value
    """Return the value of strict JSON: no NaN, no lone surrogates, no nesting without end.

    Raises:
        ValueError: if the text is not that.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\ud" in text.lower():
        # Such text cannot be encoded again: it would fail later, far from its line.
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair stands alone") from None
    return value


def faults_of(error: ValidationError, prefix: str = "") -> tuple[tuple[str, str], ...]:
    """Return pairs of field path and message, without the values that were refused."""
    faults = []
    for entry in error.errors(include_url=False, include_input=False, include_context=False):
        path = ".".join(str(part) for part in entry["loc"])
        faults.append((f"{prefix}{path}", entry["msg"].removeprefix("Value error, ")))
    return tuple(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Menus:
    """The usable menus of one file, and why the others are not."""

    path: Path | None = None
    menus: Mapping[str, Menu] = field(default_factory=dict)
    systems: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[RecordProblem, ...] = ()
    inline: Callable[[str], Menu] = field(
        default_factory=lambda: functools.lru_cache(maxsize=_INLINE_MENUS)(_menu_of_text)
    )

    @classmethod
    def read(cls, path: Path | None) -> _Menus:
        """Return the menus of a `menus.json`; with no path, none."""
        menus: dict[str, Menu] = {}
        systems: dict[str, str] = {}
        problems: list[RecordProblem] = []
        for name, value in _menu_values(path):
            try:
                entry = MenuEntry.model_validate(value)
                menus[name] = entry.to_menu()
                systems[name] = entry.system or ""
            except ValidationError as error:
                faults = faults_of(error, f"{name}.")
                problems += [_menu_problem(path, where, why) for where, why in faults]
            except ConfigError as error:
                problems.append(_menu_problem(path, f"{name}.tools", error.message))
        return cls(path=path, menus=menus, systems=systems, problems=tuple(problems))

    def get(self, name: object) -> Menu:
        """Return the menu of this id."""
        if not isinstance(name, str):
            raise _BadRecordError(("menu", "must be the id of a menu, a string"))
        if name not in self.menus:
            place = f"not usable in {self.path}" if self.path else f"there is no {MENUS_FILE}"
            raise _BadRecordError(("menu", f"no menu {name!r}: {place}"))
        return self.menus[name]


def _menu_of_text(text: str) -> Menu:
    """Return the menu of an inline tool list, as JSON text."""
    return Menu(tuple(ToolEntry.model_validate(tool).to_tool() for tool in json.loads(text)))


def _menu_problem(path: Path | None, where: str, message: str) -> RecordProblem:
    return RecordProblem(path=path or Path(MENUS_FILE), line=0, field=where, message=message)


def _menu_values(path: Path | None) -> Iterable[tuple[str, object]]:
    if path is None:
        return ()
    try:
        with _reading(path):
            value = parse_json(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise DatasetError(
            f"{path} is not JSON: {error}", hint="write one object, {id: menu}", path=str(path)
        ) from None
    if not isinstance(value, dict):
        raise DatasetError(
            f"{path} must be one object of menus by id, found {type(value).__name__}",
            hint='write {"menu id": {"tools": [...]}}',
            path=str(path),
        )
    return value.items()


def build_record(value: object, menus: Mapping[str, Menu]) -> Record:
    """Return the record of one parsed line.

    Args:
        value: the line as parsed JSON.
        menus: what its `menu` may name.

    Raises:
        DatasetError: if it is not a valid record; `fields["faults"]` has field and message pairs.
    """
    try:
        return _resolve(value, _Menus(menus=menus))
    except _BadRecordError as error:
        where, why = error.faults[0]
        raise DatasetError(f"{where}: {why}", faults=error.faults) from None


def _resolve(value: object, menus: _Menus) -> Record:
    if not isinstance(value, dict):
        raise _BadRecordError(("", f"must be a JSON object, found {type(value).__name__}"))
    own = [(key, "Extra inputs are not permitted") for key in ("menu_id", "system") if key in value]
    if own:
        raise _BadRecordError(*own)
    if ("menu" in value) == ("tools" in value):
        raise _BadRecordError(("menu", "exactly one of `menu` and `tools` must be given"))
    fields = {key: item for key, item in value.items() if key != "menu"}
    menu = menus.get(value["menu"]) if "menu" in value else _inline_menu(value["tools"], menus)
    if menu is not None:
        fields["tools"] = menu.tools
    if "menu" in value:
        fields |= {"menu_id": value["menu"], "system": menus.systems.get(value["menu"], "")}
    try:
        record = Record.model_validate(fields)
    except ValidationError as error:
        raise _BadRecordError(*faults_of(error)) from None
    return record if menu is None else record.with_menu(menu)


def _inline_menu(tools: object, menus: _Menus) -> Menu | None:
    """Return the menu of inline tools; None if Record itself says what is wrong with them."""
    if not isinstance(tools, list) or not tools:
        return None
    try:
        # Not canonical JSON: the order of a schema's keys is part of the prompt.
        return menus.inline(json.dumps(tools))
    except (ValidationError, ConfigError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Files of records, read anew and lazily at each iteration.

    Iterating gives the valid records. Every problem goes to `on_problem` and, once, to `problems`.
    """

    files: tuple[DataFile, ...]
    on_problem: OnProblem | None = None
    _problems: dict[RecordProblem, None] = field(default_factory=dict, repr=False, compare=False)

    def __iter__(self) -> Iterator[Record]:
        return (located.record for located in self.located())

    @property
    def problems(self) -> tuple[RecordProblem, ...]:
        """The problems met so far, in order, each once."""
        return tuple(self._problems)

    @property
    def content_hash(self) -> str:
        """SHA-256 (64 hex digits) over the bytes of all files in order, whatever their names."""
        digest = hashlib.sha256()
        for path in (path for file in self.files for path in (file.records, file.menus) if path):
            with _reading(path), path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def located(self) -> Iterator[LocatedRecord]:
        """Yield each valid record with its place, in the order of the files.

        Raises:
            DatasetError: if a file cannot be read.
        """
        first_use: dict[int, Path] = {}
        for file in self.files:
            menus = _Menus.read(file.menus)
            for problem in menus.problems:
                self._report(problem)
            for line, raw in _numbered_lines(file.records):
                try:
                    record = _resolve(_parse_line(raw, line), menus)
                    _claim_id(record.id, file.records, first_use)
                except _BadRecordError as error:
                    self._report_faults(file.records, line, error)
                    continue
                yield LocatedRecord(record=record, path=file.records, line=line)

    def _report_faults(self, path: Path, line: int, error: _BadRecordError) -> None:
        for where, why in error.faults:
            self._report(RecordProblem(path=path, line=line, field=where, message=why))

    def _report(self, problem: RecordProblem) -> None:
        self._problems[problem] = None
        if self.on_problem is not None:
            self.on_problem(problem)


def open_dataset(
    paths: str | Path | Iterable[str | Path],
    *,
    menus: Path | None = None,
    on_problem: OnProblem | None = None,
) -> Dataset:
    """Return a dataset over files of records, each checked to be readable JSON lines.

    Args:
        paths: `.jsonl` files, or folders that hold a `records.jsonl`.
        menus: the menus for all of them; by default the `menus.json` beside each file.
        on_problem: told of each bad record while reading goes on.

    Raises:
        DatasetError: if a file is missing, empty, not UTF-8, not JSON lines, or given twice.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise DatasetError("no data was given", hint="name a .jsonl file or a folder")
    files = tuple(_data_file(Path(path), menus) for path in given)
    resolved = [file.records.resolve() for file in files]
    for file, place in zip(files, resolved, strict=True):
        if resolved.count(place) > 1:
            raise DatasetError(
                f"{file.records} is given twice", hint="name it once", path=str(file.records)
            )
        _probe(file.records)
    return Dataset(files=files, on_problem=on_problem)


def _data_file(path: Path, menus: Path | None) -> DataFile:
    records = path / RECORDS_FILE if path.is_dir() else path
    if not records.is_file():
        raise DatasetError(f"there is no file {records}", hint=_where_else(path), path=str(records))
    beside = records.parent / MENUS_FILE
    if menus is not None and not menus.is_file():
        raise DatasetError(f"there is no file {menus}", hint="name a menus.json", path=str(menus))
    return DataFile(records=records, menus=menus or (beside if beside.is_file() else None))


def _where_else(path: Path) -> str:
    """Say what the user may have meant: often the folder above the data folders."""
    found = sorted(path.glob(f"*/{RECORDS_FILE}")) if path.is_dir() else []
    if found:
        names = ", ".join(str(place.parent) for place in found[:3])
        return f"name one or more of the {len(found)} data folders below it: {names}"
    return f"name a .jsonl file, or a folder that holds a {RECORDS_FILE}"


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn a failure to read `path` into a DatasetError."""
    try:
        yield
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}", path=str(path)) from None


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their 1-based numbers."""
    with _reading(path), path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if raw.strip():
                yield number, raw


def _parse_line(raw: bytes, line: int) -> object:
    try:
        text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError:
        raise _BadRecordError(("", "not UTF-8")) from None
    try:
        return parse_json(text)
    except ValueError as error:
        raise _BadRecordError(("", f"not JSON: {error}")) from None


def _probe(path: Path) -> None:
    """Refuse a file none of whose first lines is a JSON object: it is not one bad record."""
    faults: list[str] = []
    for line, raw in _numbered_lines(path):
        try:
            if isinstance(_parse_line(raw, line), dict):
                return
            faults.append("not a JSON object")
        except _BadRecordError as error:
            faults.append(error.faults[0][1])
        if len(faults) == _PROBE_LINES:
            break
    if not faults:
        raise DatasetError(f"{path} is empty", hint="write one record a line", path=str(path))
    raise DatasetError(
        f"{path} does not hold JSON lines; its first line is {faults[0]}",
        hint="write one JSON object a line, in UTF-8",
        path=str(path),
    )


def _claim_id(record_id: str, path: Path, first_use: dict[int, Path]) -> None:
    """Refuse an id that an earlier record has."""
    key = int.from_bytes(hashlib.blake2b(record_id.encode(), digest_size=8).digest())
    if key in first_use:
        raise _BadRecordError(("id", f"{record_id!r} is already used in {first_use[key]}"))
    first_use[key] = path
