"""Call or answer, measured on a data set: every signal by source, a profile's gate beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.answering.gate_calibration import gate_metrics
from toolguard.calibration.answering.labels import next_step
from toolguard.calibration.answering.measurement import measure_openings
from toolguard.calibration.answering.openings import Opening, read_openings
from toolguard.calibration.datasets.near_duplicates import query_fingerprint
from toolguard.calibration.datasets.record_choice import drawn_ids
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.reading.row_packs import BATCH_TOKENS
from toolguard.guard.errors import CalibrationError, ToolguardError
from toolguard.guard.profile import Profile

LATE_LAYERS = 4  # blocks before the model's end that are read where nobody names others


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyOptions:
    """What to measure and how much of it.

    Args:
        layers: block indices to try; None is the last few, and the gate's.
        most: bound on the turns of each source that call for the same next step.
        target: risk whose threshold is checked; None is what the profile was made for.
        batch_tokens: see `read_openings`.
        names_only: see `read_openings`.
        folds: of cross-fitting.
        seed: of draws, folds and bootstraps.
    """

    layers: tuple[int, ...] | None = None
    most: int = 300
    target: float | None = None
    batch_tokens: int = BATCH_TOKENS
    names_only: bool = False
    folds: int = 5
    seed: int = 0


def survey_call_or_answer(
    loaded: LoadedModel,
    wire: WireFormat,
    records: Iterable[Record],
    options: SurveyOptions,
    *,
    profile: Profile | None = None,
    on_done: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Return how well it can be told whether a call is right, as plain JSON values.

    Args:
        loaded: the model.
        wire: how it writes calls.
        records: labelled; read twice.
        options: what to measure.
        profile: of this model, whose gate is measured; None measures what cross-fitting reaches.
        on_done: told how many more records were read.

    Returns: `sources`: by source, see `measure_openings`; `gate`: by kind, see `gate_metrics`, or
        None without a gate; `skipped`: records without a prompt.

    Raises:
        CalibrationError: if the profile was made from one of the queries.
        ConfigError: if a layer is no block of the model.
        ReadoutError: if a reading is not finite.
    """
    layers = _layers(loaded, options, profile)
    skipped: list[tuple[Record, ToolguardError]] = []
    drawn = _draw(records, options)
    openings = list(
        read_openings(
            loaded,
            wire,
            (record for record in records if record.id in drawn),
            layers=layers,
            on_skip=lambda record, error: skipped.append((record, error)),
            batch_tokens=options.batch_tokens,
            names_only=options.names_only,
            on_done=on_done,
        )
    )
    return {
        "layers": list(layers),
        "sources": measure_openings(openings, layers, folds=options.folds, seed=options.seed),
        "gate": None if profile is None else _gate(profile, openings, layers, options),
        "skipped": len(skipped),
    }


def _layers(
    loaded: LoadedModel, options: SurveyOptions, profile: Profile | None
) -> tuple[int, ...]:
    blocks = len(loaded.view.blocks)
    wanted = set(options.layers or range(max(0, blocks - LATE_LAYERS), blocks))
    if profile is not None and profile.gate is not None:
        wanted.add(profile.gate.section.layer)
    return tuple(sorted(wanted))


def _draw(records: Iterable[Record], options: SurveyOptions) -> frozenset[str]:
    by_step: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for record in records:
        if step := next_step(record):
            by_step[record.source, step].append(record.id)
    return frozenset().union(
        *(drawn_ids(ids, options.most, options.seed) for ids in by_step.values())
    )


def _gate(
    profile: Profile, openings: Sequence[Opening], layers: tuple[int, ...], options: SurveyOptions
) -> dict[str, Any] | None:
    """Return what the profile's gate reaches on these turns, all sources together."""
    gate = profile.gate
    if gate is None:
        return None
    seen = profile.seen_queries
    for opening in openings:
        if query_fingerprint(opening.query) in seen:
            raise CalibrationError(
                f"record {opening.record_id!r} took part in the calibration of the profile",
                hint="measure on data that calibration did not see",
                record_id=opening.record_id,
            )
    target = profile.meta.requested_risk.target if options.target is None else options.target
    return {
        kind: gate_metrics(gate, kind, openings, layers, target=target, seed=options.seed)
        for kind in gate.kinds
    }
