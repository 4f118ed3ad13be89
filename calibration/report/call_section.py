"""All of the page that needs the test calls themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toolguard.calibration.report.decision_examples import (
    Example,
    Group,
    example_groups,
    surest_errors,
    tier_verdicts,
)
from toolguard.calibration.report.figures import (
    Figure,
    coverage_figure,
    margin_figures,
    reliability_figure,
    risk_at,
)
from toolguard.calibration.report.matrix_chart import MatrixChart, matrix_chart
from toolguard.calibration.report.outcomes import (
    ConfusionMatrix,
    ToolRow,
    confusion_matrix,
    tool_rows,
)
from toolguard.calibration.report.overview import usable_entry
from toolguard.calibration.report.tested_calls import TestedCalls
from toolguard.guard.profile_meta import ProfileMeta, RiskEntry
from toolguard.guard.rate import Rate

_MOST_ERRORS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSection:
    """What the calls show.

    Args:
        coverage: risk-coverage curves; None without both outcomes.
        half: error rate among the safest half, by signal.
        reliability: of P(wrong).
        margins: histograms.
        matrix: confusion matrix as a drawing.
        confusion: the same as counts.
        tools: rows of the per-tool table, those with the most errors first.
        groups: kinds of calls with examples.
        errors: the wrong calls the guard was surest of.
        wrong: number of all wrong calls.
        entry: whose threshold the verdicts use; None if no target lets anything run.
    """

    coverage: Figure | None
    half: Mapping[str, Rate]
    reliability: Figure | None
    margins: tuple[Figure, ...]
    matrix: MatrixChart
    confusion: ConfusionMatrix
    tools: tuple[ToolRow, ...]
    groups: tuple[Group, ...]
    errors: tuple[Example, ...]
    wrong: int
    entry: RiskEntry | None


def call_section(
    meta: ProfileMeta, tested: TestedCalls | None, queries: Mapping[str, str]
) -> CallSection | None:
    """Return what the test calls show; None without one.

    Args:
        meta: of the profile.
        tested: its test calls; None if it came without.
        queries: record id -> query, as far as they may be shown.
    """
    if tested is None or not tested.calls:
        return None
    entry = usable_entry(meta)
    threshold = None if entry is None else entry.threshold
    matrix = confusion_matrix(tested.calls)
    return CallSection(
        coverage=coverage_figure(tested, meta.requested_risk.target),
        half={name: risk_at(tested, name, 0.5) for name in ("combined", "logprob")},
        reliability=reliability_figure(tested),
        margins=margin_figures(tested, meta.readout),
        matrix=matrix_chart(matrix),
        confusion=matrix,
        tools=tool_rows(meta.tools, tested.calls, threshold),
        groups=example_groups(tested, threshold, queries),
        errors=tuple(
            Example(
                call=call,
                query=queries.get(call.record_id),
                verdicts=tier_verdicts(call, tested.tools_of(call), threshold),
            )
            for call in surest_errors(tested.calls, _MOST_ERRORS)
        ),
        wrong=int(tested.wrong.sum()),
        entry=entry,
    )
