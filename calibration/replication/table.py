"""The replication table as Markdown: published claims, one row a source, one column a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolguard.calibration.measuring.rate_text import percent_text, rate_text
from toolguard.calibration.replication.claims import READING, SECTIONS, Found, Section
from toolguard.guard.errors import ConfigError

SOURCE_NAMES: Mapping[str, str] = {
    "curated": "own curated",
    "frames": "own frames",
    "snips": "SNIPS",
    "clinc150": "CLINC150",
    "hwu64": "HWU64",
    "tau_airline": "tau-bench airline",
}
NOT_RUN = "4B and larger"
_MARKED = re.compile(r"(<!-- replication -->\n).*?(<!-- end -->)", re.DOTALL)


def write_into(page: Path, text: str) -> None:
    """Put the text between the page's marks, `<!-- replication -->` and `<!-- end -->`.

    Raises:
        ConfigError: if the page cannot be read or has no marks.
    """
    try:
        whole = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {page}: {error.strerror}") from None
    if not _MARKED.search(whole):
        raise ConfigError(
            f"{page} has no place for the tables",
            hint="add a line `<!-- replication -->` and a line `<!-- end -->`",
        )
    page.write_text(_MARKED.sub(lambda found: f"{found[1]}{text}\n{found[2]}", whole), "utf-8")


def replication_table(result: Mapping[str, Any]) -> str:
    """Return all tables as Markdown; `result` is what `replicate.replicate` returns."""
    lines = [*_models(result)]
    for section in SECTIONS:
        lines += ["", f"### {section.title}", "", *_section(section, result)]
    if result["steps"]:
        lines += ["", "### What training knows first", "", *_steps(result)]
    return "\n".join(lines)


def cell(found: Found, *, percent: bool) -> str:
    """Return a rate as `97.3 [94.8, 98.6] n=300`, in per cent where it is a share; `-` if none."""
    if found is None or found["value"] is None:
        return "-"
    told = percent_text(found) if percent else rate_text(found)
    return f"{told} n={found['n']}"


def _models(result: Mapping[str, Any]) -> Iterator[str]:
    yield "| model | architecture | parameters | blocks | width |"
    yield "|---|---|---|---|---|"
    for name, facts in result["models"].items():
        yield (
            f"| {name} | {facts['family']} | {facts['parameters']:,} | {facts['blocks']} "
            f"| {facts['hidden_size']} |"
        )
    yield f"| {NOT_RUN} | | | | not run |"


def _section(section: Section, result: Mapping[str, Any]) -> Iterator[str]:
    names = list(result["models"])
    yield _row(["claim", "published", "queries", *names, NOT_RUN])
    yield _row(["---"] * (len(names) + 4))
    for claim in section.claims:
        for source in result["sources"]:
            found = [claim.read(result["measured"][name][source]) for name in names]
            told = [cell(one, percent=section.percent) for one in found]
            yield _row([claim.words, claim.published, SOURCE_NAMES[source], *told, "not run"])


def _steps(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield, for each source, what can be read after so many steps of training, in per cent."""
    for source in result["sources"]:
        yield _row([f"{SOURCE_NAMES[source]}: steps", *(claim.words for claim in READING)])
        yield _row(["---"] * (len(READING) + 1))
        for step, measured in result["steps"].items():
            told = [cell(claim.read(measured[source]), percent=True) for claim in READING]
            yield _row([step, *told])
        yield ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
