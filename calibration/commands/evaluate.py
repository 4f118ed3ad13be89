"""`toolguard evaluate`: what a profile is worth on calls it never saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from toolguard.calibration.answering.gate_table import survey_table
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
from toolguard.calibration.fitting.layer_choice import FEWEST_ERRORS
from toolguard.calibration.measuring.evaluation import EvaluationOptions, evaluate_profile
from toolguard.calibration.measuring.rate_text import rate_text
from toolguard.calibration.steering_lab.section import SECTION
from toolguard.calibration.votes.catalogue import choose_votes

_DEFAULT = EvaluationOptions()
_COLUMNS = ("AUROC", "AURC", "wrong, lowest quarter", "highest quarter", "ratio")


@click.command("evaluate")
@profile_option
@model_options
@data_option()
@limit_option
@click.option(
    "--steering",
    type=click.IntRange(min=0),
    default=_DEFAULT.steering,
    show_default=True,
    help="Cases of the steering comparison; 0 leaves it out.",
)
@click.option(
    "--turns",
    type=click.IntRange(min=0),
    default=_DEFAULT.turns,
    show_default=True,
    help="Queries on which the whole turn is written and checked; 0 leaves it out.",
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
    "--votes",
    default=_DEFAULT.votes,
    show_default=True,
    metavar="V",
    help="free (those that cost nothing extra), all, or names with commas between them.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=_DEFAULT.samples,
    show_default=True,
    help="Sampled calls of the vote self_consistency.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULT.temperature,
    show_default=True,
    help="At which they are sampled.",
)
@click.option(
    "--embedding-model",
    metavar="M",
    help="Sentence encoder of the vote embedding: a folder or hub id; default: all-MiniLM-L6-v2.",
)
@batch_tokens_option(_DEFAULT.batch_tokens)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of samples and random vectors."
)
@json_option
def command(
    folder: Path, data: tuple[Path, ...], limit: int | None, json_path: str | None, **options: Any
) -> None:
    """Measure a profile on labelled records: accuracy, votes, risk, steering, no-call queries.

    Records that took part in the calibration are left out. Rates come with n and 95 % intervals.
    """
    choose_votes(options["votes"])  # before the model is read, which takes longer than a typo
    dataset = open_data(data, model=options["model"])
    profile, loaded, wire = open_profile(folder, options)
    chosen = EvaluationOptions(**{f.name: options[f.name] for f in fields(EvaluationOptions)})
    records = sample_records(dataset, limit, chosen.seed)
    with progress_bar("reading decisions", "call") as bar:
        result = evaluate_profile(
            loaded,
            wire,
            profile,
            records,
            chosen,
            on_done=bar.update,
            on_step=bar.set_description,
        )
    result["bad_records"] = len(dataset.problems)
    show_result(result, table(result), json_path)


def table(result: dict[str, Any]) -> str:
    """Return the evaluation as text a person can read; what was not measured is left out."""
    survey = result["call_or_answer"]
    sections = (
        _call_lines(result),
        _vote_lines(result["signals"]),
        _comparison_lines(result),
        _risk_lines(result["risk"]),
        _steering_lines(result["steering"]),
        _turn_lines(result["turns"]),
        _silent_lines(result["no_call"]),
        survey_table(survey) if survey is not None else (),
    )
    texts = ["\n".join(lines) for lines in sections]
    return "\n\n".join(text for text in texts if text)


def _call_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield how many calls there are, and how often model and readout are right."""
    yield f"{result['n']} calls, {result['n_wrong']} wrong"
    yield f"left out: {result['leaked']} seen in calibration, {result['skipped']} skipped"
    yield f"  model right        {rate_text(result['accuracy']['model'])}"
    yield f"  readout right      {rate_text(result['accuracy']['readout'])}"


def _risk_lines(risk: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the profile's threshold lets through."""
    limit = risk["threshold"]
    told = "nothing is allowed" if limit is None else f"P(wrong) <= {limit:.4f}"
    yield f"risk target {risk['target']:g} at confidence {risk['confidence']:g}: {told}"
    yield f"  allowed            {rate_text(risk['coverage'])}"
    yield f"  wrong among them   {rate_text(risk['realised'])}"


def _steering_lines(steering: Mapping[str, Any]) -> Iterator[str]:
    """Yield how often each method switches the tool."""
    if not any(steering[method]["n"] for method in SECTION):
        return
    yield f"{'steering':<18}{'n':<7}{'switched':<24}whole call fits the schema"
    for method in SECTION:
        found = steering[method]
        rates = f"{rate_text(found['switched']):<24}{rate_text(found['schema_valid'])}"
        yield f"{method:<18}{found['n']:<7}{rates}"


def _turn_lines(turns: Mapping[str, Any]) -> Iterator[str]:
    """Yield what freely written turns are where a call is right."""
    if not turns["n"]:
        return
    yield f"whole turns, written freely where a call is right: {turns['n']}"
    for outcome, found in turns["outcomes"].items():
        yield f"  {outcome.replace('_', ' '):<18} {rate_text(found)}"


def _silent_lines(silent: Mapping[str, Any]) -> Iterator[str]:
    """Yield how often the model calls a tool where none is right."""
    if silent["n"]:
        yield f"queries without a right call: {silent['n']}"
        yield f"  called a tool      {rate_text(silent['called'])}"


def _vote_lines(signals: Mapping[str, Any]) -> Iterator[str]:
    """Yield what each vote reaches."""
    yield f"{'vote':<18}" + "".join(f"{title:<24}" for title in _COLUMNS[:-1]) + _COLUMNS[-1]
    for name, found in signals.items():
        cells = [
            rate_text(found[key])
            for key in ("auroc", "aurc", "error_low_quartile", "error_high_quartile", "error_ratio")
        ]
        yield f"{name:<18}" + "".join(f"{cell:<24}" for cell in cells).rstrip()


def _comparison_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield each vote's differences to the log-prob margin, and what it takes beyond the call."""
    yield (
        f"{'minus logprob':<18}{'AUROC, + is better':<26}{'AURC, - is better':<26}"
        f"{'unreadable':<12}cost"
    )
    for name, found in result["against_logprob"].items():
        signal = result["signals"][name]
        differences = "".join(f"{_difference(found[key]):<26}" for key in ("auroc", "aurc"))
        words = "nothing" if _is_free(signal["cost"]) else signal["cost"]["words"]
        yield f"{name:<18}{differences}{signal['unreadable']:<12}{words}"
    for name, reason in result["votes_left_out"].items():
        yield f"{name:<18}left out: {reason}"
    yield _better_votes(result)
    if errors := result["argument_errors"]:
        yield ""
        yield f"wrong arguments of a right tool: {errors['n_wrong']} of {errors['n']}"
        for name, found in errors["auroc"].items():
            if found["value"] is not None:
                yield f"  {name:<18} AUROC {rate_text(found)}"


def _better_votes(result: Mapping[str, Any]) -> str:
    """Return which votes have the whole interval of their AURC difference on the better side."""
    rarer = min(result["n_wrong"], result["n"] - result["n_wrong"])
    if rarer < FEWEST_ERRORS:  # a bootstrap of so few calls knows nothing of others
        return f"{rarer} calls of the rarer kind are too few to say which vote ranks better"
    better = [
        name
        for name, found in result["against_logprob"].items()
        if found["aurc"]["high"] is not None and found["aurc"]["high"] < 0
    ]
    return f"rank better than logprob at equal coverage: {', '.join(better) or 'none'}"


def _is_free(cost: Mapping[str, Any]) -> bool:
    return not (cost["prompts"] or cost["tokens"] or cost["encodings"])


def _difference(value: Mapping[str, Any]) -> str:
    """Return a difference as `+0.031 [-0.01, +0.07]`, or `-` if it is undetermined."""
    if value["value"] is None:
        return "-"
    return f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
