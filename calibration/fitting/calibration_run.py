"""One calibration from records to a profile: read the model once, spool, fit.

What was read lies in a spool, so an interrupted run goes on where it stopped and fitting can pass
over the hidden states as often as it needs to in constant memory.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.answering.gate_calibration import GateRisk
from toolguard.calibration.answering.gate_run import GateOptions, with_gate
from toolguard.calibration.correction.choice import (
    SelectCalls,
    choose_correction,
    with_correction,
)
from toolguard.calibration.correction.measurement import CorrectionOptions
from toolguard.calibration.datasets.near_duplicates import query_fingerprints
from toolguard.calibration.datasets.record_choice import ChosenRecords
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.datasets.splits import (
    Split,
    SplitFractions,
    Splits,
    leak_check,
    make_splits,
)
from toolguard.calibration.fitting.add_tools import ToolUpdate, add_tools
from toolguard.calibration.fitting.fit_input import CollectedCalls, FitOptions, ToolDefinition
from toolguard.calibration.fitting.fit_profile import fit_profile
from toolguard.calibration.fitting.layer_choice import assign_folds
from toolguard.calibration.labels.labelled_calls import HiddenBatch, LabelledCall, LayerPass
from toolguard.calibration.reading.collect import BATCH_TOKENS, Observation, collect
from toolguard.calibration.reading.name_rows import NameTokenFinder
from toolguard.calibration.reading.spool import Spool
from toolguard.calibration.report.tested_calls import TestedCalls, read_tested_calls
from toolguard.guard.errors import ConfigError, ToolguardError
from toolguard.guard.profile import Profile
from toolguard.guard.profile_meta import ModelIdentity
from toolguard.guard.readout import margin
from toolguard.guard.signals import menu_entropy
from toolguard.guard.tools import Menu, sha256_text

LATE_LAYERS = 8
_BATCH = 256  # rows; fixed, so that the last bits do not hang on where a run was interrupted
MOST_LAYERS = 12  # a model of more blocks is read late only, unless told otherwise


def _ignore(_done: int) -> None:
    pass


def _ignore_note(_line: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What is told how far a run is.

    Args:
        records: how many more records were read.
        layer: which layer cross-validation has done.
        note: a line for the user.
    """

    records: Callable[[int], None] = _ignore
    layer: Callable[[int], None] = _ignore
    note: Callable[[str], None] = _ignore_note


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How records are read and divided.

    Args:
        spool: folder for what was read.
        layers: block indices to read.
        fractions: sizes of the splits.
        folds: of cross-validation.
        batch_tokens: see `collect`.
        names_only: see `collect`.
        seed: of splits and folds.
    """

    spool: Path
    layers: tuple[int, ...]
    fractions: SplitFractions = field(default_factory=SplitFractions)
    folds: int = 5
    batch_tokens: int = BATCH_TOKENS
    names_only: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedRecord:
    """A record that could not be read, and why."""

    record_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationResult:
    """A fitted profile, the test calls as it reads them, and records that took no part in it."""

    profile: Profile
    tested: TestedCalls
    skipped: tuple[SkippedRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionResult:
    """An extended profile and the records that took no part in it."""

    update: ToolUpdate
    skipped: tuple[SkippedRecord, ...]


def calibrate(
    loaded: LoadedModel,
    wire: WireFormat,
    records: ChosenRecords,
    run: RunOptions,
    options: FitOptions,
    progress: Progress,
) -> CalibrationResult:
    """Return the profile of a model from labelled records.

    Raises:
        CalibrationError: if the records do not suffice, or near duplicates lie in two splits.
        ConfigError: if a layer does not exist.
        UnsupportedModel: if the tokenizer cannot tell the decision token.
        ReadoutError: if a reading is not finite.
    """
    splits = make_splits(records.items, fractions=run.fractions, seed=run.seed)
    leak_check(splits)
    reading = _read(loaded, wire, records, run, progress)
    labelled = _label(reading.spool, splits.of, _folds(splits, run))
    collected = CollectedCalls(
        calls=labelled.calls,
        layer_pass=_layer_pass(reading.spool, run.layers),
        layers=run.layers,
        tools=labelled.tools,
        names=reading.finder.rows([tool.name for tool in labelled.tools]),
        seen=splits.fingerprints("fit") | splits.fingerprints("select"),
        model=identity_of(loaded),
        wire_format=wire.name,
        prefix_text=wire.prefix(),
        prefix_ids=reading.finder.prefix_ids,
        dataset_hash=_data_hash(records),
        notes={
            **_counts(records, reading),
            "groups": splits.groups,
            "leak_check": "no near duplicates across splits",
        },
    )
    profile = fit_profile(collected, options, on_layer=progress.layer)
    menu = tuple(_commonest_menu(records).schemas())
    profile = replace(profile, meta=profile.meta.model_copy(update={"menu": menu}))
    if not options.preset:  # the published recipe always calls
        gate = _gate_options(run, options)
        profile = with_gate(loaded, wire, profile, records, splits, gate, on_note=progress.note)
    profile = _corrected(loaded, wire, profile, records, splits, reading, run)
    tested = read_tested_calls(profile, collected)
    return CalibrationResult(profile=profile, tested=tested, skipped=reading.skipped)


def extend(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    records: ChosenRecords,
    run: RunOptions,
    *,
    min_examples: int,
    progress: Progress,
) -> ExtensionResult:
    """Return the profile with the tools that the records bring, all others bit-identical.

    Args:
        loaded: the profile's model.
        wire: the profile's format.
        profile: to extend.
        records: calls of the new or changed tools.
        run: its layers must be the profile's one.
        min_examples: fewest right calls a mean is made from.
        progress: told how far it is.

    Raises:
        CalibrationError: if no record could be read.
        ReadoutError: if a reading is not finite.
    """
    reading = _read(loaded, wire, records, run, progress)
    of: dict[str, Split] = {item.id: "fit" for item in records.items}
    labelled = _label(reading.spool, of, {})
    collected = CollectedCalls(
        calls=labelled.calls,
        layer_pass=_layer_pass(reading.spool, run.layers),
        layers=run.layers,
        tools=labelled.tools,
        names=reading.finder.rows([tool.name for tool in labelled.tools]),
        seen=query_fingerprints(item.query for item in records.items),
        model=profile.meta.model,
        wire_format=wire.name,
        prefix_text=wire.prefix(),
        prefix_ids=reading.finder.prefix_ids,
        dataset_hash=_data_hash(records),
        notes=_counts(records, reading),
    )
    update = add_tools(profile, collected, min_examples=min_examples)
    return ExtensionResult(update=update, skipped=reading.skipped)


def identity_of(loaded: LoadedModel) -> ModelIdentity:
    """Return what a profile notes of its model."""
    return ModelIdentity(
        name=loaded.name,
        revision=loaded.revision,
        fingerprint=loaded.fingerprint,
        dtype=loaded.dtype,
        family=loaded.view.family,
        blocks=len(loaded.view.blocks),
        hidden_size=loaded.view.hidden_size,
        template_hash=loaded.template_hash,
        tokenizer_hash=loaded.tokenizer_hash,
    )


def parse_layers(text: str | None, blocks: int) -> tuple[int, ...]:
    """Return block indices from "all", "late" or "3,4,5".

    None is all of a model of up to 12 blocks, and the last 8 of a deeper one.

    Raises:
        ConfigError: if an index is no block of the model, or the text is none of these.
    """
    if text is None:
        text = "all" if blocks <= MOST_LAYERS else "late"
    if text == "all":
        return tuple(range(blocks))
    if text == "late":
        return tuple(range(max(0, blocks - LATE_LAYERS), blocks))
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 0 or found[-1] >= blocks:
        raise ConfigError(
            f"--layers {text!r}: the model has blocks 0 to {blocks - 1}",
            hint='pass "all", "late", or block indices as 3,4,5',
        )
    return tuple(found)


def _gate_options(run: RunOptions, options: FitOptions) -> GateOptions:
    return GateOptions(
        layers=run.layers,
        risk=GateRisk(
            max_risk=options.max_risk, targets=options.targets, confidence=options.confidence
        ),
        fractions=run.fractions,
        folds=run.folds,
        batch_tokens=run.batch_tokens,
        names_only=run.names_only,
        seed=run.seed,
    )


def _corrected(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    records: ChosenRecords,
    splits: Splits,
    reading: _Reading,
    run: RunOptions,
) -> Profile:
    """Return the profile with the correction that the select split shows to help, if one does."""
    select = SelectCalls.drawn(splits.ids("select"), splits.fingerprints("test"), run.seed)
    flagged = select.flagged(profile, records, reading.spool, run.layers)
    options = CorrectionOptions(batch_tokens=run.batch_tokens, seed=run.seed)
    return with_correction(profile, choose_correction(loaded, wire, profile, flagged, options))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Reading:
    """What was read of the model."""

    spool: Spool
    finder: NameTokenFinder
    skipped: tuple[SkippedRecord, ...]


def _read(
    loaded: LoadedModel,
    wire: WireFormat,
    records: ChosenRecords,
    run: RunOptions,
    progress: Progress,
) -> _Reading:
    """Read the records that the spool does not hold yet."""
    finder = NameTokenFinder(loaded, wire, names_only=run.names_only)
    skipped: list[SkippedRecord] = []

    def skip(record: Record, error: ToolguardError) -> None:
        skipped.append(SkippedRecord(record_id=record.id, reason=error.message))

    spool = Spool.open(run.spool, _spool_key(loaded, wire, records, run), on_restart=progress.note)
    if len(spool):
        progress.note(f"going on with {len(spool)} calls read before")
    with spool:
        stream = collect(
            loaded,
            wire,
            finder.watch(records),
            layers=run.layers,
            batch_tokens=run.batch_tokens,
            names_only=run.names_only,
            done=spool,
            on_skip=skip,
            on_done=progress.records,
            on_plain=progress.note,
        )
        for observation in stream:
            spool.append(observation)
    return _Reading(spool=spool, finder=finder, skipped=tuple(skipped))


def _commonest_menu(records: ChosenRecords) -> Menu:
    """Return the menu of the most records; the first one met among equals."""
    counts = Counter(_menu_key(record) for record in records)
    [(commonest, _)] = counts.most_common(1)
    return next(record.menu for record in records if _menu_key(record) == commonest)


def _menu_key(record: Record) -> str:
    return record.menu_id or record.menu.content_hash


def _spool_key(
    loaded: LoadedModel, wire: WireFormat, records: ChosenRecords, run: RunOptions
) -> dict[str, Any]:
    """Return all that decides what is read, to the last bit."""
    return {
        "model": loaded.fingerprint,
        "template": loaded.template_hash,
        "tokenizer": loaded.tokenizer_hash,
        "device": loaded.device.type,
        "dtype": loaded.dtype,
        "format": wire.name,
        "data": _data_hash(records),
        "records": sha256_text("\n".join(item.id for item in records.items)),
        "layers": list(run.layers),
        "batch_tokens": run.batch_tokens,
        "names_only": run.names_only,
    }


def _data_hash(records: ChosenRecords) -> str:
    """Return the hash of the files, and of the menu put in place of theirs."""
    own = records.dataset.content_hash
    return own if records.menu is None else sha256_text(f"{own}\n{records.menu.content_hash}")


def _counts(records: ChosenRecords, reading: _Reading) -> dict[str, Any]:
    return {
        **records.counts,
        "read": len(reading.spool),
        "skipped": len(reading.skipped),
        "problems": len(records.dataset.problems),
    }


def _folds(splits: Splits, run: RunOptions) -> dict[str, int]:
    fit = [item for item in splits.items if splits.of[item.id] == "fit"]
    return assign_folds(fit, run.folds, run.seed)


def _layer_pass(observations: Iterable[Observation], layers: Sequence[int]) -> LayerPass:
    """Return what passes over the observations' states at one layer, in batches of fixed size."""

    def batches(layer: int) -> Iterator[HiddenBatch]:
        place = layers.index(layer)
        rows = enumerate(observation.hidden[place] for observation in observations)
        while batch := list(itertools.islice(rows, _BATCH)):
            yield HiddenBatch(
                calls=tuple(index for index, _ in batch),
                hidden=torch.stack([hidden for _, hidden in batch]),
            )

    return batches


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labelled:
    """Calls, and the tools on the axis they refer to."""

    calls: tuple[LabelledCall, ...]
    tools: tuple[ToolDefinition, ...]


def _label(
    observations: Iterable[Observation], of: Mapping[str, Split], folds: Mapping[str, int]
) -> _Labelled:
    """Return the labelled calls of what was read, in its order."""
    axis: dict[str, int] = {}
    hashes: defaultdict[str, set[str]] = defaultdict(set)
    calls = []
    for seen in observations:
        for name, content_hash in zip(seen.menu_names, seen.menu_hashes, strict=True):
            axis.setdefault(name, len(axis))
            hashes[name].add(content_hash)
        calls.append(
            LabelledCall(
                record_id=seen.record_id,
                split=of[seen.record_id],
                fold=folds.get(seen.record_id, -1),
                tools=tuple(axis[name] for name in seen.menu_names),
                chosen=seen.chosen,
                right=seen.right,
                logprob_margin=margin(seen.scores, seen.chosen),
                entropy=menu_entropy(seen.scores),
            )
        )
    tools = (ToolDefinition(name=name, content_hashes=tuple(sorted(hashes[name]))) for name in axis)
    return _Labelled(calls=tuple(calls), tools=tuple(tools))
