"""`toolguard evaluate`: what a profile is worth on calls it never saw."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from toolguard.adapters.guarded_agent import model_facts
from toolguard.calibration.command_model import open_model
from toolguard.calibration.command_options import json_option, model_options, write_json
from toolguard.calibration.dataset import RecordProblem, open_dataset
from toolguard.calibration.evaluation import SIGNALS, EvaluationOptions, evaluate_profile
from toolguard.calibration.record_choice import sample_records
from toolguard.calibration.steering import METHODS
from toolguard.guard.profile import Profile

_DEFAULT = EvaluationOptions()
_COLUMNS = ("AUROC", "AURC", "wrong, lowest quarter", "highest quarter", "ratio")


@click.command("evaluate")
@click.option(
    "--profile", "folder", required=True, type=click.Path(path_type=Path), help="Profile folder."
)
@model_options
@click.option(
    "--data",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Records: a .jsonl file, or a folder with records.jsonl and menus.json; may be repeated.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), help="Use N records, drawn by the hash of id and seed."
)
@click.option(
    "--steering",
    type=click.IntRange(min=0),
    default=_DEFAULT.steering,
    show_default=True,
    help="Cases of the steering comparison; 0 leaves it out.",
)
@click.option(
    "--no-call",
    type=click.IntRange(min=0),
    default=_DEFAULT.no_call,
    show_default=True,
    help="Queries without a right call to generate freely; 0 leaves them out.",
)
@click.option(
    "--alpha", type=float, default=1.0, show_default=True, help="Strength of the steering vectors."
)
@click.option(
    "--max-risk",
    "risk_target",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Risk target; default: the profile's.",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=_DEFAULT.batch_tokens,
    show_default=True,
    help="Bound on one batch.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of samples and random vectors."
)
@json_option
def command(
    folder: Path, data: tuple[Path, ...], limit: int | None, json_path: str | None, **options: Any
) -> None:
    """Measure a profile on labelled records: accuracy, signals, risk, steering, no-call queries.

    Records that took part in the calibration are left out. Rates come with n and 95 % intervals.
    """
    profile = Profile.load(folder)
    problems: list[RecordProblem] = []
    dataset = open_dataset(data, on_problem=problems.append)
    loaded, wire = open_model(options, profile.meta.wire_format)
    profile.verify(model_facts(loaded, wire))
    chosen = EvaluationOptions(**{f.name: options[f.name] for f in fields(EvaluationOptions)})
    records = sample_records(dataset, limit, chosen.seed)
    with tqdm(desc="reading decisions", unit="call", leave=False) as bar:
        result = evaluate_profile(loaded, wire, profile, records, chosen, on_done=bar.update)
    result["bad_records"] = len(problems)
    for problem in problems:
        click.echo(str(problem), err=True)
    if json_path:
        write_json(result, json_path)
    click.echo(table(result), err=json_path == "-")


def table(result: dict[str, Any]) -> str:
    """Return the evaluation as text a person can read."""
    lines = [
        f"{result['n']} calls, {result['n_wrong']} wrong",
        f"left out: {result['leaked']} seen in calibration, {result['skipped']} skipped",
        f"  model right        {rate(result['accuracy']['model'])}",
        f"  readout right      {rate(result['accuracy']['readout'])}",
        "",
        f"{'signal':<12}" + "".join(f"{title:<24}" for title in _COLUMNS[:-1]) + _COLUMNS[-1],
    ]
    for signal in SIGNALS:
        found = result["signals"][signal]
        cells = [
            rate(found[key])
            for key in ("auroc", "aurc", "error_low_quartile", "error_high_quartile", "error_ratio")
        ]
        lines.append(f"{signal:<12}" + "".join(f"{cell:<24}" for cell in cells).rstrip())
    risk = result["risk"]
    threshold = (
        "nothing is allowed"
        if risk["threshold"] is None
        else f"P(wrong) <= {risk['threshold']:.4f}"
    )
    lines += [
        "",
        f"risk target {risk['target']:g} at confidence {risk['confidence']:g}: {threshold}",
        f"  allowed            {rate(risk['coverage'])}",
        f"  wrong among them   {rate(risk['realised'])}",
        "",
        f"{'steering':<18}{'n':<7}{'switched':<24}whole call fits the schema",
    ]
    for method in METHODS:
        found = result["steering"][method]
        lines.append(
            f"{method:<18}{found['n']:<7}{rate(found['switched']):<24}{rate(found['schema_valid'])}"
        )
    silent = result["no_call"]
    lines += [
        "",
        f"queries without a right call: {silent['n']}",
        f"  called a tool      {rate(silent['called'])}",
    ]
    return "\n".join(lines)


def rate(value: dict[str, Any]) -> str:
    """Return a rate as `0.912 [0.90, 0.92]`, or `-` if it is undetermined."""
    if value["value"] is None:
        return "-"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
