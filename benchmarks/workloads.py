"""Records to calibrate on: the public airline menu where it is at hand, and generated ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from toolguard.calibration.datasets.dataset import MENUS_FILE, RECORDS_FILE, open_dataset
from toolguard.calibration.datasets.records import Call, Record
from toolguard.calibration.training.catalog import load_catalog
from toolguard.guard.tools import Tool

# As many as the public menu and its records have.
AIRLINE_TOOLS, AIRLINE_QUERIES, AIRLINE_SYSTEM_CHARACTERS = 14, 282, 6155
_MENUS, _MENU_TOOLS = 2, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Records under one menu, each with a query of its own; title: what they are."""

    records: tuple[Record, ...]
    title: str


def airline(folder: Path, *, limit: int | None = None) -> Workload:
    """Return the distinct queries of the airline records as single-turn requests.

    Args:
        folder: of the public records; if they are not there, a menu of the same size with as many
            queries is made from the project's catalogue.
        limit: most queries.
    """
    source = folder / "tau_airline"
    if not (source / RECORDS_FILE).is_file():
        return Workload(
            records=tuple(islice(_generated_airline(), limit)),
            title="a generated menu of the airline menu's size (the public records are not there)",
        )
    by_query = {record.query: record for record in open_dataset([source])}
    records = (
        record.model_copy(update={"messages": None}).with_menu(record.menu)
        for record in by_query.values()
    )
    return Workload(records=tuple(islice(records, limit)), title="the airline menu of tau-bench")


def public_folder() -> Path:
    """Return where the public records are looked for."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("TOOLGUARD_DATA") or beside)


def _generated_airline() -> Iterator[Record]:
    tools = [entry.tool for entry in load_catalog().tools.values()][:AIRLINE_TOOLS]
    system = _system_text(tools)
    menu = None
    for number, (query, name) in enumerate(islice(_queries(tools, seed=1), AIRLINE_QUERIES)):
        record = Record(
            id=f"generated/{number}",
            source="generated",
            split="all",
            query=query,
            tools=tuple(tools),
            system=system,
            call=Call(name=name),
        )
        menu = menu or record.menu
        yield record.with_menu(menu)


def _system_text(tools: list[Tool]) -> str:
    """Return rules about the tools, as long as the airline policy."""
    lines = [f"Requests such as '{query}' need {name}." for query, name in _some(tools, 400)]
    return "\n".join(lines)[:AIRLINE_SYSTEM_CHARACTERS]


def _some(tools: list[Tool], count: int) -> list[tuple[str, str]]:
    return list(islice(_queries(tools, seed=2), count))


def _queries(tools: list[Tool], seed: int) -> Iterator[tuple[str, str]]:
    """Yield distinct queries with the tool each calls for, without end."""
    catalog, rng, seen = load_catalog(), Random(seed), set[str]()
    while True:
        name = rng.choice(tools).name
        query = catalog.expand(rng.choice(catalog.tools[name].train), rng).query
        if query not in seen:
            seen.add(query)
            yield query, name


def write_generated(folder: Path, count: int) -> Path:
    """Write `count` records under a few menus of ten tools as a dataset; return its folder.

    Half of each menu counts as right, so that an untrained agent gets some right too.
    """
    rng = Random(0)
    tools = [entry.tool for entry in load_catalog().tools.values()]
    menus = [rng.sample(tools, _MENU_TOOLS) for _ in range(_MENUS)]
    folder.mkdir(parents=True, exist_ok=True)
    entries = {f"menu{number}": {"tools": _plain(menu)} for number, menu in enumerate(menus)}
    (folder / MENUS_FILE).write_text(json.dumps(entries), encoding="utf-8")
    streams = [_queries(menu, seed=number) for number, menu in enumerate(menus)]
    with (folder / RECORDS_FILE).open("w", encoding="utf-8") as stream:
        for number in range(count):
            query, name = next(streams[number % _MENUS])
            accepted = rng.sample(menus[number % _MENUS], _MENU_TOOLS // 2)
            stream.write(json.dumps(_row(number, query, name, accepted)) + "\n")
    return folder


def _plain(menu: list[Tool]) -> list[dict[str, Any]]:
    return [tool.to_schema()["function"] for tool in menu]


def _row(number: int, query: str, name: str, accepted: list[Tool]) -> dict[str, Any]:
    return {
        "id": f"generated/{number}",
        "source": "generated",
        "split": "all",
        "query": query,
        "menu": f"menu{number % _MENUS}",
        "call": {"name": name, "arguments": {}},
        "accept": [{tool.name: {} for tool in accepted}],
    }
