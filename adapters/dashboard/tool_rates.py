"""What becomes of each tool's calls: rates with intervals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import get_args

from toolguard.adapters.dashboard.decision_rows import DecisionRow, Verdict
from toolguard.guard.profile_meta import ProfileMeta
from toolguard.guard.rate import Rate, wilson


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRates:
    """One tool's calls.

    Args:
        tool: None for names that were not on the menu.
        decisions: number of decisions.
        run: share that the policy lets run.
        ask: share that it wants a person for.
        block: share that it blocks.
        failed: share of the executed calls that failed.
        mean_p_wrong: mean P(wrong) of those that have one: the share of wrong choices expected;
            None if none has.
        known: what the profile knows of the tool; empty without one.
    """

    tool: str | None
    decisions: int
    run: Rate
    ask: Rate
    block: Rate
    failed: Rate
    mean_p_wrong: float | None
    known: str


def tool_rates(rows: Sequence[DecisionRow], profile: ProfileMeta | None) -> list[ToolRates]:
    """Return the rates of each tool among the decisions, the most frequent tool first."""
    by_tool: defaultdict[str | None, list[DecisionRow]] = defaultdict(list)
    for row in rows:
        by_tool[row.tool].append(row)
    known = _known(profile)
    frequent = sorted(by_tool.items(), key=lambda item: (-len(item[1]), item[0] or ""))
    return [
        _rates(tool, found, known.get(tool, "not in the profile") if tool and profile else "")
        for tool, found in frequent
    ]


def _rates(tool: str | None, rows: Sequence[DecisionRow], known: str) -> ToolRates:
    ends = Counter(row.state for row in rows)
    p_wrong = [row.p_wrong for row in rows if row.p_wrong is not None]
    shares = verdict_shares(rows)
    return ToolRates(
        tool=tool,
        decisions=len(rows),
        run=shares["run"],
        ask=shares["ask"],
        block=shares["block"],
        failed=wilson(ends["failed"], ends["failed"] + ends["done"]),
        mean_p_wrong=fmean(p_wrong) if p_wrong else None,
        known=known,
    )


def verdict_shares(rows: Sequence[DecisionRow]) -> dict[str, Rate]:
    """Return the shares of the decisions by verdict."""
    counts = Counter(row.verdict for row in rows)
    return {name: wilson(counts[name], len(rows)) for name in get_args(Verdict)}


def _known(profile: ProfileMeta | None) -> dict[str | None, str]:
    if profile is None:
        return {}
    return {tool.name: f"{tool.status}, {tool.n} calls" for tool in profile.tools}
