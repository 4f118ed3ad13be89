"""How well the right tool can be read at the decision token, whatever the model then writes.

Means are made by label, not from calls that the model got right: a model that cannot call yet may
know already. Every record is scored by means of other folds, near duplicates in one fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.fitting.named_readout import NamedStates, fit_named
from toolguard.calibration.labels.turn_outcomes import write_turns
from toolguard.calibration.reading.collect import BATCH_TOKENS, Observation, collect
from toolguard.calibration.votes.cross_fitting import check_folds, fold_calls
from toolguard.calibration.votes.mean_votes import PAPER_QUERIES
from toolguard.guard.errors import CalibrationError
from toolguard.guard.rate import Rate, wilson
from toolguard.guard.readout import ReadoutKind

_TURN_TOKENS = 64  # a turn is written far enough for the name of its first call


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingKind:
    """One way to read: a readout, and how many labelled queries make a tool's mean."""

    name: str
    kind: ReadoutKind
    queries: int | None = None


KINDS = (
    ReadingKind(name="cosine_3", kind="cosine", queries=PAPER_QUERIES),
    ReadingKind(name="cosine", kind="cosine"),
    ReadingKind(name="lda", kind="lda"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadabilityOptions:
    """What is read.

    Args:
        layers: block indices.
        names_only: tell the model the tools' names alone.
        turns: records on which the model also writes freely; 0 leaves that out.
        batch_tokens: bound on one batch.
        seed: of folds and draws.
    """

    layers: tuple[int, ...]
    names_only: bool = False
    turns: int = 200
    batch_tokens: int = BATCH_TOKENS
    seed: int = 0


def measure_readability(
    loaded: LoadedModel,
    wire: WireFormat,
    records: Sequence[Record],
    options: ReadabilityOptions,
) -> dict[str, Any]:
    """Return accuracies of readouts and of the model itself, as plain JSON values.

    `written` is the share of freely written turns whose first call names a right tool, `chosen` the
    share of records where, once a call is opened for it, the model's favourite name of the menu is
    right, `read` the same for the readouts, by layer.

    Args:
        loaded: the model.
        wire: how it writes calls.
        records: labelled calls that the model never learned from.
        options: what is read.

    Raises:
        CalibrationError: if a record and a near duplicate lie in two folds.
    """
    known = {record.id: record for record in records}
    skipped: list[str] = []
    stream = collect(
        loaded,
        wire,
        records,
        layers=options.layers,
        batch_tokens=options.batch_tokens,
        names_only=options.names_only,
        on_skip=lambda record, _error: skipped.append(record.id),
    )
    seen = list(stream)
    read = [known[one.record_id] for one in seen]
    return {
        "n": len(seen),
        "skipped": len(skipped),
        "tools": len({record.call.name for record in read if record.call}),
        "written": _written(loaded, wire, read, options).to_dict(),
        "chosen": wilson(sum(one.is_right for one in seen), len(seen)).to_dict(),
        "read": _read(seen, read, options),
    }


def _written(
    loaded: LoadedModel, wire: WireFormat, records: Sequence[Record], options: ReadabilityOptions
) -> Rate:
    """Return how often a freely written turn opens with a call of a right tool."""
    sample = Random(options.seed).sample(list(records), min(len(records), options.turns))
    turns = write_turns(
        loaded,
        wire,
        sample,
        names_only=options.names_only,
        new_tokens=_TURN_TOKENS,
        batch_tokens=4 * options.batch_tokens,
    )
    spans = [None if text is None else wire.find_name(text, 0) for text in turns]
    right = sum(
        span is not None and span.name in record.right_names
        for record, span in zip(sample, spans, strict=True)
    )
    return wilson(right, len(sample))


def _read(
    seen: Sequence[Observation], records: Sequence[Record], options: ReadabilityOptions
) -> list[dict[str, Any]]:
    """Return the accuracy of each readout at each layer; none if there are no folds."""
    folds = fold_calls(records, options.seed) if records else None
    if folds is None:
        return []
    check_folds(records, folds)
    labels = [record.call.name for record in records if record.call]
    return [
        {
            "readout": kind.name,
            "layer": layer,
            "accuracy": _accuracy(
                kind,
                seen,
                NamedStates(
                    ids=[record.id for record in records],
                    names=labels,
                    states=torch.stack([one.hidden[place] for one in seen]),
                ),
                folds.tolist(),
            ).to_dict(),
        }
        for place, layer in enumerate(options.layers)
        for kind in KINDS
    ]


def _accuracy(
    kind: ReadingKind, seen: Sequence[Observation], given: NamedStates, folds: Sequence[int]
) -> Rate:
    """Return how often the tool that means of other folds prefer is right.

    A record whose right tool has no mean, or whose fold cannot be fitted, counts as not right.
    """
    right = 0
    for fold in sorted(set(folds)):
        own = [row for row, place in enumerate(folds) if place == fold]
        rest = given.at([row for row, place in enumerate(folds) if place != fold])
        try:
            readout = fit_named(
                kind.kind, rest if kind.queries is None else rest.first(kind.queries)
            )
        except CalibrationError:
            continue
        menus = [seen[row].menu_names for row in own]
        for row, scores in zip(own, readout.menu_scores(given.states[own], menus), strict=True):
            best = int(scores.argmax())
            right += best in seen[row].right and bool(torch.isfinite(scores[best]))
    return wilson(right, len(folds))
