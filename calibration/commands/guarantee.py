"""`toolguard guarantee`: whether a profile's risk thresholds keep their promise, and when not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

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
from toolguard.calibration.command_output import progress_bar, show_result
from toolguard.calibration.datasets.record_choice import sample_records
from toolguard.calibration.guarantee.check import GuaranteeOptions, measure_guarantee
from toolguard.calibration.guarantee.table import broken_targets, guarantee_table
from toolguard.calibration.labels.fresh_calls import FreshCalls, judge_fresh
from toolguard.calibration.reading.collect import BATCH_TOKENS
from toolguard.guard.drift import FEWEST
from toolguard.guard.policy import Policy

_DEFAULT = GuaranteeOptions()


@click.command("guarantee")
@profile_option
@model_options
@data_option(
    "Records like those calibrated on; those that took part are left out; may be repeated."
)
@click.option(
    "--shifted",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Records from elsewhere, to see what a shift does; may be repeated.",
)
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Policy whose tiers are looked at one by one.",
)
@click.option(
    "--splits",
    type=click.IntRange(min=1),
    default=_DEFAULT.splits,
    show_default=True,
    help="Random splits for each risk target.",
)
@click.option(
    "--chosen-on",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=_DEFAULT.chosen_on,
    show_default=True,
    help="Share of the queries that each split chooses its threshold on.",
)
@click.option(
    "--window",
    "windows",
    multiple=True,
    type=click.IntRange(min=FEWEST),
    default=list(_DEFAULT.windows),
    show_default=True,
    help="Live calls that the drift test looks at; may be repeated.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=_DEFAULT.repeats,
    show_default=True,
    help="Draws of each window.",
)
@limit_option
@batch_tokens_option(BATCH_TOKENS)
@click.option("--seed", type=int, default=0, show_default=True, help="Of samples and splits.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    folder: Path,
    data: tuple[Path, ...],
    shifted: tuple[Path, ...],
    policy_file: Path | None,
    windows: tuple[int, ...],
    json_path: str | None,
    **options: Any,
) -> None:
    """Verify the risk thresholds of a profile on fresh calls.

    Chooses a threshold on one random part of the calls and measures it on the other, many times;
    says what the profile's own thresholds let through, here and on records from elsewhere; and how
    soon the drift test notices such a shift. Exit code 3 if a target is broken more often than the
    confidence allows, in draws from the calls as the whole population.
    """
    policy = Policy.load(policy_file) if policy_file else None
    profile, loaded, wire = open_profile(folder, options)

    def fresh(paths: tuple[Path, ...], what: str) -> FreshCalls:
        dataset = open_data(paths, model=options["model"])
        records = sample_records(dataset, options["limit"], options["seed"])
        with progress_bar(f"reading {what}", "call") as bar:
            return judge_fresh(
                loaded,
                wire,
                profile,
                records,
                batch_tokens=options["batch_tokens"],
                on_done=bar.update,
            )

    same = fresh(data, "calls")
    other = fresh(shifted, "shifted calls") if shifted else None
    result = measure_guarantee(
        profile,
        same.calls,
        other.calls if other else (),
        GuaranteeOptions(
            splits=options["splits"],
            chosen_on=options["chosen_on"],
            windows=windows,
            repeats=options["repeats"],
            seed=options["seed"],
        ),
        policy,
    )
    result["data"] = {"same": same.counts(), "shifted": other.counts() if other else None}
    show_result(result, "\n".join(guarantee_table(result)), json_path)
    if broken_targets(result):
        ctx.exit(3)
