"""The readout of a profile: chosen by cross-validation or prescribed, made from right calls.

Source: docs/decisions/0005-fitting.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from toolguard.calibration.datasets.draw_key import draw_key
from toolguard.calibration.datasets.splits import Split
from toolguard.calibration.fitting.fit_input import CollectedCalls, FitOptions
from toolguard.calibration.fitting.layer_choice import LayerChoice, ReadoutVariant, choose_layer
from toolguard.calibration.fitting.tool_means import (
    BuiltReadout,
    readout_from,
    right_call_statistics,
    tool_means,
)
from toolguard.calibration.labels.labelled_calls import (
    Floats,
    LabelledCall,
    Readings,
    places_of,
    signals_of,
)
from toolguard.guard.errors import ConfigError

PAPER_QUERIES = 3  # a tool; arXiv 2605.07990


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedReadout:
    """The readout of a profile, with held-out readings of the calls.

    Args:
        layer: block index.
        variant: kind of the readout.
        built: the readout itself.
        readings: of all calls, by readouts that were made without the call; NaN where none was.
        choice: how layer and variant were chosen, JSON-ready.
        counts: (tools,) int64 calls behind each mean.
        without_fold: see `LayerChoice`; empty if nothing was chosen.
    """

    layer: int
    variant: ReadoutVariant
    built: BuiltReadout
    readings: Readings
    choice: dict[str, Any]
    counts: Tensor
    without_fold: tuple[Readings, ...] = ()

    def trusted_places(self, calls: Sequence[LabelledCall], split: Split) -> list[int]:
        """Return the calls of one split whose chosen tool is calibrated: the guard reads no others.

        P(wrong) and thresholds are made for these, which keeps the guarantee exact for what runs.
        """
        calibrated = self.built.means.calibrated.tolist()
        return [place for place in places_of(calls, split) if calibrated[calls[place].tool]]

    def margins(self, calls: Sequence[LabelledCall]) -> dict[str, Floats]:
        """Return each signal as (calls,), from held-out readings; see `signals_of`."""
        return signals_of(calls, self.readings)

    def nested_margins(self, calls: Sequence[LabelledCall], fold: int) -> dict[str, Floats]:
        """Return the signals as if layer and readout had been chosen without the calls of `fold`.

        What is measured on that fold then owes nothing to the choice among many candidates. The
        preset chooses nothing, so its readings are the same for all folds.
        """
        return signals_of(calls, self.without_fold[fold] if self.without_fold else self.readings)


def fit_readout(
    collected: CollectedCalls, options: FitOptions, on_layer: Callable[[int], None]
) -> FittedReadout:
    """Return the readout that the preset prescribes or cross-validation chooses.

    Raises:
        CalibrationError: if no readout can be fitted.
        ConfigError: if the preset's layer was not collected.
    """
    if options.preset == "paper":
        return _fit_paper(collected, options)
    return _fit_own(collected, options, on_layer)


def _fit_own(
    collected: CollectedCalls, options: FitOptions, on_layer: Callable[[int], None]
) -> FittedReadout:
    """Return the readout that cross-validation chose, made from all right calls of `fit`."""
    calls = collected.calls
    choice = choose_layer(
        calls,
        collected.layer_pass,
        collected.layers,
        collected.names,
        blocks=collected.model.blocks,
        min_examples=options.min_examples,
        on_layer=on_layer,
    )
    return _build(
        collected,
        options,
        layer=choice.layer,
        variant=choice.variant,
        wanted=[place for place, call in enumerate(calls) if call.split == "fit"],
        readings=choice.readings,
        choice=_choice_to_dict(choice),
        without_fold=choice.without_fold,
    )


def _choice_to_dict(choice: LayerChoice) -> dict[str, Any]:
    return {
        "by": choice.criterion,
        "folds": choice.folds,
        "candidates": [candidate.to_dict() for candidate in choice.candidates],
    }


def _fit_paper(collected: CollectedCalls, options: FitOptions) -> FittedReadout:
    """Return the published recipe: uncentred cosine of three right queries a tool, one fixed block.

    The other calls of `fit` are held out from the means, so they serve the calibrator.

    Raises:
        ConfigError: if the second-to-last block was not collected.
    """
    layer = max(collected.model.blocks - 2, 0)
    if layer not in collected.layers:
        raise ConfigError(f"the preset reads block {layer}, which was not collected")
    return _build(
        collected,
        options,
        layer=layer,
        variant=ReadoutVariant(kind="cosine"),
        wanted=_first_right_calls(collected.calls, options.seed),
        readings=Readings.empty(len(collected.calls)),
        choice={"by": "preset", "folds": 0, "candidates": []},
    )


def _first_right_calls(calls: Sequence[LabelledCall], seed: int) -> list[int]:
    """Return the first few right calls of each tool in `fit`, in an order fixed by the seed."""
    taken: defaultdict[int, list[int]] = defaultdict(list)
    right = [place for place in places_of(calls, "fit") if not calls[place].wrong]
    for place in sorted(right, key=lambda p: draw_key(calls[p].record_id, seed)):
        own = taken[calls[place].tool]
        if len(own) < PAPER_QUERIES:
            own.append(place)
    return [place for own in taken.values() for place in own]


def _build(
    collected: CollectedCalls,
    options: FitOptions,
    *,
    layer: int,
    variant: ReadoutVariant,
    wanted: Sequence[int],
    readings: Readings,
    choice: dict[str, Any],
    without_fold: tuple[Readings, ...] = (),
) -> FittedReadout:
    """Return the final readout, with its readings of every call it was not made from."""
    calls, used = collected.calls, frozenset(wanted)
    statistics = right_call_statistics(
        calls,
        collected.layer_pass,
        layer,
        collected.names.rows.shape,
        pooled=variant.target is not None,
        wanted=used,
    )
    means = tool_means(statistics, collected.names, options.min_examples)
    built = readout_from(statistics, means, variant.kind, variant.target)
    for batch in collected.layer_pass(layer):
        readings.put(built.readout, calls, batch.pick([i not in used for i in batch.calls]))
    return FittedReadout(
        layer=layer,
        variant=variant,
        built=built,
        readings=readings,
        choice=choice,
        counts=statistics.counts,
        without_fold=without_fold,
    )
