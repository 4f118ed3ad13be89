"""Which records a calibration uses: those with a call, under the menu asked for, up to a limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from toolguard.calibration.datasets.dataset import Dataset, parse_json
from toolguard.calibration.datasets.draw_key import draw_key
from toolguard.calibration.datasets.records import Record, ToolEntry
from toolguard.calibration.datasets.splits import SplitItem
from toolguard.guard.errors import ConfigError, DatasetError
from toolguard.guard.tools import Menu


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenRecords:
    """The records of a dataset to calibrate on; iterating reads the files anew.

    Args:
        dataset: where they come from.
        menu: offered with every record instead of its own; None leaves each its own.
        items: of the chosen records, in the order of the files.
        counts: records read, and how many were left out for which reason.
    """

    dataset: Dataset
    menu: Menu | None
    items: tuple[SplitItem, ...]
    counts: Mapping[str, int]

    def __iter__(self) -> Iterator[Record]:
        wanted = {item.id for item in self.items}
        for record in self.dataset:
            if record.id in wanted:
                yield record if self.menu is None else _with_tools(record, self.menu)

    def without_call(self) -> Iterator[Record]:
        """Yield the data's records in which no tool should be called, under the menu asked for."""
        for record in self.dataset:
            if record.call is None:
                yield record if self.menu is None else _with_tools(record, self.menu)


def choose_records(
    dataset: Dataset, *, menu: Menu | None = None, limit: int | None = None, seed: int = 0
) -> ChosenRecords:
    """Return the records that have a call and can be used; reads the dataset once.

    Args:
        dataset: records.
        menu: tools to offer with every record; a record whose call is not among them is left out.
        limit: most records; which ones depends on their ids and the seed, not on the order.
        seed: see `limit`.

    Raises:
        DatasetError: if none is left.
    """
    counts: Counter[str] = Counter(records=0, no_call=0, call_not_offered=0, beyond_limit=0)
    items: list[SplitItem] = []
    for record in dataset:
        counts["records"] += 1
        if record.call is None:
            counts["no_call"] += 1
        elif menu is not None and menu.get(record.call.name) is None:
            counts["call_not_offered"] += 1
        else:
            items.append(SplitItem.of(record))
    if limit is not None and len(items) > limit:
        counts["beyond_limit"] = len(items) - limit
        kept = drawn_ids([item.id for item in items], limit, seed)
        items = [item for item in items if item.id in kept]
    if not items:
        raise DatasetError(
            f"no record can be used: {len(dataset.problems)} cannot be read, "
            f"{counts['no_call']} have no call, "
            f"{counts['call_not_offered']} call a tool that is not offered",
            hint="check the data with `toolguard data validate`",
        )
    return ChosenRecords(dataset=dataset, menu=menu, items=tuple(items), counts=dict(counts))


def sample_records(dataset: Dataset, limit: int | None, seed: int = 0) -> Iterable[Record]:
    """Return the records, or `limit` of them drawn by id and seed, whatever their order."""
    if limit is None:
        return dataset
    kept = drawn_ids([record.id for record in dataset], limit, seed)
    return (record for record in dataset if record.id in kept)


def drawn_ids(ids: Sequence[str], limit: int, seed: int) -> frozenset[str]:
    """Return `limit` of the ids; which ones depends on them and the seed, not on their order."""
    return frozenset(sorted(ids, key=lambda record_id: draw_key(record_id, seed))[:limit])


def _with_tools(record: Record, menu: Menu) -> Record:
    """Return the record under another menu; accepted calls that it does not offer drop out."""
    offered = set(menu.names)
    changed = record.model_copy(
        update={
            "tools": menu.tools,
            "menu_id": None,
            "calls": tuple(call for call in record.calls if call.name in offered),
            "accept": tuple(entry for entry in record.accept if offered.issuperset(entry)),
        }
    )
    return changed.with_menu(menu)


@dataclass(frozen=True, slots=True, kw_only=True)
class MenuFile:
    """What `--tools` names: one menu for every record, or a file of menus by id."""

    menu: Menu | None
    menus: Path | None


def read_menu_file(path: Path | None) -> MenuFile:
    """Return the one menu of a JSON list of tools; any other file is taken as a `menus.json`.

    Raises:
        ConfigError: if the file cannot be read, or its list is no menu.
    """
    if path is None:
        return MenuFile(menu=None, menus=None)
    try:
        value = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as JSON: {error}", hint="pass a list of tools, or a menus.json"
        ) from error
    if not isinstance(value, list):
        return MenuFile(menu=None, menus=path)
    try:
        menu = Menu(tuple(ToolEntry.model_validate(_plain(tool)).to_tool() for tool in value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{path}: {where}: {first['msg']}", hint="list tools as objects"
        ) from error
    return MenuFile(menu=menu, menus=None)


def _plain(tool: object) -> object:
    """Return a tool without the `{type, function}` wrapper, if it has one."""
    return tool.get("function", tool) if isinstance(tool, dict) else tool
