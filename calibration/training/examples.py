"""What the agent learns from: examples, and the menus around them.

Examples come from the catalogue's templates, expanded on every draw, and from human-written records
of the tenths that are open to training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from toolguard.calibration.datasets.dataset import open_dataset
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.training.catalog import Catalog, is_fixed, load_catalog
from toolguard.guard.errors import DatasetError
from toolguard.guard.tools import Tool, ToolCall

HUMAN_SOURCES = ("snips", "hwu64", "clinc150")
TRAINING_TENTHS = 6
REDRAW_FIXED = 0.7  # a sentence without slots repeats itself, so it is drawn less often


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
        varied: whether words of its queries may be dropped.
    """

    name: str
    tools: Mapping[str, Tool]
    groups: Mapping[str, str]
    examples: dict[str, list[Example]] = field(default_factory=dict)
    silent: list[Example] = field(default_factory=list)
    sizes: tuple[int, int] = (2, 20)
    same_topic: float = 0.5
    varied: bool = True

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

    def callable_names(self) -> list[str]:
        """Return the names of the tools that have examples."""
        return [name for name in self.tools if self.examples[name]]

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
    """A pool whose examples are expanded from templates on every draw.

    Args:
        catalog: gives the words for the templates' slots.
        templates: tool name -> its templates.
        silent_templates: queries that call for no tool.
    """

    catalog: Catalog
    templates: Mapping[str, Sequence[str]]
    silent_templates: Sequence[str]

    def callable_names(self) -> list[str]:
        """Return the names of the tools that have templates."""
        return [name for name in self.tools if self.templates[name]]

    def draw_example(self, name: str, rng: Random) -> Example:
        """Return a fresh expansion of one of the tool's templates."""
        templates = self.templates[name]
        template = rng.choice(templates)
        if is_fixed(template) and rng.random() < REDRAW_FIXED:
            template = rng.choice(templates)
        expansion = self.catalog.expand(template, rng)
        return Example(
            query=expansion.query, call=ToolCall(name=name, arguments=expansion.arguments)
        )

    def draw_silent(self, menu: Sequence[Tool], rng: Random) -> Example | None:
        """Return a no-tool query, or (two in five) one for a tool that the menu does not offer."""
        absent = [n for n in self.tools if all(tool.name != n for tool in menu)]
        if absent and rng.random() < 0.4:
            return Example(query=self.draw_example(rng.choice(absent), rng).query, call=None)
        template = rng.choice(self.silent_templates)
        return Example(query=self.catalog.expand(template, rng).query, call=None)


def catalog_pool(part: str = "train", tenths: Iterable[int] = range(10)) -> CatalogPool:
    """Return the project's own tools with the `train` or the `test` templates.

    Args:
        part: which templates.
        tenths: of these, those whose text hashes to one of these tenths.
    """
    catalog, wanted = load_catalog(), frozenset(tenths)

    def some(templates: Sequence[str]) -> list[str]:
        return [template for template in templates if tenth_of(template) in wanted]

    tools = {name: entry.tool for name, entry in catalog.tools.items()}
    silent = catalog.no_tool_train if part == "train" else catalog.no_tool_test
    return CatalogPool(
        name="catalog",
        tools=tools,
        groups=dict.fromkeys(tools, "catalog"),
        examples={name: [] for name in tools},
        catalog=catalog,
        templates={name: some(getattr(catalog.tools[name], part)) for name in tools},
        silent_templates=some(silent),
    )


def tenth_of(key: str) -> int:
    """Return the tenth, 0 to 9, of a record by its id or of a template by its text.

    The agent learns from the records below `TRAINING_TENTHS`.
    """
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10


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
