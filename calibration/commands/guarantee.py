"""`toolguard guarantee`: whether a profile's risk thresholds keep their promise, and when not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from toolguard.adapters.guarded_agent import model_facts
from toolguard.calibration.command_model import open_model
from toolguard.calibration.command_options import json_option, model_options, write_json
from toolguard.calibration.datasets.dataset import RecordProblem, open_dataset
from toolguard.calibration.datasets.record_choice import sample_records
from toolguard.calibration.guarantee.check import GuaranteeOptions, measure_guarantee
from toolguard.calibration.guarantee.table import broken_targets, guarantee_table
from toolguard.calibration.labels.fresh_calls import FreshCalls, judge_fresh
from toolguard.calibration.reading.collect import BATCH_TOKENS
from toolguard.guard.drift import FEWEST
from toolguard.guard.policy import Policy
from toolguard.guard.profile import Profile

_DEFAULT = GuaranteeOptions()


@click.command("guarantee")
@click.option(
    "--profile", "folder", required=True, type=click.Path(path_type=Path), help="Profile folder."
)
@model_options
@click.option(
    "--data",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Records like those calibrated on; those that took part are left out; may be repeated.",
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
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Use N records of each kind, drawn by the hash of id and seed.",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=BATCH_TOKENS,
    show_default=True,
    help="Bound on one batch.",
)
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
    profile = Profile.load(folder)
    loaded, wire = open_model(options, profile.meta.wire_format)
    profile.verify(model_facts(loaded, wire))

    def fresh(paths: tuple[Path, ...], what: str) -> FreshCalls:
        problems: list[RecordProblem] = []
        records = sample_records(
            open_dataset(paths, on_problem=problems.append), options["limit"], options["seed"]
        )
        with tqdm(desc=f"reading {what}", unit="call", leave=False) as bar:
            found = judge_fresh(
                loaded,
                wire,
                profile,
                records,
                batch_tokens=options["batch_tokens"],
                on_done=bar.update,
            )
        for problem in problems:
            click.echo(str(problem), err=True)
        return found

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
    if json_path:
        write_json(result, json_path)
    click.echo("\n".join(guarantee_table(result)), err=json_path == "-")
    if broken_targets(result):
        ctx.exit(3)
