"""The project's own queries: tools, sentence templates and word lists, written for this project.

A template is plain text with `(a|b|)` alternatives, `{arg:lexicon}` argument slots, `{:lexicon}`
fillers and `{arg=JSON}` constants that add no text. A lexicon entry `surface => JSON` writes
`surface` and passes the JSON value.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from random import Random
from typing import Any

import yaml

from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import Menu, Tool

BASE_FILE, CURATED_FILE, NO_TOOL_FILE = "base.yaml", "curated.yaml", "no_tool.yaml"
TOOL_FILES = (BASE_FILE, "daily.yaml", "services.yaml")
LEXICON_FILES = ("lexicons.yaml", *TOOL_FILES, NO_TOOL_FILE)

_SLOT = re.compile(r"\{(?P<argument>\w*)(?:(?P<constant>=)(?P<value>[^{}]*)|:(?P<lexicon>\w+))\}")
_INNERMOST_ALTERNATIVES = re.compile(r"\(([^()]*)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """One query made from a template, and the arguments its slots give."""

    query: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogTool:
    """A tool with its training and its test templates, which share no frame."""

    tool: Tool
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """All of the project's own tools and sentences.

    Args:
        tools: by name, base tools first.
        base: names of the ten base tools.
        lexicons: word lists by name.
        no_tool_train: templates of queries that call for no tool.
        no_tool_test: the same, for tests only.
        refusals: what the agent answers when no tool fits.
    """

    tools: Mapping[str, CatalogTool]
    base: tuple[str, ...]
    lexicons: Mapping[str, tuple[str, ...]]
    no_tool_train: tuple[str, ...]
    no_tool_test: tuple[str, ...]
    refusals: tuple[str, ...]

    def expand(self, template: str, rng: Random) -> Expansion:
        """Return one random expansion of `template`.

        Raises:
            ConfigError: if the template names a lexicon that does not exist.
        """
        text = _choose_alternatives(template, rng)
        arguments: dict[str, Any] = {}
        pieces: list[str] = []
        end = 0
        for slot in _SLOT.finditer(text):
            pieces.append(text[end : slot.start()])
            end = slot.end()
            surface, value = self._fill(slot, template, rng)
            pieces.append(surface)
            if slot["argument"]:
                arguments[slot["argument"]] = value
        query = " ".join("".join([*pieces, text[end:]]).split())
        return Expansion(query=query, arguments=arguments)

    def _fill(self, slot: re.Match[str], template: str, rng: Random) -> tuple[str, Any]:
        if slot["constant"]:
            return "", json.loads(slot["value"])
        entries = self.lexicons.get(slot["lexicon"])
        if not entries:
            raise ConfigError(
                f"template {template!r} names the unknown lexicon {slot['lexicon']!r}"
            )
        surface, arrow, value = rng.choice(entries).partition(" => ")
        return surface, json.loads(value) if arrow else surface


def is_fixed(template: str) -> bool:
    """Return whether the template always expands to the same query."""
    return "|" not in template and not any(slot["lexicon"] for slot in _SLOT.finditer(template))


def _choose_alternatives(template: str, rng: Random) -> str:
    text = template
    while found := _INNERMOST_ALTERNATIVES.search(text):
        text = text[: found.start()] + rng.choice(found[1].split("|")) + text[found.end() :]
    return text


def _read(name: str) -> dict[str, Any]:
    text = (
        resources.files("toolguard.calibration.training")
        .joinpath("catalog", name)
        .read_text("utf-8")
    )
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def _catalog_tools(entries: Sequence[Mapping[str, Any]]) -> dict[str, CatalogTool]:
    return {
        entry["name"]: CatalogTool(
            tool=Tool.from_schema(entry),
            train=tuple(entry["frames"]["train"]),
            test=tuple(entry["frames"]["test"]),
        )
        for entry in entries
    }


@functools.cache
def load_catalog() -> Catalog:
    """Return the catalogue shipped with the package, read once."""
    lexicons: dict[str, tuple[str, ...]] = {}
    for name in LEXICON_FILES:
        for lexicon, entries in _read(name).get("lexicons", {}).items():
            lexicons[lexicon] = tuple(str(entry) for entry in entries)
    tools: dict[str, CatalogTool] = {}
    for name in TOOL_FILES:
        tools |= _catalog_tools(_read(name)["tools"])
    silent = _read(NO_TOOL_FILE)
    return Catalog(
        tools=tools,
        base=tuple(entry["name"] for entry in _read(BASE_FILE)["tools"]),
        lexicons=lexicons,
        no_tool_train=tuple(silent["no_tool"]["train"]),
        no_tool_test=tuple(silent["no_tool"]["test"]),
        refusals=tuple(silent["refusals"]),
    )


def base_menu() -> Menu:
    """Return the menu of the ten base tools, in catalogue order."""
    catalog = load_catalog()
    return Menu(tuple(catalog.tools[name].tool for name in catalog.base))


def curated_queries() -> list[tuple[str, Expansion]]:
    """Return the curated (tool name, query with arguments) pairs, which no training ever sees."""
    queries = _read(CURATED_FILE)["queries"]
    return [
        (tool, Expansion(query=item["query"], arguments=item["arguments"]))
        for tool, items in queries.items()
        for item in items
    ]
