"""`toolguard calibrate`: from a model and labelled records to a profile."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import click
from tqdm import tqdm

from toolguard.adapters.loading import LoadedModel
from toolguard.calibration.command_data import list_left_out, open_data
from toolguard.calibration.command_model import open_model, open_model_of
from toolguard.calibration.command_options import batch_tokens_option, json_option, model_options
from toolguard.calibration.command_output import progress_bar, show_result
from toolguard.calibration.datasets.record_choice import (
    ChosenRecords,
    choose_records,
    read_menu_file,
)
from toolguard.calibration.fitting.add_tools import ToolUpdate
from toolguard.calibration.fitting.calibration_run import (
    Progress,
    RunOptions,
    SkippedRecord,
    calibrate,
    extend,
    parse_layers,
)
from toolguard.calibration.fitting.fit_input import FitOptions, Preset
from toolguard.calibration.fitting.profile_table import profile_table
from toolguard.calibration.reading.collect import BATCH_TOKENS
from toolguard.guard.policy import Policy
from toolguard.guard.profile import Profile
from toolguard.guard.signals import SIGNALS

_FIT = FitOptions()
_SPOOL = ".spool"


def _signal_names(
    _ctx: click.Context, _param: click.Parameter, text: str | None
) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text else ()


@click.command("calibrate")
@model_options
@click.option(
    "--data",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Records: a .jsonl file, or a folder with records.jsonl and menus.json; may be repeated.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the profile.",
)
@click.option(
    "--tools",
    "--menus",
    "menu_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON list of tools to offer with every record, or a menus.json for all data.",
)
@click.option("--layers", metavar="L", help="Blocks to try: all, late, or 3,4,5.")
@click.option(
    "--max-risk",
    type=float,
    multiple=True,
    default=[_FIT.max_risk],
    show_default=True,
    help="Highest share of wrong calls among those allowed; may be repeated, the first one counts.",
)
@click.option(
    "--policy",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Policy whose tiers get a threshold each, for the risk they ask.",
)
@click.option(
    "--signals",
    metavar="A,B",
    callback=_signal_names,
    help=f"Signals that P(wrong) uses, of {', '.join(SIGNALS)}; default: those that are shown to "
    "lower the risk.",
)
@click.option(
    "--confidence",
    type=float,
    default=_FIT.confidence,
    show_default=True,
    help="Chance with which --max-risk must hold.",
)
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    default=5,
    show_default=True,
    help="Of cross-validation.",
)
@click.option(
    "--min-examples",
    type=click.IntRange(min=1),
    default=_FIT.min_examples,
    show_default=True,
    help="Fewest right calls that a tool's mean is made from.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of splits and folds.")
@batch_tokens_option(BATCH_TOKENS)
@click.option("--limit", type=click.IntRange(min=1), help="Use N records, drawn by the seed.")
@click.option(
    "--preset",
    type=click.Choice(["paper"]),
    help="The published recipe: names-only menus, cosine, three queries a tool, one fixed block.",
)
@click.option(
    "--add-tools",
    "added",
    type=click.Path(path_type=Path),
    help="Records of new or changed tools, to put into the profile in --out.",
)
@click.option("--keep-spool", is_flag=True, help="Keep what was read of the model, for a next run.")
@click.option(
    "--require-coverage",
    type=click.FloatRange(0, 1),
    help="Exit with 3 if a smaller share of the test calls is allowed.",
)
@json_option
@click.pass_context
def command(ctx: click.Context, /, added: Path | None, **options: Any) -> None:
    """Make a profile from a model and labelled records.

    Reads what the model decides on each record, chooses block and readout by cross-validation, and
    finds the thresholds that keep the risk. A run that was interrupted goes on where it stopped.
    Ends with a table; exit code 3 if --require-coverage is not reached.
    """
    if added is not None:
        _refuse_with_add_tools(ctx)
        _add_tools(added, **options)
        return
    if not options["data"]:
        raise click.UsageError("Missing option '--data'.")
    reached = _calibrate(**options)
    wanted = options["require_coverage"]
    if wanted is not None and reached < wanted:
        click.echo(f"coverage {reached:.3f} is below the {wanted:g} required", err=True)
        ctx.exit(3)


def _refuse_with_add_tools(ctx: click.Context) -> None:
    """Refuse options that would be ignored: what --add-tools takes from the profile."""
    fixed = (
        "data",
        "layers",
        "max_risk",
        "policy",
        "signals",
        "confidence",
        "folds",
        "preset",
        "require_coverage",
        "limit",
    )
    given = [
        f"--{name.replace('_', '-')}"
        for name in fixed
        if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"--add-tools cannot be combined with {', '.join(given)}")


def _calibrate(**options: Any) -> float:
    """Make, save and show a profile; return the share of test calls it allows."""
    preset: Preset = options["preset"] or ""
    policy = Policy.load(options["policy"]) if options["policy"] else None
    fit = FitOptions(
        max_risk=options["max_risk"][0],
        targets=(*options["max_risk"][1:], *(policy.risk_targets if policy else ())),
        signals=options["signals"],
        confidence=options["confidence"],
        min_examples=options["min_examples"],
        seed=options["seed"],
        preset=preset,
    )
    records = _records(options["data"], options)
    loaded, wire = open_model(options)
    blocks = len(loaded.view.blocks)
    layers = (max(0, blocks - 2),) if preset else parse_layers(options["layers"], blocks)
    out: Path = options["out"]
    run = _run_options(options, layers=layers, names_only=bool(preset))
    with _progress(len(records.items), 0 if preset else len(layers)) as progress:
        result = calibrate(loaded, wire, records, run, fit, progress)
    profile = result.profile
    profile.save(out)
    result.tested.save(out)
    _drop_spool(run.spool, keep=options["keep_spool"])
    lines = [
        *profile_table(profile, decision_token=_token_text(loaded, profile)),
        *(_tier_lines(profile, policy) if policy else ()),
        *_next(profile, out),
    ]
    found = profile.meta.model_dump(mode="json") | {"out": str(out)}
    left_out = _left_out(records, result.skipped)
    show_result({**found, **left_out}, "\n".join(lines), options["json_path"])
    _list_skipped(result.skipped)
    coverage = next(
        row["coverage"]["value"]
        for row in profile.meta.metrics["test"]["risk"]
        if row["target"] == fit.max_risk
    )
    return float(coverage or 0.0)


def _tier_lines(profile: Profile, policy: Policy) -> list[str]:
    """Return what each tier of the policy gets from this profile."""
    lines = []
    for tier in policy.tiers:
        target = policy.tier_target(tier)
        asked = profile.meta.requested_risk.target if target is None else target
        limit = profile.threshold(target)
        words = "nothing can be allowed" if limit is None else f"P(wrong) at most {limit:.4f}"
        lines.append(f"{f'tier {tier}':<16} at most {asked:g} wrong: {words}")
    return lines


def _add_tools(added: Path, **options: Any) -> None:
    """Put the tools of a file of records into the profile in --out."""
    out: Path = options["out"]
    profile = Profile.load(out)
    records = _records([added], options)
    loaded, wire = open_model_of(profile, options)
    names_only = profile.meta.preset == "paper"
    run = _run_options(options, layers=(profile.meta.layer,), names_only=names_only)
    with _progress(len(records.items), 0) as progress:
        result = extend(
            loaded,
            wire,
            profile,
            records,
            run,
            min_examples=options["min_examples"],
            progress=progress,
        )
    result.update.profile.save(out)
    _drop_spool(run.spool, keep=options["keep_spool"])
    update = result.update
    found = {
        "out": str(out),
        "calibrated": list(update.calibrated),
        "uncalibrated": list(update.uncalibrated),
        "kept": dict(update.kept),
        **_left_out(records, result.skipped),
    }
    show_result(found, "\n".join(_update_lines(update, out)), options["json_path"])
    _list_skipped(result.skipped)


def _records(data: Sequence[Path], options: dict[str, Any]) -> ChosenRecords:
    menus = read_menu_file(options["menu_file"])
    dataset = open_data(data, menus.menus, model=options["model"])
    return choose_records(dataset, menu=menus.menu, limit=options["limit"], seed=options["seed"])


def _run_options(
    options: dict[str, Any], *, layers: tuple[int, ...], names_only: bool
) -> RunOptions:
    return RunOptions(
        spool=options["out"] / _SPOOL,
        layers=layers,
        folds=options["folds"],
        batch_tokens=options["batch_tokens"],
        names_only=names_only,
        seed=options["seed"],
    )


class _Bars:
    """Bars on stderr: one for records, then one for layers."""

    def __init__(self, records: int, layers: int) -> None:
        self._layers = layers
        self._bar = progress_bar("reading decisions", "call", records)
        self._choosing = False

    def record(self, count: int) -> None:
        self._bar.update(count)

    def layer(self, _layer: int) -> None:
        if not self._choosing:
            self._bar.close()
            self._choosing = True
            self._bar = progress_bar("choosing a layer", "layer", self._layers)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


@contextmanager
def _progress(records: int, layers: int) -> Iterator[Progress]:
    bars = _Bars(records, layers)
    with closing(bars):
        yield Progress(records=bars.record, layer=bars.layer, note=_note)


def _note(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _drop_spool(spool: Path, *, keep: bool) -> None:
    if not keep and spool.is_dir():
        shutil.rmtree(spool)


def _token_text(loaded: LoadedModel, profile: Profile) -> str:
    ids = profile.meta.prefix_ids
    tokenizer = cast("Any", loaded.tokenizer)
    return str(tokenizer.decode(list(ids[-1:]))) if ids else "the prompt's last"


def _next(profile: Profile, out: Path) -> list[str]:
    asked = profile.threshold() is not None
    words = (
        f"toolguard evaluate --profile {out} --model {profile.meta.model.name} --data FRESH"
        if asked
        else "give more records or a larger --max-risk; as it is, the evidence lets nothing pass"
    )
    return [f"{'saved':<16} {out}", f"{'next':<16} {words}"]


def _update_lines(update: ToolUpdate, out: Path) -> list[str]:
    rows = (
        ("calibrated", ", ".join(update.calibrated)),
        ("uncalibrated", ", ".join(update.uncalibrated)),
        *((f"kept {name}", reason) for name, reason in update.kept.items()),
        ("saved", f"{out}; thresholds are as before: calibrate again when many tools have come"),
    )
    return [f"{label:<16} {text}" for label, text in rows if text]


def _list_skipped(skipped: Sequence[SkippedRecord]) -> None:
    lines = [f"{one.record_id}: {one.reason}" for one in skipped]
    list_left_out("records not read", lines, "--json lists all")


def _left_out(records: ChosenRecords, skipped: Sequence[SkippedRecord]) -> dict[str, Any]:
    return {
        "problems": [str(problem) for problem in records.dataset.problems],
        "skipped": [{"id": one.record_id, "reason": one.reason} for one in skipped],
    }
