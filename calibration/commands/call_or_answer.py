"""`toolguard call-or-answer`: can it be told, before a call exists, that none should be made?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolguard.calibration.answering.gate_table import survey_table
from toolguard.calibration.answering.survey import SurveyOptions, survey_call_or_answer
from toolguard.calibration.command_data import open_data
from toolguard.calibration.command_model import open_model, open_model_of
from toolguard.calibration.command_options import (
    batch_tokens_option,
    data_option,
    json_option,
    model_options,
)
from toolguard.calibration.command_output import progress_bar, show_result
from toolguard.calibration.datasets.near_duplicates import query_fingerprint
from toolguard.calibration.fitting.calibration_run import parse_layers
from toolguard.calibration.reading.row_packs import BATCH_TOKENS
from toolguard.guard.errors import DatasetError
from toolguard.guard.profile import Profile

_DEFAULT = SurveyOptions()


@click.command("call-or-answer")
@model_options
@data_option()
@click.option(
    "--profile",
    "folder",
    type=click.Path(path_type=Path),
    help="Profile folder: measure its thresholds too, on queries it has not seen.",
)
@click.option("--layers", metavar="L", help="Blocks to try: all, late, or 3,4,5.")
@click.option(
    "--most",
    type=click.IntRange(min=1),
    default=_DEFAULT.most,
    show_default=True,
    help="Most records of a source that call for the same next step.",
)
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    default=_DEFAULT.folds,
    show_default=True,
    help="Of cross-fitting.",
)
@batch_tokens_option(BATCH_TOKENS)
@click.option("--seed", type=int, default=0, show_default=True, help="Of draws and folds.")
@json_option
def command(
    data: tuple[Path, ...],
    folder: Path | None,
    layers: str | None,
    json_path: str | None,
    **options: Any,
) -> None:
    """Measure how well a needless call is told from a right one, where the call could start.

    Compares the log-probability of a call's opening with the hidden state there, on records with a
    call and without, by source: should the model call, answer in words, or ask first? What is
    fitted is fitted to other records. Rates come with n and 95 % intervals.
    """
    profile = None if folder is None else Profile.load(folder)
    dataset = open_data(data, model=options["model"])
    loaded, wire = open_model(options) if profile is None else open_model_of(profile, options)
    seen = frozenset() if profile is None else profile.seen_queries
    # Small beside the openings: what is left out must be known before anything is drawn.
    records = [record for record in dataset if query_fingerprint(record.query) not in seen]
    chosen = SurveyOptions(
        layers=None if layers is None else parse_layers(layers, len(loaded.view.blocks)),
        most=options["most"],
        batch_tokens=options["batch_tokens"],
        names_only=profile is not None and profile.meta.preset == "paper",
        folds=options["folds"],
        seed=options["seed"],
    )
    with progress_bar("reading openings", "turn") as bar:
        result = survey_call_or_answer(
            loaded, wire, records, chosen, profile=profile, on_done=bar.update
        )
    if not result["sources"]:
        raise DatasetError(
            "no record tells whether to call",
            hint="pass records with a call and records without, which calibration did not see",
        )
    result["bad_records"] = len(dataset.problems)
    show_result(result, "\n".join(survey_table(result)), json_path)
