"""`toolguard replicate`: the published claims beside numbers of one's own models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolguard.calibration.command_options import batch_tokens_option, json_option
from toolguard.calibration.command_output import show_result
from toolguard.calibration.replication.measure import MeasureOptions
from toolguard.calibration.replication.replicate import Subject, replicate
from toolguard.calibration.replication.sources import OWN, SOURCES
from toolguard.calibration.replication.table import replication_table, write_into

_DEFAULT = MeasureOptions()


@click.command("replicate")
@click.option(
    "--model",
    "models",
    required=True,
    multiple=True,
    metavar="[NAME=]MODEL",
    help="A column: folder, hub id, or reference, with its title; may be repeated.",
)
@click.option(
    "--steps",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="OUT/steps of a training: what could be read after so many steps.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the public sources; default: the project's own queries alone.",
)
@click.option(
    "--sources",
    help=f"Names with commas between them, of {', '.join(SOURCES)}; default: all there are.",
)
@click.option(
    "--work",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of what was measured; a run found there goes on.",
)
@click.option(
    "--page",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Markdown file whose tables are replaced, such as docs/REPLICATION.md.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=_DEFAULT.limit,
    show_default=True,
    help="Most records a source.",
)
@click.option(
    "--turns",
    type=click.IntRange(min=0),
    default=_DEFAULT.turns,
    show_default=True,
    help="Of these, how many the model writes freely on.",
)
@click.option(
    "--pairs",
    type=click.IntRange(min=1),
    default=_DEFAULT.pairs,
    show_default=True,
    help="Pairs of tools in each cell of the steering.",
)
@batch_tokens_option(_DEFAULT.batch_tokens)
@click.option("--seed", type=int, default=0, show_default=True, help="Of all draws.")
@json_option
def command(
    models: tuple[str, ...],
    steps: Path | None,
    data: Path | None,
    sources: str | None,
    work: Path,
    page: Path | None,
    json_path: str | None,
    **options: Any,
) -> None:
    """Measure models on what they never saw, and set the numbers beside the published ones.

    An agent that this project trained is not asked about records that it learned from. Rates come
    with n and 95 % intervals; what cannot be measured stays empty.
    """
    every = SOURCES if data else OWN
    result = replicate(
        [Subject.parse(text) for text in models],
        steps,
        tuple(name.strip() for name in sources.split(",")) if sources else every,
        data,
        work,
        MeasureOptions(**options),
        report=lambda line: click.echo(line, err=True),
    )
    text = replication_table(result)
    if page is not None:
        write_into(page, text)
    show_result(result, text, json_path)
