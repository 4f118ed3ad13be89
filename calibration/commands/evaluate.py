"""`toolguard evaluate`: what a profile is worth on calls it never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from toolguard.adapters.guarded_agent import model_facts
from toolguard.adapters.loading import load_model
from toolguard.adapters.wire import get_format
from toolguard.calibration.command_options import json_option, model_options, write_json
from toolguard.calibration.dataset import RecordProblem, open_dataset
from toolguard.calibration.evaluation import SIGNALS, EvaluationOptions, evaluate_profile
from toolguard.calibration.steering import METHODS
from toolguard.guard.profile import Profile

_DEFAULT = EvaluationOptions()


@click.command("evaluate")
@click.option("--profile", "folder", required=True, type=click.Path(path_type=Path), help="Profile folder.")
@model_options
@click.option(
    "--data",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Records: a .jsonl file, or a folder with records.jsonl and menus.json; may be repeated.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Use the first N records alone.")
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
@click.option("--alpha", type=float, default=1.0, show_default=True, help="Strength of the steering vectors.")
@click.option("--max-risk", "risk_target", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Risk target; default: the profile's.")
@click.option("--batch-tokens", type=click.IntRange(min=1), default=_DEFAULT.batch_tokens, show_default=True, help="Bound on one batch.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of samples and random vectors.")
@json_option
def command(
    folder: Path,
    model: str,
    revision: str | None,
    wire_format: str | None,
    layers_path: str | None,
    device: str | None,
    dtype: str | None,
    data: tuple[Path, ...],
    limit: int | None,
    json_path: str | None,
    **options: Any,
) -> None:
    """Measure a profile on labelled records: accuracy, signals, risk, steering, no-call queries.

    Records that took part in the calibration are left out. Rates come with n and 95 % intervals.
    """
    profile = Profile.load(folder)
    problems: list[RecordProblem] = []
    dataset = open_dataset(data, on_problem=problems.append)
    loaded = load_model(model, device=device, dtype=dtype, revision=revision, layers_path=layers_path)
    wire = get_format(wire_format or profile.meta.wire_format)
    profile.verify(model_facts(loaded, wire))
    records = (record for index, record in enumerate(dataset) if limit is None or index < limit)
    with tqdm(desc="reading decisions", unit="call", leave=False) as bar:
        result = evaluate_profile(loaded, wire, profile, records, EvaluationOptions(**options), on_done=bar.update)
    result["bad_records"] = len(problems)
    for problem in problems:
        click.echo(str(problem), err=True)
    if json_path:
        write_json(result, json_path)
    click.echo(table(result), err=json_path == "-")


def table(result: dict[str, Any]) -> str:
    """Return the evaluation as text a person can read."""
    counts = f"{result['n']} calls, {result['n_wrong']} wrong; left out: {result['leaked']} seen in calibration, {result['skipped']} skipped"
    lines = [
        counts,
        f"  model right        {rate(result['accuracy']['model'])}",
        f"  readout right      {rate(result['accuracy']['readout'])}",
        "",
        f"{'signal':<12}{'AUROC':<24}{'AURC':<24}{'wrong, lowest quarter':<24}{'highest quarter':<24}ratio",
    ]
    for signal in SIGNALS:
        found = result["signals"][signal]
        cells = [rate(found[key]) for key in ("auroc", "aurc", "error_low_quartile", "error_high_quartile", "error_ratio")]
        lines.append(f"{signal:<12}" + "".join(f"{cell:<24}" for cell in cells).rstrip())
    risk = result["risk"]
    threshold = "nothing is allowed" if risk["threshold"] is None else f"P(wrong) <= {risk['threshold']:.4f}"
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
        lines.append(f"{method:<18}{found['n']:<7}{rate(found['switched']):<24}{rate(found['schema_valid'])}")
    silent = result["no_call"]
    lines += ["", f"queries without a right call: {silent['n']}; the model called a tool in {rate(silent['called'])}"]
    return "\n".join(lines)


def rate(value: dict[str, Any]) -> str:
    """Return a rate as `0.912 [0.90, 0.92]`, or `-` if it is undetermined."""
    if value["value"] is None:
        return "-"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
