"""What each page shows, read from the store and the agent at the moment it is asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from toolguard.adapters.audit_store.event import StoredEvent
from toolguard.adapters.audit_store.store import AuditStore
from toolguard.adapters.dashboard.access import Access
from toolguard.adapters.dashboard.approval_desk import ApprovalDesk
from toolguard.adapters.dashboard.call_story import read_story
from toolguard.adapters.dashboard.charts import Histogram, histogram
from toolguard.adapters.dashboard.decision_rows import DecisionRow, recent_rows
from toolguard.adapters.dashboard.live_readings import (
    P_WRONG,
    WINDOW,
    LiveReadings,
    read_live,
)
from toolguard.adapters.dashboard.tool_rates import tool_rates, verdict_shares
from toolguard.guard.drift import (
    FEWEST,
    LEVEL,
    TEST,
    measure_drift,
    reference_distributions,
)
from toolguard.guard.profile_meta import ProfileMeta
from toolguard.guard.rate import wilson

Values = dict[str, Any]

ROWS = 50
MOST_ROWS = 1000
COUNTED = 2000  # newest decisions that rates are counted over
MOST_WAITING = 50  # shown at once; each is a look at an agent's checkpoint
SPANS = {"hour": 1, "day": 24, "week": 168, "all": 0}
"""Span of time -> hours; 0 for no bound."""


class PageValues:
    """Reads what the pages show. Threads may share it.

    Args:
        store: the audit store.
        desk: where agents are looked at.
        access: whose form value the pages carry.
        profile: what live readings are compared with; None if nothing.

    Raises:
        ConfigError: if what the profile keeps of its margins cannot be read.
    """

    def __init__(
        self, store: AuditStore, desk: ApprovalDesk, access: Access, profile: ProfileMeta | None
    ) -> None:
        self.store, self.desk, self.access, self.profile = store, desk, access, profile
        self._reference = reference_distributions(profile)
        # What costs reading many rows, beside the number of the last row when it was read.
        self._live: tuple[int, LiveReadings] | None = None
        self._counted: dict[str, tuple[int, list[DecisionRow]]] = {}

    def frame(self) -> Values:
        """Return what every page shows: how many calls wait, and the drift alarm."""
        return {
            "pending": self.store.pending_approvals(),
            "drift": measure_drift(self._readings().values, self._reference),
            "drift_test": TEST,
            "drift_level": LEVEL,
            "drift_fewest": FEWEST,
            "has_profile": self.profile is not None,
            "csrf": self.access.csrf,
        }

    def decisions(self, *, tool: str, run: str, verdict: str, rows: int) -> Values:
        """Return the newest decisions that fit the filters; empty ones fit all."""
        found = recent_rows(
            self.store,
            limit=min(max(rows, 1), MOST_ROWS),
            tool=tool or None,
            run_id=run or None,
            verdict=verdict or None,
        )
        day = self._since("day")
        return {
            "rows": found,
            "shares": verdict_shares(day),
            "cut": len(day) == COUNTED,
            "filters": {"tool": tool, "run": run, "verdict": verdict, "rows": rows},
            "more": min(rows * 2, MOST_ROWS) if len(found) == rows < MOST_ROWS else 0,
        }

    def waiting(self) -> Values:
        """Return the calls that wait for a person, longest first."""
        pending = self.store.pending_approvals()
        return {
            "calls": [self.desk.look(request) for request in pending[:MOST_WAITING]],
            "hidden": max(0, len(pending) - MOST_WAITING),
            "notes": {},
        }

    def call(self, call_id: str) -> Values | None:
        """Return one call's story, or None if nothing is on record."""
        story = read_story(self.store, call_id)
        if story is None:
            return None
        request = story.request
        waits = request is not None and not story.answered
        return {
            "story": story,
            "waiting": self.desk.look(request) if waits and request else None,
            "notes": {},
        }

    def tools(self, span: str) -> Values:
        """Return the rates of each tool within a span of time."""
        span = span if span in SPANS else "day"
        rows = self._since(span)
        return {
            "tools": tool_rates(rows, self.profile),
            "decisions": len(rows),
            "cut": len(rows) == COUNTED,
            "span": span,
            "spans": list(SPANS),
        }

    def distributions(self) -> Values:
        """Return the spread of live margins and P(wrong) beside the calibration's."""
        live = self._readings()
        told = self.profile.signals if self.profile else ()
        signals = dict.fromkeys((*told, *self._reference, *sorted(live.values, reverse=True)))
        signals.pop(P_WRONG, None)
        drawn = [self._margin_chart(signal, live) for signal in signals]
        return {
            "live": live,
            "window": WINDOW,
            "p_wrong": self._p_wrong_chart(live),
            "margins": [chart for chart in drawn if chart],
            "coverage": self._coverage(live),
        }

    def request_of(self, call_id: str) -> StoredEvent | None:
        """Return the request for an answer about a call, unless it was answered."""
        request = self.store.get(call_id, "approval_request")
        answered = self.store.get(call_id, "approval") is not None
        return None if answered else request

    def _since(self, span: str) -> list[DecisionRow]:
        seq, hours = self._last_seq(), SPANS[span]
        known = self._counted.get(span)
        if known is None or known[0] != seq:
            since = datetime.now(UTC) - timedelta(hours=hours) if hours else None
            known = (seq, recent_rows(self.store, limit=COUNTED, since=since))
            self._counted[span] = known
        return known[1]

    def _readings(self) -> LiveReadings:
        seq, known = self._last_seq(), self._live
        if known is None or known[0] != seq:
            known = self._live = (seq, read_live(self.store))
        return known[1]

    def _last_seq(self) -> int:
        newest = next(self.store.events(newest_first=True, limit=1), None)
        return newest.seq if newest else 0

    def _margin_chart(self, signal: str, live: LiveReadings) -> Histogram | None:
        return histogram(
            f"{signal} margin", live.values.get(signal, ()), self._reference.get(signal)
        )

    def _p_wrong_chart(self, live: LiveReadings) -> Histogram | None:
        entries = self.profile.risk if self.profile else ()
        marks = [
            (entry.threshold, f"{entry.target:g}")
            for entry in entries
            if entry.threshold is not None
        ]
        return histogram(
            "P(wrong)",
            live.values.get(P_WRONG, ()),
            self._reference.get(P_WRONG),
            span=(0.0, 1.0),
            bins=20,
            marks=marks,
        )

    def _coverage(self, live: LiveReadings) -> list[Values]:
        """Return the share of calls within each threshold, live and when it was chosen."""
        values = live.values.get(P_WRONG, ())
        return [
            {
                "target": entry.target,
                "threshold": entry.threshold,
                "live": wilson(sum(value <= entry.threshold for value in values), len(values)),
                "calibration": wilson(round((entry.coverage or 0.0) * entry.n), entry.n),
            }
            for entry in (self.profile.risk if self.profile else ())
            if entry.threshold is not None
        ]
