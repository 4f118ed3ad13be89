"""All that the claims need of one model on one source, measured once and kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.dataset_writing import write_dataset
from toolguard.calibration.datasets.record_choice import ChosenRecords, choose_records
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.fitting.calibration_run import (
    Progress,
    RunOptions,
    calibrate,
    parse_layers,
)
from toolguard.calibration.fitting.fit_input import FitOptions, Preset
from toolguard.calibration.measuring.evaluation import EvaluationOptions, evaluate_profile
from toolguard.calibration.reading.collect import BATCH_TOKENS
from toolguard.calibration.replication.readability import ReadabilityOptions, measure_readability
from toolguard.calibration.steering_lab.lab_options import LabOptions
from toolguard.calibration.steering_lab.laboratory import run_laboratory
from toolguard.guard.errors import CalibrationError, DatasetError
from toolguard.guard.profile import Profile

Depth = Literal["read", "all"]
"""`read`: what can be read, and what is written; `all`: signals and steering, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """How much is measured.

    Args:
        limit: most records a source.
        turns: of these, how many the model writes freely on.
        pairs: pairs of tools in each cell of the steering.
        votes: see `EvaluationOptions.votes`.
        batch_tokens: bound on one batch.
        seed: of all draws.
    """

    limit: int = 1000
    turns: int = 200
    pairs: int = 300
    votes: str = "free"
    batch_tokens: int = BATCH_TOKENS
    seed: int = 0


def measure_source(
    loaded: LoadedModel,
    wire: WireFormat,
    records: Sequence[Record],
    folder: Path,
    options: MeasureOptions,
    depth: Depth,
) -> dict[str, Any]:
    """Return what one model reaches on the records of one source, as plain JSON values.

    What was measured before with the same options is read back from `folder`.

    Args:
        loaded: the model.
        wire: how it writes calls.
        records: labelled calls that it never learned from.
        folder: of this model and source; gets data, profiles and numbers.
        options: how much.
        depth: what.
    """
    kept = folder / f"{depth}.json"
    key = {"options": asdict(options), "records": len(records), "model": loaded.fingerprint}
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if found["key"] == key:
            return found
    told = {"key": key, **_read(loaded, wire, records, options)}
    if depth == "all":
        told |= _profiles(loaded, wire, records, folder, options)
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


def _read(
    loaded: LoadedModel, wire: WireFormat, records: Sequence[Record], options: MeasureOptions
) -> dict[str, Any]:
    """Return the readability with whole menus; the block that the paper reads is named."""
    blocks = len(loaded.view.blocks)
    chosen = ReadabilityOptions(
        layers=parse_layers(None, blocks),
        turns=options.turns,
        batch_tokens=options.batch_tokens,
        seed=options.seed,
    )
    return {
        "blocks": blocks,
        "second_to_last": max(0, blocks - 2),
        "readability": measure_readability(loaded, wire, records, chosen),
    }


def _profiles(
    loaded: LoadedModel,
    wire: WireFormat,
    records: Sequence[Record],
    folder: Path,
    options: MeasureOptions,
) -> dict[str, Any]:
    """Return evaluations of the project's own profile and of the published recipe, and steering."""
    chosen = choose_records(write_dataset(records, folder / "data"))
    calls = EvaluationOptions(
        batch_tokens=options.batch_tokens,
        steering=0,
        turns=options.turns,
        no_call=0,
        votes=options.votes,
        seed=options.seed,
    )

    def evaluated(profile: Profile) -> dict[str, Any]:
        return evaluate_profile(loaded, wire, profile, records, calls)

    def steered(profile: Profile) -> dict[str, Any]:
        lab = LabOptions(
            layers=(),
            alphas=(1.0, 2.0),
            pairs=options.pairs,
            calls=options.pairs,
            batch_tokens=options.batch_tokens,
            seed=options.seed,
        )
        return run_laboratory(loaded, [wire], profile, records, lab)

    told: dict[str, Any] = {}
    faults: dict[str, str] = {}
    wanted: tuple[tuple[str, Preset, Callable[[Profile], dict[str, Any]]], ...] = (
        ("own", "", evaluated),
        ("paper", "paper", evaluated),
        ("steering", "paper", steered),
    )
    for name, preset, measure in wanted:
        try:
            profile = _profile(loaded, wire, chosen, folder, options, preset)
            told[name] = measure(profile)
        except (CalibrationError, DatasetError) as error:
            faults[name] = error.message
    return {**told, "faults": faults}


def _profile(
    loaded: LoadedModel,
    wire: WireFormat,
    records: ChosenRecords,
    folder: Path,
    options: MeasureOptions,
    preset: Preset,
) -> Profile:
    place = folder / (preset or "own")
    blocks = len(loaded.view.blocks)
    run = RunOptions(
        spool=place / ".spool",
        layers=(max(0, blocks - 2),) if preset else parse_layers(None, blocks),
        batch_tokens=options.batch_tokens,
        names_only=bool(preset),
        seed=options.seed,
    )
    fit = FitOptions(seed=options.seed, preset=preset)
    profile = calibrate(loaded, wire, records, run, fit, Progress()).profile
    profile.save(place / "profile")
    return profile
