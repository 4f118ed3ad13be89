"""The calls that a correction is for: those whose P(wrong) is above the profile's threshold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from toolguard.calibration.datasets.record_choice import drawn_ids
from toolguard.calibration.labels.judged_calls import JudgedCall


@dataclass(frozen=True, slots=True, kw_only=True)
class FlaggedCalls:
    """What became of a set of labelled calls at one threshold.

    Args:
        calls: the flagged ones.
        threshold: calls with P(wrong) at or below it run; None if none may.
        read: calls looked at.
        unjudged: calls that are not judged by P(wrong): the profile cannot vouch for the tool, or a
            signal was not read.
    """

    calls: tuple[JudgedCall, ...]
    threshold: float | None
    read: int
    unjudged: int

    def sample(self, most: int, seed: int) -> FlaggedCalls:
        """Return at most `most` of the calls, drawn by id and seed, in their order."""
        kept = drawn_ids([call.record.id for call in self.calls], most, seed)
        return replace(self, calls=tuple(c for c in self.calls if c.record.id in kept))

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain JSON values."""
        return {
            "read": self.read,
            "unjudged": self.unjudged,
            "flagged": len(self.calls),
            "flagged_wrong": sum(call.wrong for call in self.calls),
            "threshold": self.threshold,
        }


def flag_calls(calls: Iterable[JudgedCall], threshold: float | None) -> FlaggedCalls:
    """Return the calls that would not run.

    Args:
        calls: as the guard reads them.
        threshold: largest P(wrong) that runs; None flags every call that can be judged.
    """
    flagged: list[JudgedCall] = []
    read = unjudged = 0
    for call in calls:
        read += 1
        if not call.trusted or call.p_wrong is None:
            unjudged += 1
        elif threshold is None or call.p_wrong > threshold:
            flagged.append(call)
    return FlaggedCalls(calls=tuple(flagged), threshold=threshold, read=read, unjudged=unjudged)
