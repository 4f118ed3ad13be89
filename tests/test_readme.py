"""README, docs, examples: code compiles, commands parse, links lead somewhere, blocks are real."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import click
import page_blocks
import pytest

from toolguard.calibration.cli import toolguard
from toolguard.calibration.datasets.dataset import build_record
from toolguard.guard import errors
from toolguard.guard.errors import ToolguardError
from toolguard.guard.policy import Policy

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
# Not the decision notes, which stay as they were written, nor the agent's card, which is generated.
PAGES = [
    README,
    *(ROOT / folder / "README.md" for folder in ("examples", "docs/generate")),
    *sorted((ROOT / "docs").glob("*.md")),
]
UPDATE = runpy.run_path(str(ROOT / "docs" / "generate" / "update_readme.py"))
AGENT = ROOT / "adapters" / "reference"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^(?:\$ |\.venv/bin/)?toolguard (.+)$")
INLINE = re.compile(r"`(?:\.venv/bin/)?toolguard ([^`\n]+)`")


def code_blocks(*languages: str) -> list[tuple[str, str]]:
    """Return page name and text of every fenced block in one of the languages."""
    return [
        (path.name, text)
        for path in PAGES
        for language, text in FENCE.findall(path.read_text("utf-8"))
        if language in languages
    ]


def commands() -> list[tuple[str, str]]:
    """Return page name and words of every toolguard command that is shown or named in a line."""
    shown = [
        (page, found[1])
        for page, text in code_blocks("bash", "text")
        for line in text.splitlines()
        if (found := COMMAND.match(line))
    ]
    named = [(p.name, words) for p in PAGES for words in INLINE.findall(p.read_text("utf-8"))]
    return shown + named


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that the words name and what follows its name."""
    command: click.Command = toolguard
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"no command {name!r}"
        command = found
    return command, rest


def blocks() -> dict[str, str]:
    """Return the bodies of the marked blocks of all pages by name."""
    return {found["name"]: found["body"].strip() for found in page_blocks.BLOCK.finditer(marked())}


def marked() -> str:
    """Return the text of the pages that `make readme` writes to."""
    return "\n".join(page.read_text("utf-8") for page in UPDATE["PAGES"])


def readme() -> str:
    return README.read_text("utf-8")


def is_measured(name: str) -> bool:
    """Return whether the numbers behind a block exist here."""
    if name == "commands":
        return True
    if name == "bench":
        path = UPDATE["BENCH_NUMBERS"]
        return path.exists() and not json.loads(path.read_text())["quick"]
    return AGENT.exists()


@pytest.mark.parametrize(("page", "text"), code_blocks("python"))
def test_code_compiles(page, text):
    """Every Python block is whole and well formed."""
    compile(text, page, "exec")


def test_quickstarts_import_what_exists():
    """The imports of the README's Python blocks work."""
    for page, text in code_blocks("python"):
        lines = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
        assert lines, page
        exec("\n".join(lines), {})  # noqa: S102 - the project's own README


def test_there_is_a_short_quickstart_for_each_use():
    """Each of the three uses has code or commands of about ten lines."""
    parts = readme().split("## Three uses")[1].split("\n## ")[0].split("\n### ")[1:]
    assert [part[:2] for part in parts] == ["1.", "2.", "3."]
    for part in parts:
        found = [text for language, text in FENCE.findall(part) if language in ("python", "bash")]
        assert found
        assert max(len(text.strip().splitlines()) for text in found) <= 14


@pytest.mark.parametrize(("page", "words"), commands())
def test_commands_parse(page, words):
    """Every command exists; where one is written out in full, its options do too."""
    command, rest = resolve(shlex.split(words))
    options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    assert {word for word in rest if word.startswith("--")} <= options
    if len(rest) < 3:
        return  # a mention, as `toolguard check --policy`
    assert not isinstance(command, click.Group), f"{page}: {words}"
    values, _, _ = command.make_parser(click.Context(command)).parse_args(rest)
    missing = [p.name for p in command.params if p.required and not values.get(p.name)]
    assert missing == [], f"{page}: {words}"


def test_the_pages_show_commands():
    """The pattern that finds commands does find them."""
    assert {words.split()[0] for _, words in commands()} >= {
        "doctor",
        "data",
        "calibrate",
        "evaluate",
        "check",
        "train",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_exist(page):
    """A link to a file of the repository finds it; those of the agent wait for the agent."""
    for link in LINK.findall(page.read_text("utf-8")):
        if link.startswith(("http://", "https://", "#")):
            continue
        target = (page.parent / link.partition("#")[0]).resolve()
        waits = target.is_relative_to(AGENT) and not AGENT.exists()
        assert target.exists() or waits, f"{page.name}: {link}"


@pytest.mark.parametrize("text", [text for _, text in code_blocks("yaml")])
def test_policies_are_valid(text, tmp_path):
    """Every policy that is shown can be loaded."""
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    Policy.load(path)


@pytest.mark.parametrize("text", [text for _, text in code_blocks("json")])
def test_records_are_valid(text):
    """Every record that is shown is one."""
    assert build_record(json.loads(text), {}).is_call


def test_each_block_has_a_source_and_stands_once():
    """The marked blocks of the pages are those that `make readme` writes."""
    names = [found["name"] for found in page_blocks.BLOCK.finditer(marked())]
    assert sorted(names) == sorted(UPDATE["SOURCES"])
    assert marked().count("<!-- output:") == marked().count("<!-- end -->") == len(names)


@pytest.mark.parametrize("name", UPDATE["SOURCES"])
def test_no_block_is_empty(name):
    """A block holds real output, or the placeholder as long as nothing could be measured."""
    body = blocks()[name]
    assert body
    assert body != UPDATE["PLACEHOLDER"] or not is_measured(name)


def test_the_agents_figures_are_its_numbers():
    """The table in the README is the one that the agent's numbers give."""
    path = UPDATE["AGENT_NUMBERS"]
    if not path.exists():
        pytest.skip("the bundled agent is not trained yet")
    assert blocks()["agent"] == UPDATE["agent"](path)


def test_the_command_list_is_the_one_of_the_program():
    """The list of commands in the README names each command with its summary."""
    for name, entry in toolguard.entries.items():
        line = rf"^  {name} +{re.escape(entry.summary)}$"
        assert re.search(line, blocks()["commands"], re.MULTILINE)


def test_figures_become_a_table(tmp_path):
    """Rates come with n, interval and bar, and one that nobody could measure is a dash."""
    rate = {
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "n": 1000,
        "bar": 0.95,
        "aim": None,
        "met": True,
    }
    empty = {"value": None, "low": None, "high": None, "n": 0}
    numbers = {"tool_accuracy": {"snips": rate}, "calls": {"new": empty}, "seed": 0}
    path = tmp_path / "numbers.json"
    path.write_text(json.dumps(numbers))
    assert UPDATE["agent"](path).splitlines()[2:] == [
        "| right tool | SNIPS, 7 tools | 1,000 | 50.0 % | 40.0 % to 60.0 % | >= 95.0 %: met |",
        "| calls where one is right | new | 0 | - | - |  |",
    ]


def test_benchmarks_become_a_table(tmp_path):
    """Figures come with quartiles, goal and machine; those of a quick run are left out."""
    figure = {
        "value": 1.5,
        "low": 1.25,
        "high": 2,
        "n": 40,
        "unit": "x",
        "goal": "<= 1",
        "met": False,
    }
    machine = {"cores": 2, "architecture": "x86_64", "torch": "2.13.0"}
    report = {"figures": {"f": figure}, "model": "reference", "machine": machine, "quick": False}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(report))
    table = UPDATE["bench"](path)
    assert "| `f` | 1.5 x | 1.25 to 2 | 40 | <= 1: **not met** |" in table
    assert "2 x86_64 cores" in table
    path.write_text(json.dumps(report | {"quick": True}))
    assert UPDATE["bench"](path) is None


def test_refresh_writes_known_blocks_alone():
    """Text outside the blocks stays; a block that nobody knows ends the program."""
    text = "a\n<!-- output: commands -->\nold\n<!-- end -->\nb\n"
    sources = {"commands": UPDATE["commands"], "nothing": lambda: None}
    fresh = page_blocks.refresh(text, sources, "none yet")
    assert fresh.startswith("a\n<!-- output: commands -->\n```text\n$ toolguard --help\n")
    assert fresh.endswith("```\n<!-- end -->\nb\n")
    assert page_blocks.refresh(text, sources, "none yet", ["nothing"]) == text
    empty = page_blocks.refresh(text.replace("commands", "nothing"), sources, "none yet")
    assert "\nnone yet\n" in empty
    with pytest.raises(SystemExit, match="unknown output 'weather'"):
        page_blocks.refresh(text.replace("commands", "weather"), sources, "none yet")


def test_every_error_has_its_entry():
    """The page of errors has a section a class, with symptom, cause and fix."""
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, ToolguardError)
    }
    assert set(sections) == classes
    for name, text in sections.items():
        for part in ("Symptom", "Cause", "Fix"):
            assert f"- **{part}**: " in text, f"{name} lacks {part}"


def test_every_policy_key_is_explained():
    """The page of the policy names every key of the format."""
    from toolguard.guard.policy import AuditPolicy, Budget, Steering, TierPolicy, ToolPolicy

    page = (ROOT / "docs" / "policy.md").read_text("utf-8")
    for section in (Policy, TierPolicy, ToolPolicy, Budget, AuditPolicy, Steering):
        for key in section.model_fields:
            assert f"`{key}`" in page
