"""The comparison in one wire format: its means, its pairs of tools, and the cells over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.steering_lab.directions import Directions, Norm
from toolguard.calibration.steering_lab.lab_options import LabOptions
from toolguard.calibration.steering_lab.pairs import PAIR_KINDS, Pair, PairKind, draw_pairs
from toolguard.calibration.steering_lab.reading import Chosen, LabReader
from toolguard.calibration.steering_lab.settings import Method, Place, Setting, grid
from toolguard.calibration.steering_lab.state_means import StateMeans
from toolguard.calibration.steering_lab.subjects import Parts, Turns, sample_subjects
from toolguard.calibration.steering_lab.switching import measure_switching
from toolguard.calibration.steering_lab.trials import TrialBench
from toolguard.calibration.steering_lab.whole_calls import CallReader, measure_calls
from toolguard.guard.profile import Profile
from toolguard.guard.rate import wilson

CALL_NORMS: Mapping[Method, Norm | None] = {
    "none": None,
    "redirect": None,
    "logit_bias": None,
    "mean_difference": "natural",
    "unembedding_row": "matched",
    "gained_row": "matched",
    "random": "matched",
}
"""The methods of which whole calls are written, each at one norm."""

# So that few prompts are used twice, and rare kinds of pairs are met.
_SUBJECTS_A_PAIR = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FormatLab:
    """The comparison in one wire format.

    Args:
        loaded: the profile's model.
        wire: how calls are written here.
        profile: its layer, and its means where the format is its own.
        parts: the records that give means, and those that are steered.
        options: what to compare.
        layers: blocks to push, the profile's among them.
        report: told what is being measured.
    """

    loaded: LoadedModel
    wire: WireFormat
    profile: Profile
    parts: Parts
    options: LabOptions
    layers: tuple[int, ...]
    report: Callable[[str], object]

    def groups(self) -> list[dict[str, Any]]:
        """Return the cells of each kind of prompt and pair, as plain JSON values."""
        options = self.options
        bench = TrialBench(
            self.loaded, batch_tokens=options.batch_tokens, new_tokens=options.new_tokens
        )
        reader = LabReader(
            loaded=self.loaded,
            wire=self.wire,
            layers=self.layers,
            names_only=self.profile.meta.preset == "paper",
            batch_tokens=options.batch_tokens,
        )
        self.report(f"{self.wire.name}: means of {len(self.parts.donors)} records")
        means = reader.means(bench, self.parts.donors, options.fewest_donors)
        if self.wire.name == self.profile.meta.wire_format:
            means = means.with_profile(self.profile)
        kinds: tuple[Turns, ...] = ("single", "multi")
        return [group for turns in kinds for group in self._groups_of(turns, bench, reader, means)]

    def _groups_of(
        self, turns: Turns, bench: TrialBench, reader: LabReader, means: StateMeans
    ) -> Iterator[dict[str, Any]]:
        options = self.options
        subjects = sample_subjects(
            self.parts.subjects, turns, _SUBJECTS_A_PAIR * options.pairs, options.seed
        )
        self.report(f"{self.wire.name}, {turns}: choices on {len(subjects)} records")
        chosen = reader.choices(subjects)
        directions = Directions(self.loaded, means, seed=options.seed)
        for kind in PAIR_KINDS:
            pairs = draw_pairs(
                reader.writer(),
                chosen.choices,
                frozenset(means.tools),
                most=options.pairs,
                seed=options.seed,
                kind=kind,
            )
            self.report(f"{self.wire.name}, {turns}, {kind}: {len(pairs)} pairs")
            yield {
                "format": self.wire.name,
                "turns": turns,
                "pairs": kind,
                "n": len(pairs),
                "records": len({pair.prompt.record.id for pair in pairs}),
                "why_fewer": _why_fewer(pairs, options.pairs, chosen, means),
                "model_right": wilson(len(chosen.right), len(chosen.choices)).to_dict(),
                "skipped": chosen.skipped,
                "cells": self._cells(bench, directions, pairs, kind),
                "whole_calls": self._calls(bench, directions, pairs, kind),
            }

    def _cells(
        self, bench: TrialBench, directions: Directions, pairs: Sequence[Pair], kind: PairKind
    ) -> list[dict[str, Any]]:
        options, own = self.options, self.profile.meta.layer
        if not pairs:
            return []
        # The decision token cannot choose between colliding names; one layer is enough to see it.
        layers = [own] if kind == "colliding" else self.layers
        settings = grid(options.methods, layers, options.alphas)
        if kind != "apart":
            settings += grid(options.methods, self.layers, options.alphas, "partings")
        return [cell.to_dict() for cell in measure_switching(bench, directions, pairs, settings)]

    def _calls(
        self, bench: TrialBench, directions: Directions, pairs: Sequence[Pair], kind: PairKind
    ) -> list[dict[str, Any]]:
        some = [pair for pair in pairs if pair.number < self.options.calls]
        if not some or not self.wire.writes_arguments:
            return []
        self.report(f"{self.wire.name}: whole calls of {len(some)} pairs")
        settings = call_settings(
            self.options.methods,
            self.profile.meta.layer,
            self.options.call_alpha,
            "decision" if kind == "apart" else "partings",
        )
        reader = CallReader(loaded=self.loaded, wire=self.wire)
        cells = measure_calls(bench, reader, directions, some, settings)
        return [cell.to_dict() for cell in cells]


def call_settings(
    methods: Sequence[Method], layer: int, alpha: float, place: Place
) -> tuple[Setting, ...]:
    """Return the settings under which whole calls are written: a few of the grid."""
    wanted = [method for method in methods if method in CALL_NORMS]
    plain = [method for method in wanted if method in {"none", "redirect"}]
    acting = [method for method in wanted if method not in plain]
    whole = grid(plain, [layer], [alpha]) + grid(acting, [layer], [alpha], place)
    return tuple(setting for setting in whole if setting.norm == CALL_NORMS[setting.method])


def _why_fewer(pairs: Sequence[Pair], wanted: int, chosen: Chosen, means: StateMeans) -> str | None:
    """Return why there are fewer pairs than wanted; None if there are not."""
    if len(pairs) >= wanted:
        return None
    if not chosen.choices:
        return "the data hold no such prompts"
    return (
        f"the model is right on {len(chosen.right)} of {len(chosen.choices)} such prompts, "
        f"tools with a mean: {len(means.tools)}; there are no more pairs of this kind"
    )
