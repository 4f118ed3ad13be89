"""The `toolguard` command: a group that imports a command's module only when it is run.

`toolguard --help` and a mistyped name answer at once; torch comes with the commands that use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from toolguard.guard.errors import ConfigError, ToolguardError


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """Where a command lives and what `--help` says of it without importing it.

    Args:
        module: full module name; the module exposes a click command or group named `command`.
        summary: one line.
    """

    module: str
    summary: str


_PACKAGE = "toolguard.calibration.commands"

COMMANDS: Mapping[str, CommandEntry] = {
    "doctor": CommandEntry(f"{_PACKAGE}.doctor", "Show what toolguard finds in a model."),
    "data": CommandEntry(f"{_PACKAGE}.data", "Validate and import labelled records."),
    "calibrate": CommandEntry(f"{_PACKAGE}.calibrate", "Make a profile from a model and data."),
    "evaluate": CommandEntry(f"{_PACKAGE}.evaluate", "Measure a profile on labelled records."),
    "report": CommandEntry(f"{_PACKAGE}.report", "Show what a profile is worth, on one page."),
    "check": CommandEntry(f"{_PACKAGE}.check", "Read the tool choice for one query."),
    "policy": CommandEntry(f"{_PACKAGE}.policy", "Check a policy, or replay it on recorded calls."),
    "audit": CommandEntry(f"{_PACKAGE}.audit", "List, verify and count what the guard recorded."),
    "dashboard": CommandEntry(f"{_PACKAGE}.dashboard", "Watch decisions and answer approvals."),
    "call-or-answer": CommandEntry(
        f"{_PACKAGE}.call_or_answer", "Measure when no tool should be called."
    ),
    "correct": CommandEntry(f"{_PACKAGE}.correct", "Compare what can be done with doubtful calls."),
    "guarantee": CommandEntry(f"{_PACKAGE}.guarantee", "Test risk control and the drift alarm."),
    "steer-eval": CommandEntry(
        f"{_PACKAGE}.steer_eval", "Compare ways of steering the tool choice."
    ),
    "replicate": CommandEntry(f"{_PACKAGE}.replicate", "Set the published claims beside numbers."),
    "train": CommandEntry(f"{_PACKAGE}.train", "Train the bundled reference agent."),
}


class LazyGroup(click.Group):
    """A group over a table of entries; turns our errors into messages and exit codes."""

    def __init__(self, *args: Any, entries: Mapping[str, CommandEntry], **options: Any) -> None:
        super().__init__(*args, **options)
        self.entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in the table's order, which is the order of use."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command, imported now; None for a name that is not in the table.

        Raises:
            ConfigError: if a package the command needs is not installed.
        """
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        try:
            command: click.Command = import_module(entry.module).command
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"`toolguard {cmd_name}` needs the module {error.name}, which is not installed",
                hint="install toolguard-margin with its dependencies and extras",
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write names and summaries from the table, importing nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self.entries.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a ToolguardError ends the program with its message and exit code."""
        try:
            return super().invoke(ctx)
        except ToolguardError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(
    cls=LazyGroup, entries=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="toolguard-margin", prog_name="toolguard")
def toolguard() -> None:
    """Read a local model's tool choice before it is written, and stop the calls it would get wrong.

    Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 a gate was not met.
    """


def main() -> None:
    """Run the command line."""
    toolguard()
