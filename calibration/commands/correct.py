"""`toolguard correct`: what can be done with the calls that a profile flags, and what it gains."""

from __future__ import annotations

from collections.abc import Mapping
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
from toolguard.calibration.correction.flagged import flag_calls
from toolguard.calibration.correction.measurement import (
    DEFAULT_OPTIONS,
    CorrectionOptions,
    measure_correction,
)
from toolguard.calibration.datasets.record_choice import sample_records
from toolguard.calibration.labels.fresh_calls import judge_fresh
from toolguard.calibration.measuring.rate_text import rate_text


@click.command("correct")
@profile_option
@model_options
@data_option()
@limit_option
@click.option(
    "--max-risk",
    "risk_target",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Risk target above which calls are flagged; default: the profile's.",
)
@click.option(
    "--flagged",
    "most",
    type=click.IntRange(min=1),
    default=DEFAULT_OPTIONS.most,
    show_default=True,
    help="Most flagged calls to correct.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=0),
    default=DEFAULT_OPTIONS.new_tokens,
    show_default=True,
    help="Most tokens of a call behind its name; 0 compares tools alone.",
)
@batch_tokens_option(DEFAULT_OPTIONS.batch_tokens)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the samples.")
@json_option
def command(folder: Path, data: tuple[Path, ...], json_path: str | None, **options: Any) -> None:
    """Compare what can be done with doubtful calls: keep, redirect, ask again, ask the user.

    Takes the calls whose P(wrong) is above the profile's threshold, corrects each in every way, and
    counts what that fixed and what it broke. Records that took part in the calibration are left
    out.
    """
    dataset = open_data(data, model=options["model"])
    profile, loaded, wire = open_profile(folder, options)
    chosen = CorrectionOptions(
        most=options["most"],
        batch_tokens=options["batch_tokens"],
        new_tokens=options["new_tokens"],
        seed=options["seed"],
    )
    records = sample_records(dataset, options["limit"], chosen.seed)
    threshold = profile.threshold(options["risk_target"])
    with progress_bar("reading decisions", "call") as bar:
        fresh = judge_fresh(
            loaded, wire, profile, records, batch_tokens=chosen.batch_tokens, on_done=bar.update
        )
    flagged = flag_calls(fresh.calls, threshold)
    result = {
        **fresh.counts(),
        **measure_correction(loaded, wire, profile, flagged, chosen),
        "bad_records": len(dataset.problems),
    }
    show_result(result, table(result), json_path)


def table(result: Mapping[str, Any]) -> str:
    """Return the comparison as text a person can read."""
    limit = result["threshold"]
    flag = "nothing is allowed" if limit is None else f"P(wrong) above {limit:.4f}"
    asked = result["clarify"]
    lines = [
        (
            f"{result['read']} calls read, {result['flagged']} flagged ({flag}), "
            f"{result['flagged_wrong']} of these wrong"
        ),
        (
            f"left out: {result['leaked']} seen in calibration, {result['skipped']} skipped, "
            f"{result['unjudged']} of tools without calibration"
        ),
        "",
        *correction_lines(result),
        "",
        (
            f"or ask the user: {rate_text(asked['coverage_lost'])} of all calls, "
            f"{rate_text(asked['right_stopped'])} of them needlessly"
        ),
        "",
        verdict(result),
    ]
    return "\n".join(lines)


def correction_lines(result: Mapping[str, Any]) -> list[str]:
    """Return one line a correction: what it fixed and broke, of tools and of whole calls."""
    lines = [
        f"on {result['n']} flagged calls, with 95 % intervals",
        (
            f"{'correction':<20}{'right tool':<22}{'fixed':>6}{'broken':>7}  "
            f"{'net gain':<25}{'whole call':<22}{'net gain':<25}prompts"
        ),
    ]
    for name, found in result["methods"].items():
        tool, whole = found["tool"], found["whole_call"]
        lines.append(
            f"{name:<20}{rate_text(tool['right']):<22}{tool['fixed']:>6}{tool['broken']:>7}  "
            f"{net_text(tool['net']):<25}{rate_text(whole['right']):<22}"
            f"{net_text(whole['net']):<25}{found['cost']['prompts']}"
        )
    return lines


def net_text(value: Mapping[str, Any]) -> str:
    """Return a net gain as `+0.120 [+0.05, +0.18]`, or `-` if it is undetermined."""
    if value["value"] is None:
        return "-"
    return f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def verdict(result: Mapping[str, Any]) -> str:
    """Return what the comparison says, in a sentence."""
    best = result["helps"]
    if best is None:
        return "no correction helps: none is shown to fix more calls than it breaks"
    found = result["methods"][best]
    served = "" if found["served"] else "; the guard does not do this by itself"
    return f"{best} helps ({found['words']}): net {net_text(found['tool']['net'])}{served}"
