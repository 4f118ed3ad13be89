"""What the agent is measured on: queries and frames it never saw, as records.

Its own tools come from the catalogue's curated queries and test frames; the human-written records
are those of the tenths that the agent did not learn from.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from random import Random

from toolguard.calibration.datasets.dataset import open_dataset
from toolguard.calibration.datasets.records import Call, Record
from toolguard.calibration.training.catalog import base_menu, curated_queries
from toolguard.calibration.training.examples import (
    Example,
    Pool,
    catalog_pool,
    human_pools,
    tenth_of,
)
from toolguard.calibration.training.held_out import draw_cases
from toolguard.guard.tools import Menu, ToolCall

OWN_MENU, HWU64_MENU = 10, 16  # tools in a drawn menu
FRAME_QUERIES = 1000  # expansions of the test frames, twenty a tool
_SHARING = 4  # queries that share a drawn menu of HWU64


def curated_records() -> list[Record]:
    """Return the curated queries over the menu of the ten base tools."""
    menu = base_menu()
    examples = [
        Example(query=item.query, call=ToolCall(name=name, arguments=item.arguments))
        for name, item in curated_queries()
    ]
    return _own_records("curated", menu, examples, 0)


def frame_records(seed: int, count: int = FRAME_QUERIES) -> list[Record]:
    """Return expansions of the test frames of all tools, each over a shuffled menu of ten."""
    records: list[Record] = []
    for case in draw_cases(catalog_pool("test"), size=OWN_MENU, count=count, seed=seed):
        records += _own_records("frames", case.menu, case.examples, len(records))
    return records


def silent_records(seed: int, count: int) -> list[Record]:
    """Return different queries that call for no tool at all, over shuffled menus of ten."""
    pool, rng = catalog_pool("test"), Random(f"silent:{seed}")
    templates = pool.catalog.no_tool_test
    queries: dict[str, None] = {}
    for draw in range(20 * count):  # short templates repeat; long before this all are drawn
        queries[pool.catalog.expand(templates[draw % len(templates)], rng).query] = None
        if len(queries) == count:
            break
    return _one_menu_each("silent", pool, [(query, None) for query in queries], rng)


def absent_tool_records(seed: int, count: int) -> list[Record]:
    """Return queries for a tool that the menu of ten does not offer: near misses."""
    pool, rng = catalog_pool("test"), Random(f"absent:{seed}")
    names = list(pool.tools)
    wanted = [names[draw % len(names)] for draw in range(count)]
    queries = [(pool.draw_example(name, rng).query, name) for name in wanted]
    return _one_menu_each("absent", pool, queries, rng)


def _one_menu_each(
    split: str, pool: Pool, queries: Iterable[tuple[str, str | None]], rng: Random
) -> list[Record]:
    """Return a record a query; its menu lacks the tool named beside the query."""
    records: list[Record] = []
    for query, absent in queries:
        drawn = [tool for tool in pool.draw_menu(rng, OWN_MENU + 1) if tool.name != absent]
        menu = Menu(tuple(drawn[:OWN_MENU]))
        records += _own_records(split, menu, [Example(query=query, call=None)], len(records))
    return records


def _own_records(split: str, menu: Menu, examples: Sequence[Example], first: int) -> list[Record]:
    return [
        _over_menu(
            Record(
                id=f"catalog/{split}/{number}",
                source="catalog",
                split=split,
                query=example.query,
                tools=menu.tools,
                call=_call(example),
            ),
            menu,
        )
        for number, example in enumerate(examples, start=first)
    ]


def _call(example: Example) -> Call | None:
    call = example.call
    return None if call is None else Call(name=call.name, arguments=dict(call.arguments))


def _over_menu(record: Record, menu: Menu) -> Record:
    """Return the record with this very menu, so that its queries are read together."""
    return record.model_copy(update={"tools": menu.tools, "menu_id": None}).with_menu(menu)


def unseen_records(
    data: Path, source: str, learned: Container[int], *, calls: bool = True
) -> list[Record]:
    """Return the records of the source's other tenths that call a tool, or those that call none.

    Args:
        data: folder of the sources' folders.
        source: which one.
        learned: tenths that the agent learned from.
        calls: whether a tool should be called.

    Raises:
        DatasetError: if the source's folder is missing.
    """
    return [
        record
        for record in open_dataset([data / source])
        if tenth_of(record.id) not in learned and record.is_call == calls
    ]


def hwu64_records(data: Path, learned: Container[int], seed: int) -> list[Record]:
    """Return the unseen HWU64 records over menus of 16, half of the rest from the same scenario.

    A few queries for one tool share a menu; menus are drawn from all 64 tools.

    Raises:
        DatasetError: if the source's folder is missing.
    """
    rng = Random(f"hwu64:{seed}")
    (pool,) = human_pools(data, range(10), ("hwu64",))
    by_tool: dict[str, list[Record]] = {}
    for record in unseen_records(data, "hwu64", learned):
        if record.call is not None:
            by_tool.setdefault(record.call.name, []).append(record)
    records: list[Record] = []
    for name, waiting in by_tool.items():
        for start in range(0, len(waiting), _SHARING):
            menu = Menu(tuple(pool.draw_menu(rng, HWU64_MENU, name)))
            records += [_over_menu(record, menu) for record in waiting[start : start + _SHARING]]
    return records


def capped(records: list[Record], limit: int | None, seed: int) -> list[Record]:
    """Return at most `limit` of the records, drawn by `seed`, in their own order."""
    if limit is None or len(records) <= limit:
        return records
    kept = sorted(Random(f"cap:{seed}").sample(range(len(records)), limit))
    return [records[index] for index in kept]
