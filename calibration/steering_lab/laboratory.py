"""The whole comparison: every way of steering, by layer, strength, format and kind of prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.steering_lab.format_lab import FormatLab
from toolguard.calibration.steering_lab.lab_options import LabOptions, chosen_layers
from toolguard.calibration.steering_lab.subjects import part_records
from toolguard.guard.profile import Profile


def run_laboratory(
    loaded: LoadedModel,
    wires: Sequence[WireFormat],
    profile: Profile,
    records: Iterable[Record],
    options: LabOptions,
    *,
    report: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """Return the comparison as plain JSON values; a rate is `{value, low, high, n}` at 95 %.

    What is steered took no part in calibration, and its queries are in no mean. At the profile's
    layer and format the profile's own means push, as a guard would; elsewhere means made here.

    Args:
        loaded: the profile's model.
        wires: formats to compare; the profile's own and others.
        profile: its layer and means, and what calibration saw.
        records: labelled records.
        options: what to compare.
        report: told what is being measured.

    Raises:
        ConfigError: if a layer is no block of the model.
        DatasetError: if no record is left to steer.
    """
    layers = chosen_layers(options.layers, len(loaded.view.blocks), profile.meta.layer)
    parts = part_records(
        records,
        profile.seen_queries,
        donors_a_tool=options.donors_a_tool,
        seed=options.seed,
    )
    groups = [
        group
        for wire in wires
        for group in FormatLab(
            loaded=loaded,
            wire=wire,
            profile=profile,
            parts=parts,
            options=options,
            layers=layers,
            report=report or _silent,
        ).groups()
    ]
    return {
        "model": profile.meta.model.name,
        "profile_layer": profile.meta.layer,
        "blocks": len(loaded.view.blocks),
        "settings": {**options.to_dict(), "layers": list(layers)},
        "records": {
            "donors": len(parts.donors),
            "donors_seen_in_calibration": parts.seen,
            "subjects": len(parts.subjects),
            "near_duplicates_of_donors": parts.near_duplicates,
        },
        "groups": groups,
    }


def _silent(_what: str) -> None:
    pass
