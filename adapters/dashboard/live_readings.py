"""The evidence of the newest decisions, beside what calibration measured of the same quantities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from toolguard.adapters.audit_store.store import AuditStore
from toolguard.adapters.dashboard.decision_rows import evidence_of, mapping, number

WINDOW = 1000  # newest decisions that are looked at
P_WRONG = "p_wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveReadings:
    """Numbers of the newest decisions on tools that the profile vouches for.

    Args:
        values: `p_wrong` or a signal's name -> numbers, newest first.
        decisions: decisions looked at.
        left_out: those among them without a complete reading of a calibrated tool.
    """

    values: Mapping[str, tuple[float, ...]]
    decisions: int
    left_out: int


def read_live(store: AuditStore, window: int = WINDOW) -> LiveReadings:
    """Return the readings of the newest `window` decisions.

    Raises:
        AuditError: if the store cannot be read.
    """
    values: defaultdict[str, list[float]] = defaultdict(list)
    decisions = left_out = 0
    for event in store.events(kind="decision", newest_first=True, limit=window):
        decisions += 1
        evidence = evidence_of(event)
        p_wrong = number(evidence.get(P_WRONG))
        if evidence.get("status") != "calibrated" or evidence.get("fault") or p_wrong is None:
            left_out += 1
            continue
        values[P_WRONG].append(p_wrong)
        for signal, margin in mapping(evidence.get("margins")).items():
            if (known := number(margin)) is not None:
                values[str(signal)].append(known)
    return LiveReadings(
        values={name: tuple(numbers) for name, numbers in values.items()},
        decisions=decisions,
        left_out=left_out,
    )
