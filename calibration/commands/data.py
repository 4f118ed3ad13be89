"""`toolguard data`: check files of records, make them from upstream data sets, and choose them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from toolguard.calibration.command_data import open_data
from toolguard.calibration.command_options import data_option, json_option
from toolguard.calibration.command_output import show_result
from toolguard.calibration.datasets.dataset import Dataset, RecordProblem, open_dataset
from toolguard.calibration.datasets.dataset_writing import refuse_existing, write_dataset
from toolguard.calibration.datasets.own_data import write_curated
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.importers.bfcl import import_bfcl
from toolguard.calibration.importers.clinc150 import import_clinc150
from toolguard.calibration.importers.snips import import_snips
from toolguard.calibration.importers.upstream import ImportReport
from toolguard.calibration.training.learned import agent_facts, unseen
from toolguard.guard.errors import ConfigError, DatasetError

_IMPORTERS: dict[str, Callable[[Sequence[Path], Path], ImportReport]] = {
    "bfcl": import_bfcl,
    "snips": import_snips,
    "clinc150": import_clinc150,
}
_COLUMNS = ("records", "calls", "no-call", "tools", "menus", "problems")
_COLUMN_WIDTH = 9
_OUT = click.option(
    "--out",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for records.jsonl and menus.json; must not hold them yet.",
)


@dataclass(slots=True, kw_only=True)
class FileCount:
    """What stands in one file, or in all together.

    Args:
        records: valid records.
        calls: of these, the ones in which a tool should be called.
        problems: faults of the others, and of menus.
        tools: names offered.
        menus: ids or content hashes of the menus in use.
    """

    records: int = 0
    calls: int = 0
    problems: int = 0
    tools: set[str] = field(default_factory=set)
    menus: set[str] = field(default_factory=set)

    def add(self, record: Record) -> None:
        """Count one record."""
        self.records += 1
        self.calls += record.is_call
        if not record.tools:
            return
        menu = record.menu_id or record.menu.content_hash
        if menu not in self.menus:
            self.menus.add(menu)
            self.tools.update(record.menu.names)

    def to_row(self) -> dict[str, int]:
        """Return the numbers under the table's column names."""
        no_call = self.records - self.calls
        sizes = (len(self.tools), len(self.menus))
        numbers = (self.records, self.calls, no_call, *sizes, self.problems)
        return dict(zip(_COLUMNS, numbers, strict=True))


@click.group()
def command() -> None:
    """Validate and import labelled records."""


@command.command()
@click.argument(
    "paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path)
)
@json_option
@click.pass_context
def validate(ctx: click.Context, paths: tuple[Path, ...], json_path: str | None) -> None:
    """Check files of records.

    Prints a table, then every bad record by file, line and field. PATH is a .jsonl file, or a
    folder that holds a records.jsonl; a menus.json beside it is read too. Exit code 1 if there is
    any problem.
    """
    dataset = open_dataset(paths)
    rows = {path: count.to_row() for path, count in _count(dataset).items()}
    problems = dataset.problems
    text = "\n".join([*_table(rows), *map(str, problems)])
    total = rows.pop("total")
    report = {
        "files": [{"path": path, **_snake(row)} for path, row in rows.items()],
        "total": _snake(total),
        "content_hash": dataset.content_hash,
        "problems": [_problem_json(problem) for problem in problems],
    }
    show_result(report, text, json_path)
    if problems:
        click.echo(f"problems: {len(problems)}", err=True)
        ctx.exit(1)


@command.command("import")
@click.argument("kind", metavar="bfcl|snips|clinc150", type=click.Choice(list(_IMPORTERS)))
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Upstream file, or the folder that holds them; may be repeated.",
)
@_OUT
@json_option
@click.pass_context
def import_(
    ctx: click.Context, kind: str, inputs: tuple[Path, ...], out: Path, json_path: str | None
) -> None:
    """Make records from upstream data sets.

    bfcl: question files BFCL_v4_*.json with possible_answer/ beside them. snips: the 2017-06
    train_*_full.json and validate_*.json. clinc150: data_full.json, with domains.json beside it
    for menus of one domain each. Exit code 1 if any item was left out.
    """
    report = _IMPORTERS[kind](inputs, out)
    summary = (
        f"{report.records} records ({report.calls} with a call) and {report.menus} menus"
        f" written to {report.out}"
    )
    skipped = [f"{path}: not imported, no single-call labels" for path in report.skipped]
    lines = [summary, *skipped, *map(str, report.problems)]
    show_result(_import_json(report), "\n".join(lines), json_path)
    if report.problems:
        click.echo(f"problems: {len(report.problems)}", err=True)
        ctx.exit(1)


@command.command()
@_OUT
@json_option
def curated(out: Path, json_path: str | None) -> None:
    """Write the project's own 500 queries.

    Each has one right call of ten tools. They were written for this project and are never trained
    on, so that the bundled agent can be calibrated on them.
    """
    report = write_curated(out)
    summary = f"{report.records} records over one menu written to {report.out}"
    show_result(_import_json(report), summary, json_path)


@command.command("unseen")
@click.option(
    "--model", required=True, metavar="M", help='Folder of an agent trained here, or "reference".'
)
@data_option()
@_OUT
@json_option
def unseen_(model: str, data: tuple[Path, ...], out: Path, json_path: str | None) -> None:
    """Write what an agent did not learn from.

    That is what it can be measured on. An agent of `toolguard train agent` learns from a part of
    some sources, which its training.json names. All records of other sources are written.
    """
    facts = agent_facts(model)
    if facts is None:
        raise ConfigError(
            f"nothing is known of what {model!r} learned from",
            hint='name a folder that `toolguard train agent` wrote, or "reference"',
        )
    refuse_existing(out)
    dataset = open_data(data)
    everything = list(dataset)
    kept = list(unseen(everything, facts))
    if not kept:
        raise DatasetError("the agent learned from all of these records", hint="pass others")
    write_dataset(kept, out)
    counts = {"records": len(kept), "learned": len(everything) - len(kept)}
    text = f"{counts['records']} records written to {out}; {counts['learned']} learned from"
    show_result({"out": str(out), **counts, "bad_records": len(dataset.problems)}, text, json_path)


def _count(dataset: Dataset) -> dict[str, FileCount]:
    """Return the counts by file, and under `total` those of all."""
    counts = {str(file.records): FileCount() for file in dataset.files}
    of_menus = {str(file.menus): str(file.records) for file in dataset.files if file.menus}
    total = FileCount()
    for located in dataset.located():
        counts[str(located.path)].add(located.record)
        total.add(located.record)
    for problem in dataset.problems:
        place = str(problem.path)
        counts[of_menus.get(place, place)].problems += 1
    total.problems = len(dataset.problems)
    return {**counts, "total": total}


def _table(rows: dict[str, dict[str, int]]) -> list[str]:
    """Return the table's lines; the total is shown if there are several files."""
    shown = rows if len(rows) > 2 else {path: row for path, row in rows.items() if path != "total"}
    width = max(len("file"), *map(len, shown))
    head = f"{'file':<{width}}" + "".join(f"{name:>{_COLUMN_WIDTH}}" for name in _COLUMNS)
    return [
        head,
        *(
            f"{path:<{width}}" + "".join(f"{row[name]:>{_COLUMN_WIDTH},}" for name in _COLUMNS)
            for path, row in shown.items()
        ),
    ]


def _snake(row: dict[str, int]) -> dict[str, int]:
    return {name.replace("-", "_"): number for name, number in row.items()}


def _problem_json(problem: RecordProblem) -> dict[str, Any]:
    return {
        "path": str(problem.path),
        "line": problem.line,
        "field": problem.field,
        "message": problem.message,
    }


def _import_json(report: ImportReport) -> dict[str, Any]:
    return {
        "out": str(report.out),
        "records": report.records,
        "calls": report.calls,
        "no_call": report.records - report.calls,
        "menus": report.menus,
        "skipped": [str(path) for path in report.skipped],
        "problems": [_problem_json(problem) for problem in report.problems],
    }
