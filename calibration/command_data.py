"""The data that a command reads, and what it says of records that it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from toolguard.calibration.datasets.dataset import Dataset, open_dataset
from toolguard.calibration.training.learned import agent_facts, learned_files

SHOWN = 20  # lines of records left out, of each kind


def open_data(
    paths: Sequence[Path], menus: Path | None = None, *, model: str | None = None
) -> Dataset:
    """Return a dataset; its problems are listed when the command ends, be it with an error.

    Args:
        paths: `.jsonl` files, or folders that hold a `records.jsonl`.
        menus: the menus for all of them; by default the `menus.json` beside each file.
        model: what is measured on them; if it learned from some, that is said at once.

    Raises:
        DatasetError: if a file is missing, empty, not UTF-8, not JSON lines, or given twice.
    """
    dataset = open_dataset(paths, menus=menus)
    rest = "`toolguard data validate` lists all"
    click.get_current_context().call_on_close(
        lambda: list_left_out("problems in the data", dataset.problems, rest)
    )
    for path in learned_files(dataset, agent_facts(model)) if model else ():
        click.echo(
            f"note: the model learned from part of {path}, so figures on it are too good; "
            "`toolguard data unseen` writes the other records",
            err=True,
        )
    return dataset


def list_left_out(kind: str, left_out: Sequence[object], rest: str) -> None:
    """Name on stderr what was left out, so that nothing is lost unseen.

    Args:
        kind: of thing, in the plural.
        left_out: a line each, of which the first `SHOWN` are listed.
        rest: where the others can be read.
    """
    if not left_out:
        return
    click.echo(f"{kind}: {len(left_out)}", err=True)
    for line in left_out[:SHOWN]:
        click.echo(f"  {line}", err=True)
    if len(left_out) > SHOWN:
        click.echo(f"  and {len(left_out) - SHOWN} more; {rest}", err=True)
