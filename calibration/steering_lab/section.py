"""The steering section of an evaluation: four methods at the profile's layer, on whole calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.reading.collect import BATCH_TOKENS
from toolguard.calibration.reading.prompts import PromptWriter
from toolguard.calibration.steering_lab.directions import Directions
from toolguard.calibration.steering_lab.pairs import Choice, draw_pairs
from toolguard.calibration.steering_lab.settings import Setting
from toolguard.calibration.steering_lab.state_means import StateMeans
from toolguard.calibration.steering_lab.trials import TrialBench
from toolguard.calibration.steering_lab.whole_calls import CallReader, measure_calls
from toolguard.guard.profile import Profile

SECTION: Mapping[str, Setting] = {
    "mean_difference": Setting(method="mean_difference", norm="natural"),
    "unembedding_row": Setting(method="unembedding_row", norm="matched"),
    "random": Setting(method="random", norm="matched"),
    "redirect": Setting(method="redirect"),
}
"""Its methods; layer and strength are the profile's and the user's."""


def steering_section(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    choices: Sequence[Choice],
    *,
    most: int,
    alpha: float = 1.0,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return, for each method, the rates of switches and of calls that fit the schema.

    Args:
        loaded: the profile's model.
        wire: the profile's format.
        profile: its means push, at its layer.
        choices: labelled records and what the model chooses.
        most: bound on the pairs of tools.
        alpha: strength.
        batch_tokens: bound on one batch.
        seed: of the draw and of the random vectors.
    """
    means = StateMeans.of_profile(profile)
    writer = PromptWriter(loaded, wire, names_only=profile.meta.preset == "paper")
    pairs = draw_pairs(writer, choices, frozenset(means.tools), most=most, seed=seed)
    settings = [
        setting if setting.norm is None else replace(setting, layer=profile.meta.layer, alpha=alpha)
        for setting in SECTION.values()
    ]
    cells = measure_calls(
        TrialBench(loaded, batch_tokens=batch_tokens),
        CallReader(loaded=loaded, wire=wire),
        Directions(loaded, means, seed=seed),
        pairs,
        settings,
    )
    collisions = sum(bool(pair.common) for pair in pairs)
    return {
        name: {**cell.to_dict(), "first_token_collisions": collisions}
        for name, cell in zip(SECTION, cells, strict=True)
    }
