"""Puts real output into the marked blocks of README.md and docs/output.md; `make readme` runs it.

Each block has one source below: a command that is run now, or a file of numbers that a command
wrote. A block whose source is not there yet gets a line that says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from page_blocks import Source, command_output, fenced, refresh

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "output.md")
PICTURE = ROOT / "docs" / "margins.png"
DEMO_OUT = Path("out/demo")
AGENT_NUMBERS = ROOT / "adapters" / "reference" / "numbers.json"
BENCH_NUMBERS = ROOT / "benchmarks" / "results.json"
QUERY = "Find the notes from this morning."
PLACEHOLDER = "_Not measured yet; `make readme` writes this block._"

_QUANTITIES = {
    "tool_accuracy": "right tool",
    "arguments_valid": "call fits its schema",
    "calls": "calls where one is right",
    "answers_in_words": "answers in words where none is right",
}
_QUERIES = {
    "curated": "own curated queries, 10 tools",
    "frames": "own test templates, 10 of 50 tools",
    "snips": "SNIPS, 7 tools",
    "clinc150": "CLINC150, 15 tools of a domain",
    "hwu64": "HWU64, 16 of 64 tools",
    "all": "all of these",
    "no_tool": "own no-tool queries",
    "absent_tool": "the right tool is not on the menu",
    "clinc150_out_of_scope": "CLINC150 out of scope",
}


def printed_by(name: str, *options: str) -> str:
    """Return what an example prints; one that fails ends the program."""
    program = ROOT / "examples" / f"{name}.py"
    done = subprocess.run(  # noqa: S603 - the project's own example
        [sys.executable, program, *options], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{program} ended with {done.returncode}")
    return done.stdout


@cache
def demo_sections() -> Mapping[str, str]:
    """Return what the demo prints, by the title of its section; runs it once."""
    text = printed_by("demo")
    parts = re.split(r"^== \d+\. (.+) ==$", text, flags=re.MULTILINE)
    return {title: body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def commands() -> str:
    """Return the list of commands."""
    return command_output("--help")


def demo_section(title: str) -> Source:
    """Return a source that gives one section of the demo."""

    def section() -> str | None:
        return fenced(demo_sections()[title]) if AGENT_NUMBERS.exists() else None

    return section


def check() -> str | None:
    """Return one reading under the demo's profile."""
    if not AGENT_NUMBERS.exists():
        return None
    demo_sections()
    profile, policy = str(DEMO_OUT / "profile"), "examples/policy.yaml"
    options = ("--profile", profile, "--model", "reference", "--policy", policy)
    return command_output("check", *options, "--query", QUERY)


def example(name: str, *options: str) -> Source:
    """Return a source that gives what an example prints under the demo's profile."""

    def shown() -> str | None:
        if not AGENT_NUMBERS.exists():
            return None
        demo_sections()
        with tempfile.TemporaryDirectory() as folder:
            text = printed_by(name, *(word.format(folder=folder) for word in options))
        return fenced(text.replace(folder, "out"))

    return shown


def picture() -> str | None:
    """Copy the demo's picture into docs and return the link to it."""
    if not AGENT_NUMBERS.exists():
        return None
    demo_sections()
    drawn = ROOT / DEMO_OUT / "margins.png"
    if not drawn.exists():
        return None
    shutil.copyfile(drawn, PICTURE)
    words = "Left: margins of right and wrong calls. Right: wrong calls among those allowed."
    return f"![{words}]({PICTURE.relative_to(ROOT).as_posix()})"


def agent(path: Path = AGENT_NUMBERS) -> str | None:
    """Return the bundled agent's figures as a table, from what its model card was made from."""
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "| what | queries | n | rate | 95 % interval | asked for |",
        "|---|---|---:|---:|---|---|",
    ]
    for quantity, title in _QUANTITIES.items():
        for source, rate in found.get(quantity, {}).items():
            cells = (
                title,
                _QUERIES.get(source, source),
                f"{rate['n']:,}",
                *_rate(rate),
                _bar(rate),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(rate: Mapping[str, Any]) -> tuple[str, str]:
    if rate["value"] is None:
        return "-", "-"
    return _percent(rate["value"]), f"{_percent(rate['low'])} to {_percent(rate['high'])}"


def _bar(rate: Mapping[str, Any]) -> str:
    if rate.get("bar") is None:
        return ""
    verdict = {True: "met", False: "**not met**", None: "not measured"}[rate["met"]]
    return f">= {_percent(rate['bar'])}: {verdict}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def bench(path: Path = BENCH_NUMBERS) -> str | None:
    """Return the benchmarks' figures as a table."""
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["quick"]:  # shows that the benchmarks run; its figures say nothing
        return None
    lines = ["| figure | median | quartiles | n | goal |", "|---|---:|---|---:|---|"]
    for name, figure in found["figures"].items():
        verdict = {True: ": met", False: ": **not met**", None: ""}[figure["met"]]
        quartiles = f"{figure['low']:g} to {figure['high']:g}"
        goal = f"{figure['goal']}{verdict}" if figure["goal"] else ""
        value = f"{figure['value']:g} {figure['unit']}"
        lines.append(f"| `{name}` | {value} | {quartiles} | {figure['n']} | {goal} |")
    machine = found["machine"]
    where = f"{machine['cores']} {machine['architecture']} cores, torch {machine['torch']}"
    return "\n".join([*lines, "", f"Measured on {where}; agent: {found['model']}."])


SOURCES: Mapping[str, Source] = {
    "commands": commands,
    "calibrate": demo_section("Calibrate"),
    "evaluate": demo_section("Evaluate"),
    "demo": demo_section("Guarded calls"),
    "picture": picture,
    "check": check,
    "langchain": example("langchain_agent", "--audit", "{folder}/langchain_agent.db"),
    "staging": example("staging_block", "--out", "{folder}/staging_block"),
    "agent": agent,
    "bench": bench,
}


def main() -> None:
    """Rewrite the pages."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", action="append", default=[], choices=list(SOURCES))
    only = parser.parse_args().only
    with contextlib.chdir(ROOT):
        for page in PAGES:
            text = refresh(page.read_text("utf-8"), SOURCES, PLACEHOLDER, only)
            page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
