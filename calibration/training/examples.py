"""What the agent learns from: examples, and the menus around them.

Examples come from the catalogue's templates, expanded on every draw, and from human-written records
of the tenths that are open to training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from toolguard.calibration.dataset import open_dataset
from toolguard.calibration.records import Record
from toolguard.calibration.training.catalog import Catalog, load_catalog
from toolguard.guard.errors import DatasetError
from toolguard.guard.tools import Menu, Tool, ToolCall

HUMAN_SOURCES = ("snips", "hwu64", "clinc150")
TRAINING_TENTHS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One user query with the call it asks for (None = no tool), as the agent sees it."""

    query: str
    call: ToolCall | None


@dataclass(slots=True, kw_only=True)
class Pool:
    """Tools that may stand together in one menu, with the examples of each.

    Args:
        name: which source it is.
        tools: by name.
        groups: tool name -> topic; menus mix tools of one topic with others.
        examples: tool name -> examples; a catalogue pool has templates instead.
        silent: examples that call for no tool.
        sizes: menu sizes drawn, inclusive.
        same_topic: share of a menu's distractors that come from the topic of its first tool.
    """

    name: str
    tools: Mapping[str, Tool]
    groups: Mapping[str, str]
    examples: dict[str, list[Example]] = field(default_factory=dict)
    silent: list[Example] = field(default_factory=list)
    sizes: tuple[int, int] = (2, 20)
    same_topic: float = 0.5

    def draw_menu(
        self, rng: Random, size: int | None = None, first: str | None = None
    ) -> list[Tool]:
        """Return a shuffled menu of distinct tools, about `same_topic` of them from one topic.

        Args:
            rng: source of randomness.
            size: number of tools; by default drawn from `sizes`.
            first: a tool that is in the menu and gives the topic; by default drawn.
        """
        names = list(self.tools)
        size = min(size or rng.randint(*self.sizes), len(names))
        first = first or rng.choice(names)
        near = [n for n in names if n != first and self.groups[n] == self.groups[first]]
        chosen = [first, *rng.sample(near, min(len(near), round(self.same_topic * (size - 1))))]
        rest = [n for n in names if n not in chosen]
        chosen += rng.sample(rest, size - len(chosen))
        rng.shuffle(chosen)
        return [self.tools[name] for name in chosen]

    def draw_example(self, name: str, rng: Random) -> Example:
        """Return a random example that calls the tool `name`."""
        return rng.choice(self.examples[name])

    def draw_silent(self, menu: Sequence[Tool], rng: Random) -> Example | None:
        """Return a query that none of `menu` answers; None if the pool has none.

        It is a no-tool query, or one for a tool of a topic that the menu lacks.
        """
        topics = {self.groups[tool.name] for tool in menu}
        absent = [n for n in self.examples if self.groups[n] not in topics]
        if absent and (not self.silent or rng.random() < 0.4):
            return Example(query=self.draw_example(rng.choice(absent), rng).query, call=None)
        return rng.choice(self.silent) if self.silent else None


@dataclass(slots=True, kw_only=True)
class CatalogPool(Pool):
    """A pool whose examples are expanded from templates on every draw."""

    catalog: Catalog
    part: str

    def draw_example(self, name: str, rng: Random) -> Example:
        """Return a fresh expansion of one of the tool's templates."""
        expansion = self.catalog.expand(
            rng.choice(getattr(self.catalog.tools[name], self.part)), rng
        )
        return Example(
            query=expansion.query, call=ToolCall(name=name, arguments=expansion.arguments)
        )

    def draw_silent(self, menu: Sequence[Tool], rng: Random) -> Example | None:
        """Return a no-tool query, or (two in five) one for a tool that the menu does not offer."""
        absent = [n for n in self.tools if all(tool.name != n for tool in menu)]
        if absent and rng.random() < 0.4:
            return Example(query=self.draw_example(rng.choice(absent), rng).query, call=None)
        templates = (
            self.catalog.no_tool_train if self.part == "train" else self.catalog.no_tool_test
        )
        return Example(query=self.catalog.expand(rng.choice(templates), rng).query, call=None)


def catalog_pool(part: str = "train") -> CatalogPool:
    """Return the project's own tools with the `train` or the `test` templates."""
    catalog = load_catalog()
    tools = {name: entry.tool for name, entry in catalog.tools.items()}
    return CatalogPool(
        name="catalog",
        tools=tools,
        groups=dict.fromkeys(tools, "catalog"),
        examples={name: [] for name in tools},
        catalog=catalog,
        part=part,
    )


def tenth_of(record_id: str) -> int:
    """Return the record's tenth, 0 to 9; the agent learns from those below `TRAINING_TENTHS`."""
    return int(hashlib.sha256(record_id.encode()).hexdigest(), 16) % 10


def _topic(record: Record) -> str:
    tags = dict(tag.split(":", 1) for tag in record.tags if ":" in tag)
    return tags.get("scenario") or tags.get("domain") or record.source


def human_pools(
    data: Path, tenths: Iterable[int], sources: Sequence[str] = HUMAN_SOURCES
) -> list[Pool]:
    """Return one pool a source from the records of `data` whose tenth is in `tenths`.

    Raises:
        DatasetError: if a source's folder is missing or holds no such record.
    """
    wanted = frozenset(tenths)
    return [_human_pool(data / source, source, wanted) for source in sources]


def _human_pool(folder: Path, source: str, tenths: frozenset[int]) -> Pool:
    tools: dict[str, Tool] = {}
    groups: dict[str, str] = {}
    examples: dict[str, list[Example]] = {}
    silent: list[Example] = []
    for record in open_dataset([folder]):
        for tool in record.menu:
            tools.setdefault(tool.name, tool)
        if record.call is not None:
            groups[record.call.name] = _topic(record)
        if tenth_of(record.id) not in tenths:
            continue
        if record.call is None:
            silent.append(Example(query=record.query, call=None))
            continue
        call = ToolCall(name=record.call.name, arguments=record.call.arguments)
        examples.setdefault(call.name, []).append(Example(query=record.query, call=call))
    if not examples:
        raise DatasetError(
            f"{folder} holds no training record",
            hint="pass the folder that holds snips/, hwu64/, clinc150/",
        )
    tools = {name: tool for name, tool in tools.items() if name in examples}
    sizes, same_topic = {"snips": ((2, 7), 1.0), "clinc150": ((4, 20), 0.9)}.get(
        source, ((2, 20), 0.5)
    )
    return Pool(
        name=source,
        tools=tools,
        groups=groups,
        examples=examples,
        silent=silent,
        sizes=sizes,
        same_topic=same_topic,
    )


def vary_tools(menu: Sequence[Tool], rng: Random, *, names_only: float) -> Menu:
    """Return the menu with names alone (this share), else whole or, one in three, undescribed."""
    if rng.random() < names_only:
        return Menu(tuple(Tool(name=t.name) for t in menu))
    if rng.random() < 1 / 3:
        return Menu(tuple(Tool(name=t.name, parameters=t.parameters) for t in menu))
    return Menu(tuple(menu))


def vary_query(example: Example, rng: Random, *, drop: float) -> Example:
    """Return the example with words dropped outside the argument values.

    Args:
        example: what to vary.
        rng: source of randomness.
        drop: probability, in [0, 1], that a droppable word is left out.
    """
    query = example.query
    kept = json.dumps(dict(example.call.arguments), ensure_ascii=False) if example.call else ""
    words = query.split()
    if len(words) > 3 and rng.random() < 0.6:
        words = [w for w in words if w in kept or rng.random() >= drop] or words
        query = " ".join(words)
    return Example(query=query, call=example.call)


def fit_call(call: ToolCall, menu: Menu) -> ToolCall:
    """Return the call with only the arguments that the menu's own schema of the tool declares."""
    tool = menu.get(call.name)
    declared: Mapping[str, Any] = tool.parameters.get("properties", {}) if tool else {}
    return ToolCall(
        name=call.name, arguments={k: v for k, v in call.arguments.items() if k in declared}
    )
