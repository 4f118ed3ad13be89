"""`toolguard train`: training what the project ships."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from toolguard.adapters.loading import load_model
from toolguard.adapters.wire.detection import detect_format
from toolguard.calibration.command_options import json_option
from toolguard.calibration.command_output import show_result, write_json
from toolguard.calibration.training.agent import Looks, train_agent
from toolguard.calibration.training.architecture import DEFAULT_SHAPE, FAMILIES, Family, Shape
from toolguard.calibration.training.card import figure_lines, write_card
from toolguard.calibration.training.examples import TRAINING_TENTHS
from toolguard.calibration.training.facts import TrainingFacts
from toolguard.calibration.training.loop import Recipe
from toolguard.calibration.training.measurement import (
    DEFAULT_OPTIONS,
    MeasurementOptions,
    measure_agent,
)

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
    default=DEFAULT_SHAPE.width,
    show_default=True,
    help="Hidden size, a multiple of 64.",
)
@click.option(
    "--layers",
    type=click.IntRange(min=2),
    default=DEFAULT_SHAPE.layers,
    show_default=True,
    help="Number of blocks.",
)
@click.option(
    "--family",
    type=click.Choice(FAMILIES),
    default=DEFAULT_SHAPE.family,
    show_default=True,
    help="Architecture of the blocks.",
)
@click.option(
    "--keep",
    "keep_at",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="N",
    help="Keep the agent as it is after N steps, in OUT/steps/N; may be repeated.",
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
    help="Learn nothing of this tenth and log the accuracy on it; may be repeated.",
)
@click.option("--device", default="cpu", show_default=True, help="Torch device: cpu, cuda.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: torch's choice.")
@json_option
def agent(
    out: Path,
    data: Path | None,
    tenths: int,
    threads: int | None,
    width: int,
    layers: int,
    family: Family,
    json_path: str | None,
    **options: Any,
) -> None:
    """Train an agent from scratch.

    It is a small model that calls tools in the Hermes format. The defaults give the bundled
    reference agent.

    Writes OUT/log.jsonl while it runs, OUT/checkpoint.pt to resume from, and OUT/agent, a folder
    that every --model takes.
    """
    if threads:
        torch.set_num_threads(threads)
    recipe = Recipe(**{f.name: options.pop(f.name) for f in fields(Recipe) if f.name in options})
    looks = Looks(**{f.name: options.pop(f.name) for f in fields(Looks) if f.name in options})
    folder = train_agent(
        out,
        recipe,
        data=data,
        tenths=tuple(range(tenths)),
        shape=Shape(width=width, layers=layers, family=family),
        looks=looks,
        **options,
    )
    click.echo(f"agent written to {folder}", err=True)
    if json_path:
        write_json({"agent": str(folder)}, json_path)


@command.command("card")
@click.option(
    "--model",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of a trained agent; README.md and numbers.json are written into it.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with snips/, hwu64/, clinc150/; default: its own tools alone.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Fixes frames and menus.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Most queries a source for the tool accuracy; default: all.",
)
@click.option(
    "--generated",
    type=click.IntRange(min=1),
    default=DEFAULT_OPTIONS.generated,
    show_default=True,
    help="Most queries a source for which text is generated.",
)
@click.option("--device", help="cpu, cuda, cuda:N; default: CUDA where there is any.")
@json_option
def card(
    model: Path,
    data: Path | None,
    seed: int,
    limit: int | None,
    generated: int,
    device: str | None,
    json_path: str | None,
) -> None:
    """Measure an agent and write its card.

    Human records are measured on the tenths that training.json does not list, by default 6 to 9.
    """
    facts = TrainingFacts.read(model)
    loaded = load_model(str(model), device=device)
    wire = detect_format(loaded.tokenizer)
    options = MeasurementOptions(
        data=data, learned=facts.tenths, seed=seed, limit=limit, generated=generated
    )
    measurement = measure_agent(loaded, wire, options, partial(click.echo, err=True))
    write_card(model, loaded, wire, facts, measurement)
    show_result(measurement.to_dict(), figure_lines(measurement), json_path)
