"""The gate of a calibration: which records tell whether to call, read once more where calls start.

Turns with a call stay in the split that the calibration gave them. A turn without one goes where a
near duplicate of its query lies, so that no test query is in any fit, whatever is fitted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.answering.gate_calibration import (
    GateRisk,
    SplitOpenings,
    calibrate_gate,
)
from toolguard.calibration.answering.gate_fit import FEWEST, kinds_in
from toolguard.calibration.answering.labels import next_step
from toolguard.calibration.answering.openings import Opening, read_openings
from toolguard.calibration.datasets.near_duplicates import (
    group_near_duplicates,
    query_fingerprints,
    query_tokens,
)
from toolguard.calibration.datasets.record_choice import ChosenRecords, drawn_ids
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.datasets.splits import (
    SPLITS,
    Split,
    SplitFractions,
    SplitItem,
    Splits,
    make_splits,
)
from toolguard.calibration.fitting.fit_profile import signed_fingerprints
from toolguard.calibration.reading.row_packs import BATCH_TOKENS
from toolguard.guard.errors import CalibrationError
from toolguard.guard.profile import Profile

MOST = 1000  # turns with a call, and turns without, that are read for the gate


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOptions:
    """How a gate is made.

    Args:
        layers: block indices to try.
        risk: what the user asks for.
        fractions: sizes of the splits of turns without a call.
        folds: of cross-validation.
        batch_tokens: see `read_openings`.
        names_only: see `read_openings`.
        most: bound on the turns of either sort.
        seed: of draws, splits, folds and bootstraps.
    """

    layers: tuple[int, ...]
    risk: GateRisk = field(default_factory=GateRisk)
    fractions: SplitFractions = field(default_factory=SplitFractions)
    folds: int = 5
    batch_tokens: int = BATCH_TOKENS
    names_only: bool = False
    most: int = MOST
    seed: int = 0


def with_gate(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    records: ChosenRecords,
    splits: Splits,
    options: GateOptions,
    *,
    on_note: Callable[[str], object] = lambda _line: None,
) -> Profile:
    """Return the profile with a gate, where the data hold enough turns without a call.

    Args:
        loaded: the profile's model.
        wire: its format.
        profile: without a gate.
        records: what it was made from; their data's records without a call are looked at too.
        splits: of `records`.
        options: how.
        on_note: told why there is no gate, if there were such records.

    Raises:
        ReadoutError: if a reading is not finite.
    """
    split_of = _drawn_splits(records, splits, options)
    silent = sum(item_id not in splits.of for item_id in split_of)
    if silent < FEWEST:
        if silent:
            on_note(f"{silent} records without a call are too few to tell when not to call")
        return profile
    openings = _read(loaded, wire, records, split_of, options)
    if not kinds_in(openings.of["fit"]):
        on_note(f"fewer than {FEWEST} turns without a call are there to fit to")
        return profile
    try:
        gate = calibrate_gate(openings, options.risk, folds=options.folds, seed=options.seed)
    except CalibrationError as error:
        on_note(f"when not to call cannot be told: {error.message}")
        return profile
    used = query_fingerprints(
        opening.query for split in ("fit", "select") for opening in openings.of[split]
    )
    return replace(
        profile,
        meta=profile.meta.model_copy(update={"call_or_answer": gate.section}),
        gate=gate,
        seen=signed_fingerprints(profile.seen_queries | used),
    )


def _drawn_splits(records: ChosenRecords, splits: Splits, options: GateOptions) -> dict[str, Split]:
    """Return the split of each record that is read, by its id."""
    silent = [SplitItem.of(record) for record in records.without_call() if next_step(record)]
    kept = drawn_ids([item.id for item in silent], options.most, options.seed)
    of_silent = silent_splits(
        splits, [item for item in silent if item.id in kept], options.fractions, options.seed
    )
    called = drawn_ids([item.id for item in splits.items], options.most, options.seed)
    return {**{record_id: splits.of[record_id] for record_id in called}, **of_silent}


def silent_splits(
    calls: Splits, silent: Sequence[SplitItem], fractions: SplitFractions, seed: int
) -> dict[str, Split]:
    """Return a split for each item without a call, by its id.

    An item goes where the calls lie whose queries are near duplicates of its own, and is left out
    if they lie in several splits. Those like no call are split among themselves.

    Args:
        calls: items that have a split.
        silent: items that need one.
        fractions: sizes wanted.
        seed: orders the groups.
    """
    items = [*calls.items, *silent]
    numbers = group_near_duplicates([frozenset(query_tokens(item.query)) for item in items])
    met: defaultdict[int, set[Split]] = defaultdict(set)
    for item, number in zip(calls.items, numbers, strict=False):
        met[number].add(calls.of[item.id])
    found: dict[str, Split] = {}
    free: list[SplitItem] = []
    for item, number in zip(silent, numbers[len(calls.items) :], strict=True):
        if not met[number]:
            free.append(item)
        elif len(met[number]) == 1:
            found[item.id] = next(iter(met[number]))
    return found | (dict(make_splits(free, fractions=fractions, seed=seed).of) if free else {})


def _read(
    loaded: LoadedModel,
    wire: WireFormat,
    records: ChosenRecords,
    split_of: Mapping[str, Split],
    options: GateOptions,
) -> SplitOpenings:
    found: dict[Split, list[Opening]] = {split: [] for split in SPLITS}
    openings = read_openings(
        loaded,
        wire,
        _wanted(records, split_of),
        layers=options.layers,
        on_skip=lambda _record, _error: None,  # the calibration has reported those with a call
        batch_tokens=options.batch_tokens,
        names_only=options.names_only,
        decisions=False,
    )
    for opening in openings:
        found[split_of[opening.record_id]].append(opening)
    return SplitOpenings(of=found, layers=options.layers)


def _wanted(records: ChosenRecords, split_of: Mapping[str, Split]) -> Iterable[Record]:
    yield from (record for record in records if record.id in split_of)
    yield from (record for record in records.without_call() if record.id in split_of)
