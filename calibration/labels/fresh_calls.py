"""Calls that took no part in a calibration, read and judged as the guard would."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.judged_calls import CallJudge, Intake, JudgedCall
from toolguard.calibration.reading.collect import BATCH_TOKENS, Observation, collect
from toolguard.calibration.reading.prompts import OnSkip
from toolguard.guard.errors import DatasetError, ToolguardError
from toolguard.guard.profile import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshCalls:
    """Judged calls, and what was left out.

    Args:
        calls: of records with a right call that calibration neither fitted nor selected on.
        leaked: records that it did.
        without_call: records without tools or without a right call.
        skipped: records that could not be read.
    """

    calls: tuple[JudgedCall, ...]
    leaked: int
    without_call: int
    skipped: int

    def counts(self) -> dict[str, int]:
        """Return how many calls there are and what was left out, JSON-ready."""
        return {
            "calls": len(self.calls),
            "wrong": sum(call.wrong for call in self.calls),
            "leaked": self.leaked,
            "without_call": self.without_call,
            "skipped": self.skipped,
        }


def read_fresh(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    intake: Intake,
    records: Iterable[Record],
    *,
    layers: Sequence[int],
    on_skip: OnSkip,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[tuple[JudgedCall, Observation]]:
    """Yield each fresh call among the records, judged, with what was read of it.

    Args:
        loaded: the profile's model.
        wire: the profile's format.
        profile: what judges.
        intake: sorts the records and counts what is left out.
        records: labelled records.
        layers: distinct block indices to read.
        on_skip: told of each record that has no prompt.
        batch_tokens: most new tokens in one forward.
    """
    judge = CallJudge(profile)
    stream = collect(
        loaded,
        wire,
        intake.calls(records),
        layers=layers,
        batch_tokens=batch_tokens,
        names_only=profile.meta.preset == "paper",
        on_skip=on_skip,
    )
    for observation in stream:
        yield judge.read(intake.by_id[observation.record_id], observation), observation


def judge_fresh(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    records: Iterable[Record],
    *,
    batch_tokens: int = BATCH_TOKENS,
    on_done: Callable[[int], object] = lambda _count: None,
) -> FreshCalls:
    """Return the fresh calls among the records, judged.

    Args:
        loaded: the profile's model.
        wire: the profile's format.
        profile: what judges.
        records: labelled records.
        batch_tokens: most new tokens in one forward.
        on_done: told of each record that was read.

    Raises:
        DatasetError: if no record with a call is left.
    """
    intake = Intake(seen=profile.seen_queries)
    skipped: list[ToolguardError] = []
    calls: list[JudgedCall] = []
    stream = read_fresh(
        loaded,
        wire,
        profile,
        intake,
        records,
        layers=[profile.meta.layer],
        batch_tokens=batch_tokens,
        on_skip=lambda _record, error: skipped.append(error),
    )
    for judged, _ in stream:
        calls.append(judged)
        on_done(1)
    if not calls:
        raise DatasetError(
            f"no fresh call is left: {intake.leaked} records took part in calibration, "
            f"{len(skipped)} could not be read",
            hint="pass data that calibration did not see",
        )
    return FreshCalls(
        calls=tuple(calls),
        leaked=intake.leaked,
        without_call=len(intake.silent) + intake.toolless,
        skipped=len(skipped),
    )
