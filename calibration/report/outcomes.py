"""What the page counts: calibration of P(wrong), margins by outcome, confusions, tools."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from toolguard.calibration.labels.labelled_calls import Booleans, Floats
from toolguard.calibration.measuring.metrics import equal_mass_groups
from toolguard.calibration.report.tested_calls import TestedCall
from toolguard.guard.profile_meta import ProfileTool
from toolguard.guard.rate import Rate, wilson

_TAIL = 0.01  # of the margins beyond each end of the axis; counted in the outermost bins


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Calls of about the same P(wrong): their mean P(wrong), and the share that was wrong."""

    predicted: float
    observed: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginBins:
    """How margins spread among right and among wrong calls, in the same bins.

    Args:
        edges: bins + 1, rising; calls beyond the ends count to the outermost bins.
        right: share of the right calls in each bin.
        wrong: share of the wrong calls in each bin.
        n_right: right calls.
        n_wrong: wrong calls.
    """

    edges: tuple[float, ...]
    right: tuple[float, ...]
    wrong: tuple[float, ...]
    n_right: int
    n_wrong: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Calls in which one tool was right and another one chosen."""

    expected: str
    chosen: str
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusionMatrix:
    """Calls by right and chosen tool.

    Args:
        tools: of both axes, so ordered that tools which are mistaken for each other stand close.
        counts: (expected, chosen) -> calls, where there are any; of tools beyond the axes too.
        hidden: tools that are not on the axes.
    """

    tools: tuple[str, ...]
    counts: dict[tuple[str, str], int]
    hidden: int = 0

    @property
    def confusions(self) -> tuple[Confusion, ...]:
        """Wrong pairs, the most frequent first."""
        pairs = ((pair, count) for pair, count in self.counts.items() if pair[0] != pair[1])
        ordered = sorted(pairs, key=lambda own: (-own[1], own[0]))
        return tuple(Confusion(expected=a, chosen=b, calls=n) for (a, b), n in ordered)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRow:
    """One tool on the test calls.

    Args:
        tool: as the profile has it.
        found: of the calls in which it is right, how many choose it.
        justified: of the calls that choose it, how many are right to.
        allowed: of the calls that choose it, how many have a P(wrong) within the threshold.
        p_wrong: mean over the calls that choose it; None without one.
    """

    tool: ProfileTool
    found: Rate
    justified: Rate
    allowed: Rate
    p_wrong: float | None


def reliability(p_wrong: Floats, wrong: Booleans, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Return bins of about equal size, by rising P(wrong); equal values share one.

    Source: Nixon et al. (2019), "Measuring calibration in deep learning", section 3.
    """
    if not len(p_wrong):
        return ()
    groups = equal_mass_groups(p_wrong, bins)
    return tuple(
        ReliabilityBin(
            predicted=float(p_wrong[groups == group].mean()),
            observed=wilson(int(wrong[groups == group].sum()), int((groups == group).sum())),
        )
        for group in np.unique(groups)
    )


def margin_bins(margins: Floats, wrong: Booleans, bins: int = 24) -> MarginBins | None:
    """Return the spread of finite margins by outcome; None without one."""
    finite = np.isfinite(margins)
    values, labels = margins[finite], wrong[finite]
    if not len(values):
        return None
    low, high = (float(end) for end in np.quantile(values, [_TAIL, 1 - _TAIL]))
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
    edges = np.linspace(low, high, bins + 1)
    clipped = np.clip(values, low, high)
    right, bad = (np.histogram(clipped[own], edges)[0] for own in (~labels, labels))
    return MarginBins(
        edges=tuple(edges.tolist()),
        right=tuple((right / max(1, right.sum())).tolist()),
        wrong=tuple((bad / max(1, bad.sum())).tolist()),
        n_right=int(right.sum()),
        n_wrong=int(bad.sum()),
    )


def confusion_matrix(calls: Iterable[TestedCall], most: int = 64) -> ConfusionMatrix:
    """Return the calls by right and chosen tool.

    Args:
        calls: any.
        most: tools on the axes; of more, those with the most errors.
    """
    counts = Counter((call.expected, call.chosen) for call in calls)
    tools = sorted({name for pair in counts for name in pair})
    errors: Counter[str] = Counter()
    for (expected, chosen), count in counts.items():
        errors.update({} if expected == chosen else {expected: count, chosen: count})
    kept = tools if len(tools) <= most else [name for name, _ in errors.most_common(most)]
    return ConfusionMatrix(
        tools=_side_by_side(sorted(kept), counts),
        counts=dict(counts),
        hidden=len(tools) - len(kept),
    )


def _side_by_side(tools: Sequence[str], counts: Counter[tuple[str, str]]) -> tuple[str, ...]:
    """Order tools so that confused ones are neighbours: chains joined by the strongest pair."""
    pairs: Counter[frozenset[str]] = Counter()
    for (expected, chosen), count in counts.items():
        if expected != chosen and {expected, chosen} <= set(tools):
            pairs[frozenset((expected, chosen))] += count
    chain = {name: [name] for name in tools}
    for pair, _ in sorted(pairs.items(), key=lambda own: (-own[1], sorted(own[0]))):
        one, two = (chain[name] for name in sorted(pair))
        joined = _joined(one, two, pair)
        for name in joined:
            chain[name] = joined
    kept = {id(own): own for own in (chain[name] for name in tools)}
    return tuple(name for own in sorted(kept.values(), key=lambda c: (-len(c), c)) for name in own)


def _joined(one: list[str], two: list[str], pair: frozenset[str]) -> list[str]:
    """Return one chain of both, turned so that the pair's tools come as close as they can."""
    if one is two:
        return one
    ways = [a + b for a in (one, one[::-1]) for b in (two, two[::-1])]

    def distance(way: list[str]) -> int:
        first, second = (way.index(name) for name in pair)
        return abs(first - second)

    return min(ways, key=distance)


def tool_rows(
    tools: Sequence[ProfileTool], calls: Sequence[TestedCall], threshold: float | None
) -> tuple[ToolRow, ...]:
    """Return a row for each tool that has a test call, those with the most errors first.

    Args:
        tools: of the profile.
        calls: test calls.
        threshold: largest P(wrong) allowed; None allows nothing.
    """
    expected, chosen = defaultdict(list), defaultdict(list)
    for call in calls:
        expected[call.expected].append(call)
        chosen[call.chosen].append(call)
    rows = [
        _tool_row(tool, expected[tool.name], chosen[tool.name], threshold)
        for tool in tools
        if expected[tool.name] or chosen[tool.name]
    ]
    errors = {
        tool.name: sum(c.wrong for c in (*expected[tool.name], *chosen[tool.name]))
        for tool in tools
    }
    return tuple(sorted(rows, key=lambda row: (-errors[row.tool.name], row.tool.name)))


def _tool_row(
    tool: ProfileTool,
    expected: Sequence[TestedCall],
    chosen: Sequence[TestedCall],
    threshold: float | None,
) -> ToolRow:
    within = sum(passes(call, threshold) for call in chosen)
    return ToolRow(
        tool=tool,
        found=wilson(sum(not call.wrong for call in expected), len(expected)),
        justified=wilson(sum(not call.wrong for call in chosen), len(chosen)),
        allowed=wilson(within, len(chosen)),
        p_wrong=sum(call.p_wrong for call in chosen) / len(chosen) if chosen else None,
    )


def passes(call: TestedCall, threshold: float | None) -> bool:
    """Return whether the evidence lets a call run: a tool vouched for, P(wrong) small enough."""
    return call.trusted and threshold is not None and call.p_wrong <= threshold
