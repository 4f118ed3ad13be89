"""`toolguard train`: training what the project ships."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import torch

from toolguard.calibration.command_options import json_option, write_json
from toolguard.calibration.training.agent import train_agent
from toolguard.calibration.training.examples import TRAINING_TENTHS
from toolguard.calibration.training.loop import Recipe

_DEFAULT = Recipe()


@click.group("train")
def command() -> None:
    """Train a model from scratch."""


@command.command("agent")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Run folder; a run found there goes on.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with snips/, hwu64/, clinc150/; default: the catalogue alone.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=_DEFAULT.steps,
    show_default=True,
    help="Optimiser steps.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=_DEFAULT.rows,
    show_default=True,
    help="Packed rows a step, about 1,024 tokens each.",
)
@click.option(
    "--rate", type=float, default=_DEFAULT.rate, show_default=True, help="Peak learning rate."
)
@click.option(
    "--seed",
    type=int,
    default=_DEFAULT.seed,
    show_default=True,
    help="Fixes weights, data order and dropout.",
)
@click.option(
    "--width",
    type=click.IntRange(min=64),
    default=256,
    show_default=True,
    help="Hidden size, a multiple of 64.",
)
@click.option(
    "--layers", type=click.IntRange(min=2), default=6, show_default=True, help="Number of blocks."
)
@click.option(
    "--tenths",
    default=TRAINING_TENTHS,
    type=click.IntRange(1, 10),
    show_default=True,
    help="Learn from the first N tenths of the human records.",
)
@click.option(
    "--held-out-tenth",
    "held_out_tenths",
    type=click.IntRange(0, 9),
    multiple=True,
    help="Also log the accuracy on this tenth of the human records; may be repeated.",
)
@click.option("--device", default="cpu", show_default=True, help="Torch device: cpu, cuda.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: torch's choice.")
@json_option
def agent(
    out: Path,
    data: Path | None,
    tenths: int,
    threads: int | None,
    json_path: str | None,
    **options: Any,
) -> None:
    """Train the reference agent: a small Qwen3 that calls tools in the Hermes format.

    Writes OUT/log.jsonl while it runs, OUT/checkpoint.pt to resume from, and OUT/agent, a folder every --model takes.
    """
    if threads:
        torch.set_num_threads(threads)
    recipe = Recipe(**{f.name: options.pop(f.name) for f in fields(Recipe) if f.name in options})
    folder = train_agent(out, recipe, data=data, tenths=tuple(range(tenths)), **options)
    click.echo(f"agent written to {folder}", err=True)
    if json_path:
        write_json({"agent": str(folder)}, json_path)
