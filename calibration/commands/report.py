"""`toolguard report`: what a profile is worth, as one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from toolguard.calibration.command_data import open_data
from toolguard.calibration.command_options import json_option, profile_option
from toolguard.calibration.command_output import show_result
from toolguard.calibration.report.page import ReportInput, missing_parts, report_page
from toolguard.calibration.report.tested_calls import TestedCalls
from toolguard.guard.errors import ConfigError
from toolguard.guard.profile import Profile


@click.command("report")
@profile_option
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the page, as report.html.",
)
@click.option(
    "--evaluation",
    type=click.Path(dir_okay=False, path_type=Path),
    help="What `toolguard evaluate --json` wrote; adds a section.",
)
@click.option(
    "--data",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Records of the calibration: shows the queries of the examples; may be repeated.",
)
@json_option
def command(
    folder: Path,
    out: Path,
    evaluation: Path | None,
    data: tuple[Path, ...],
    json_path: str | None,
) -> None:
    """Write one page that shows what a profile is worth.

    It needs no model, loads nothing from anywhere, runs no script, and prints. Queries are on it
    only with --data.
    """
    profile = Profile.load(folder)
    tested = TestedCalls.load(folder, profile.meta)
    given = ReportInput(
        profile=profile,
        tested=tested,
        evaluation=None if evaluation is None else _read_evaluation(evaluation),
        queries=_queries(data, tested),
    )
    _write(out, report_page(given))
    missing = missing_parts(given)
    for words in missing:
        click.echo(f"left out: {words}", err=True)
    show_result({"out": str(out), "missing": list(missing)}, f"saved {out}", json_path)


def _read_evaluation(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _no_evaluation(path, str(error)) from error
    if not isinstance(found, dict) or "signals" not in found:
        raise _no_evaluation(path, "it has no signals")
    return found


def _no_evaluation(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"{path} is not an evaluation: {reason}",
        hint="pass what `toolguard evaluate --json` wrote",
        path=str(path),
    )


def _queries(data: Sequence[Path], tested: TestedCalls | None) -> dict[str, str]:
    """Return the queries of the test calls; empty without data.

    Raises:
        ConfigError: if the data has none of them.
    """
    if not data or tested is None:
        return {}
    wanted = {call.record_id for call in tested.calls}
    dataset = open_data(data)
    found = {record.id: record.query for record in dataset if record.id in wanted}
    if not found:
        raise ConfigError(
            f"none of {len(wanted)} test calls is among these records",
            hint="pass --data the records that the profile was calibrated with",
        )
    return found


def _write(out: Path, page: str) -> None:
    try:
        out.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(
            f"cannot write {out}: {error.strerror}",
            hint="pass --out a file in a folder that exists",
        ) from error
