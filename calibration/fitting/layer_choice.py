"""Which block and which readout: K-fold cross-validation inside the fit split.

Source: docs/decisions/0005-fitting.md.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from toolguard.calibration.datasets.draw_key import draw_key
from toolguard.calibration.datasets.near_duplicates import group_near_duplicates, query_tokens
from toolguard.calibration.datasets.splits import SplitItem
from toolguard.calibration.fitting.statistics import ToolStatistics
from toolguard.calibration.fitting.tool_means import NameRows, readout_from, tool_means
from toolguard.calibration.labels.labelled_calls import (
    LabelledCall,
    LayerPass,
    Readings,
    places_of,
    wrong_of,
)
from toolguard.calibration.measuring.metrics import auroc
from toolguard.guard.errors import CalibrationError
from toolguard.guard.profile_meta import CovarianceTarget
from toolguard.guard.rate import Rate, wilson
from toolguard.guard.readout import Readout, ReadoutKind

FEWEST_ERRORS = 10  # below this an AUROC is noise: its standard error is above 0.08
Criterion = Literal["auroc", "readout_accuracy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadoutVariant:
    """A kind of readout and, for lda, what its covariance is shrunk towards."""

    kind: ReadoutKind
    target: CovarianceTarget | None = None


# In the order in which ties are decided: what needs less from the data comes first.
VARIANTS = (
    ReadoutVariant(kind="centred_cosine"),
    ReadoutVariant(kind="cosine"),
    ReadoutVariant(kind="lda", target="diagonal"),
    ReadoutVariant(kind="lda", target="identity"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateResult:
    """What cross-validation found of one block and variant.

    Args:
        layer: block index.
        variant: the readout.
        auroc: of the out-of-fold margins for wrong, all folds together.
        accuracy: of the readout's own best tool.
        fault: why it could not be fitted; empty if it could.
    """

    layer: int
    variant: ReadoutVariant
    auroc: Rate
    accuracy: Rate
    fault: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        found = {
            "layer": self.layer,
            "readout": self.variant.kind,
            "covariance_target": self.variant.target,
            "auroc": self.auroc.to_dict(),
            "readout_accuracy": self.accuracy.to_dict(),
        }
        return found | ({"fault": self.fault} if self.fault else {})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerChoice:
    """The block and variant chosen, with what each candidate reached.

    Args:
        layer: block index.
        variant: the readout.
        criterion: what decided.
        readings: out-of-fold readings of the chosen one; rows are all calls, NaN outside `fit`.
        candidates: every candidate's result.
        folds: number of folds.
        without_fold: for each fold, the readings of the candidate that is best on all others.
    """

    layer: int
    variant: ReadoutVariant
    criterion: Criterion
    readings: Readings
    candidates: tuple[CandidateResult, ...]
    folds: int
    without_fold: tuple[Readings, ...]


def assign_folds(items: Sequence[SplitItem], folds: int, seed: int) -> dict[str, int]:
    """Return a fold for each record id; near duplicates share one, tools are spread evenly.

    Args:
        items: of the fit split.
        folds: wanted, at least 2; fewer are made if there are fewer groups.
        seed: orders the groups.

    Raises:
        CalibrationError: if there are fewer than two groups.
    """
    numbers = group_near_duplicates([frozenset(query_tokens(item.query)) for item in items])
    members: defaultdict[int, list[SplitItem]] = defaultdict(list)
    for item, number in zip(items, numbers, strict=True):
        members[number].append(item)
    if len(members) < 2:
        raise CalibrationError(
            f"{len(items)} calls to fit make {len(members)} groups of queries that differ",
            hint="give more records, or records with more different queries",
        )
    count = min(folds, len(members))
    sizes: Counter[int] = Counter()
    tools: Counter[tuple[str, int]] = Counter()
    placed: dict[str, int] = {}
    for group in sorted(members.values(), key=lambda own: _group_key(own, seed)):
        tool = group[0].tool
        fold = min((tools[tool, f], sizes[f], f) for f in range(count))[-1]
        sizes[fold] += len(group)
        tools[tool, fold] += len(group)
        placed |= {item.id: fold for item in group}
    return placed


def _group_key(group: Sequence[SplitItem], seed: int) -> bytes:
    # By content, so that folds do not depend on the order of the records.
    return min(draw_key(item.id, seed) for item in group)


def choose_layer(
    calls: Sequence[LabelledCall],
    layer_pass: LayerPass,
    layers: Sequence[int],
    names: NameRows,
    *,
    blocks: int,
    min_examples: int,
    on_layer: Callable[[int], None] = lambda _layer: None,
) -> LayerChoice:
    """Return the block and variant whose out-of-fold margins tell wrong calls best from right ones.

    Judged by the AUROC over all folds together; with fewer than `FEWEST_ERRORS` errors in the fit
    split, by the readout's own accuracy. Ties go to the block nearest the second-to-last one.

    Args:
        calls: all calls; those of the fit split have folds.
        layer_pass: their hidden states.
        layers: block indices to try.
        names: stand-ins for tools with too few calls.
        blocks: number of blocks of the model.
        min_examples: fewest right calls a mean is made from.
        on_layer: told of each layer that is done.

    Raises:
        CalibrationError: if no candidate can be fitted.
    """
    fitted = places_of(calls, "fit")
    wrong = wrong_of(calls[place] for place in fitted)
    criterion: Criterion = "auroc" if wrong.sum() >= FEWEST_ERRORS else "readout_accuracy"
    folds = 1 + max(calls[place].fold for place in fitted)
    others = [[p for p in fitted if calls[p].fold != fold] for fold in range(folds)]
    results: list[CandidateResult] = []
    best = _Best()
    best_without = [_Best() for _ in others]
    for layer in layers:
        found = _out_of_fold(calls, layer_pass, layer, names, min_examples)
        for order, variant in enumerate(VARIANTS):
            readings = found[variant]
            nearness = (-abs(layer - (blocks - 2)), -order)
            results.append(_result(layer, variant, readings, fitted, calls))
            if isinstance(readings, str):
                continue
            best.offer(results[-1], criterion, nearness, readings)
            for rest, own in zip(others, best_without, strict=True):
                own.offer(
                    _result(layer, variant, readings, rest, calls), criterion, nearness, readings
                )
        on_layer(layer)
    if best.result is None or best.readings is None:
        raise CalibrationError(
            f"no layer gives a readout: {results[0].fault if results else 'none was read'}",
            hint="give more records",
        )
    return LayerChoice(
        layer=best.result.layer,
        variant=best.result.variant,
        criterion=criterion,
        readings=best.readings,
        candidates=tuple(results),
        folds=folds,
        without_fold=tuple(own.readings for own in best_without if own.readings is not None),
    )


@dataclass(slots=True, eq=False)
class _Best:
    """The best candidate so far; ties go to the one that is nearer the default."""

    rank: tuple[float, int, int] = (-math.inf, 0, 0)
    result: CandidateResult | None = None
    readings: Readings | None = None

    def offer(
        self,
        result: CandidateResult,
        criterion: Criterion,
        nearness: tuple[int, int],
        readings: Readings,
    ) -> None:
        """Keep this candidate if it is better."""
        rate = result.auroc if criterion == "auroc" else result.accuracy
        rank = (-1.0 if rate.value is None else round(rate.value, 9), *nearness)
        if rank > self.rank:
            self.rank, self.result, self.readings = rank, result, readings


def _result(
    layer: int,
    variant: ReadoutVariant,
    readings: Readings | str,
    fitted: Sequence[int],
    calls: Sequence[LabelledCall],
) -> CandidateResult:
    if isinstance(readings, str):
        none = Rate(value=None, low=None, high=None, n=len(fitted))
        return CandidateResult(
            layer=layer, variant=variant, auroc=none, accuracy=none, fault=readings
        )
    own = readings.at(fitted)
    return CandidateResult(
        layer=layer,
        variant=variant,
        auroc=auroc(-own.margin, wrong_of(calls[place] for place in fitted)),
        accuracy=wilson(int(own.right.sum()), len(own.right)),
    )


def _out_of_fold(
    calls: Sequence[LabelledCall],
    layer_pass: LayerPass,
    layer: int,
    names: NameRows,
    min_examples: int,
) -> Mapping[ReadoutVariant, Readings | str]:
    """Return each variant's readings by readouts of the other folds, or why there are none."""
    parts = _fold_statistics(calls, layer_pass, layer, names)
    found: dict[ReadoutVariant, Readings | str] = {
        variant: Readings.empty(len(calls)) for variant in VARIANTS
    }
    readouts = list(_fold_readouts(parts, names, min_examples, found))
    for batch in layer_pass(layer):
        for fold, by_variant in enumerate(readouts):
            own = batch.pick([calls[index].fold == fold for index in batch.calls])
            for variant, readings in found.items():
                if isinstance(readings, Readings):
                    readings.put(by_variant[variant], calls, own)
    return found


def _fold_statistics(
    calls: Sequence[LabelledCall], layer_pass: LayerPass, layer: int, names: NameRows
) -> list[ToolStatistics]:
    """Return each fold's statistics over its right calls, in one pass."""
    folds = 1 + max(call.fold for call in calls)
    parts = [ToolStatistics(*names.rows.shape) for _ in range(folds)]
    for batch in layer_pass(layer):
        for fold, part in enumerate(parts):
            found = [calls[index] for index in batch.calls]
            own = batch.pick([call.fold == fold and not call.wrong for call in found])
            part.update(own.hidden, torch.tensor([calls[i].tool for i in own.calls]).long())
    return parts


def _fold_readouts(
    parts: Sequence[ToolStatistics],
    names: NameRows,
    min_examples: int,
    found: dict[ReadoutVariant, Readings | str],
) -> Iterator[dict[ReadoutVariant, Readout]]:
    """Yield for each fold the readouts of all other folds; a variant that fails is noted once."""
    for fold in range(len(parts)):
        rest = ToolStatistics(*names.rows.shape)
        for other, part in enumerate(parts):
            if other != fold:
                rest = rest.merge(part)
        means = tool_means(rest, names, min_examples)
        built: dict[ReadoutVariant, Readout] = {}
        for variant in VARIANTS:
            try:
                built[variant] = readout_from(rest, means, variant.kind, variant.target).readout
            except CalibrationError as error:
                found[variant] = error.message
        yield built
