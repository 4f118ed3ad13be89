"""Which correction a profile offers: chosen on calls that are neither fitted to nor tested on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.correction.flagged import FlaggedCalls, flag_calls
from toolguard.calibration.correction.measurement import (
    DEFAULT_OPTIONS,
    CorrectionOptions,
    measure_correction,
)
from toolguard.calibration.correction.methods import SERVED
from toolguard.calibration.datasets.near_duplicates import query_fingerprint
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.judged_calls import CallJudge
from toolguard.calibration.reading.collect import Observation
from toolguard.guard.errors import CalibrationError
from toolguard.guard.profile import Profile

MOST_READ = 2000  # calls of the select split that are looked at; bounds the memory


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SelectCalls:
    """The calls that a correction is chosen on.

    Args:
        ids: of their records, at most `MOST_READ`.
        held_out: fingerprints of the queries that may not be among them.
    """

    ids: frozenset[str]
    held_out: frozenset[int]

    @classmethod
    def drawn(cls, ids: Sequence[str], held_out: frozenset[int], seed: int) -> SelectCalls:
        """Return a draw of the split's record ids."""
        kept = ids if len(ids) <= MOST_READ else Random(seed).sample(sorted(ids), MOST_READ)
        return cls(ids=frozenset(kept), held_out=held_out)

    def flagged(
        self,
        profile: Profile,
        records: Iterable[Record],
        observations: Iterable[Observation],
        layers: Sequence[int],
    ) -> FlaggedCalls:
        """Return the calls that the profile flags at the risk asked for.

        Args:
            profile: whose guard reads.
            records: those of `ids` among them.
            observations: of these and other records, in any order.
            layers: the blocks of their hidden states.

        Raises:
            CalibrationError: if a call's query is held out.
        """
        own = {record.id: record for record in records if record.id in self.ids}
        for record in own.values():
            if query_fingerprint(record.query) in self.held_out:
                raise CalibrationError(
                    f"record {record.id!r} would choose a correction and test it",
                    hint="its query is in the test split too: report this",
                    record_id=record.id,
                )
        place = layers.index(profile.meta.layer)
        judge = CallJudge(profile)
        judged = (
            judge.read(own[one.record_id], replace(one, hidden=one.hidden[place : place + 1]))
            for one in observations
            if one.record_id in own
        )
        return flag_calls(judged, profile.threshold())


def choose_correction(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    flagged: FlaggedCalls,
    options: CorrectionOptions = DEFAULT_OPTIONS,
) -> dict[str, Any]:
    """Return what the corrections that the guard can carry out do, as `measure_correction` does.

    Tools are compared first, which takes a short prompt a call. Calls are written out only if that
    leaves a correction that helps: it must not lose whole calls either.

    Args:
        loaded: the profile's model.
        wire: the profile's format.
        profile: what flagged the calls.
        flagged: of the select split.
        options: how much to measure.
    """
    named = replace(options, new_tokens=0)
    found = measure_correction(loaded, wire, profile, flagged, named, SERVED)
    if found["helps"] is None or not options.new_tokens:
        return found
    return measure_correction(loaded, wire, profile, flagged, options, SERVED)


def with_correction(profile: Profile, report: dict[str, Any]) -> Profile:
    """Return the profile with the correction that helps, and with what was measured."""
    metrics = {**profile.meta.metrics, "correction": report}
    update = {"correction": report["helps"], "metrics": metrics}
    return replace(profile, meta=profile.meta.model_copy(update=update))
