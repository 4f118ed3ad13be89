"""`toolguard steer-eval`: every way of steering a model's tool choice, compared on one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolguard.adapters.wire import WireFormat, get_format
from toolguard.calibration.command_data import open_data
from toolguard.calibration.command_model import open_profile
from toolguard.calibration.command_options import (
    batch_tokens_option,
    data_option,
    json_option,
    limit_option,
    model_options,
    profile_option,
)
from toolguard.calibration.command_output import show_result
from toolguard.calibration.datasets.record_choice import sample_records
from toolguard.calibration.steering_lab.lab_options import LabOptions
from toolguard.calibration.steering_lab.lab_table import lab_table
from toolguard.calibration.steering_lab.laboratory import run_laboratory
from toolguard.calibration.steering_lab.settings import METHODS, checked_methods
from toolguard.guard.errors import ConfigError

_DEFAULT = LabOptions()


@click.command("steer-eval")
@profile_option
@model_options
@data_option()
@limit_option
@click.option(
    "--layers",
    metavar="L",
    help="Blocks to push, as 3,4,5 or all; default: six over the model, the profile's among them.",
)
@click.option(
    "--alphas",
    metavar="A",
    default=",".join(f"{alpha:g}" for alpha in _DEFAULT.alphas),
    show_default=True,
    help="Strengths: multiples of each vector.",
)
@click.option(
    "--methods", metavar="M", default="all", show_default=True, help="all, or " + ", ".join(METHODS)
)
@click.option(
    "--formats",
    metavar="F",
    help="Wire formats to compare; default: the profile's and name_only.",
)
@click.option(
    "--pairs",
    type=click.IntRange(min=1),
    default=_DEFAULT.pairs,
    show_default=True,
    help="Pairs of tools in each cell, where the data allow.",
)
@click.option(
    "--calls",
    type=click.IntRange(min=0),
    default=_DEFAULT.calls,
    show_default=True,
    help="Pairs of each cell that write whole calls; 0 leaves that out.",
)
@click.option(
    "--call-alpha",
    type=float,
    default=_DEFAULT.call_alpha,
    show_default=True,
    help="Strength with which they do, at the profile's layer.",
)
@batch_tokens_option(_DEFAULT.batch_tokens)
@click.option("--seed", type=int, default=0, show_default=True, help="Of draws and noise.")
@json_option
def command(
    folder: Path, data: tuple[Path, ...], limit: int | None, json_path: str | None, **options: Any
) -> None:
    """Compare ways of switching a model from one tool to another, and what becomes of the call.

    Pass the data of the calibration: what it saw gives the means, what it left out is steered.
    Data it never saw are split in two, near duplicates kept together. Rates come with n and 95 %
    intervals.
    """
    dataset = open_data(data, model=options["model"])
    profile, loaded, wire = open_profile(folder, options)
    chosen = LabOptions(
        layers=_layers(options["layers"], len(loaded.view.blocks)),
        alphas=_numbers("--alphas", options["alphas"]),
        methods=checked_methods(_names(options["methods"])),
        **{key: options[key] for key in ("pairs", "calls", "call_alpha", "batch_tokens", "seed")},
    )
    result = run_laboratory(
        loaded,
        _formats(options["formats"], wire),
        profile,
        sample_records(dataset, limit, chosen.seed),
        chosen,
        report=lambda what: click.echo(what, err=True),
    )
    result["bad_records"] = len(dataset.problems)
    show_result(result, lab_table(result), json_path)


def _names(text: str) -> tuple[str, ...]:
    return () if text == "all" else tuple(name.strip() for name in text.split(","))


def _formats(text: str | None, own: WireFormat) -> tuple[WireFormat, ...]:
    names = (own.name, "name_only") if text is None else _names(text)
    return tuple(get_format(name) for name in dict.fromkeys(names))


def _layers(text: str | None, blocks: int) -> tuple[int, ...] | None:
    if text is None:
        return None
    if text == "all":
        return tuple(range(blocks))
    numbers = _numbers("--layers", text)
    if not all(number.is_integer() for number in numbers):
        raise ConfigError(f"--layers {text}: expected block indices, as 3,4,5, or all")
    return tuple(int(number) for number in numbers)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """Return the numbers in `text`, each once, in the order given."""
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise ConfigError(
            f"{option} {text}: expected numbers with commas between them",
            hint=f"write for example {option} 1,2",
        ) from error
