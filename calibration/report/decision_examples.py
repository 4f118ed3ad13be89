"""One call of each kind, with what the guard would do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from toolguard.calibration.report.outcomes import passes
from toolguard.calibration.report.tested_calls import TestedCall, TestedCalls
from toolguard.guard.decision import Action, Reading
from toolguard.guard.policy import Policy, ToolRuling
from toolguard.guard.profile import ToolStatus
from toolguard.guard.verdict import Judge


@dataclass(frozen=True, slots=True, kw_only=True)
class TierVerdict:
    """What `enforce` does with a call of a tool in this tier, by the default policy."""

    tier: str
    action: Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A call, its query if the data was given, and the verdict of each tier."""

    call: TestedCall
    query: str | None
    verdicts: tuple[TierVerdict, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Calls of one kind.

    Args:
        title: of the kind.
        meaning: one sentence about it.
        css: class of its colour.
        calls: how many there are.
        example: one of them; None if there is none.
    """

    title: str
    meaning: str
    css: str
    calls: int
    example: Example | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    title: str
    meaning: str
    css: str
    holds: Callable[[TestedCall, bool], bool]  # told whether the evidence lets the call pass
    rank: Callable[[TestedCall], float]  # the least one is shown


_KINDS = (
    _Kind(
        title="Runs, and is right",
        meaning="P(wrong) is within the threshold. Shown: the clearest one.",
        css="run",
        holds=lambda call, passed: passed and not call.wrong,
        rank=lambda call: call.p_wrong,
    ),
    _Kind(
        title="Runs, and is wrong",
        meaning="What the guard misses. Shown: the one it was surest of.",
        css="block",
        holds=lambda call, passed: passed and call.wrong,
        rank=lambda call: call.p_wrong,
    ),
    _Kind(
        title="Held back, and is wrong",
        meaning="What the guard is there for. Shown: the clearest one.",
        css="run",
        holds=lambda call, passed: call.trusted and not passed and call.wrong,
        rank=lambda call: -call.p_wrong,
    ),
    _Kind(
        title="Held back, and is right",
        meaning="The price of it. Shown: the one it doubted most.",
        css="ask",
        holds=lambda call, passed: call.trusted and not passed and not call.wrong,
        rank=lambda call: -call.p_wrong,
    ),
    _Kind(
        title="The readout prefers another tool",
        meaning=(
            "The hidden state points elsewhere than the model writes, a warning in itself. "
            "Shown: the one doubted least."
        ),
        css="ask",
        holds=lambda call, _: call.best != call.chosen,
        rank=lambda call: call.p_wrong,
    ),
    _Kind(
        title="The profile does not vouch for the tool",
        meaning="It has too few right calls of it. P(wrong) is not asked; the policy decides.",
        css="block",
        holds=lambda call, _: not call.trusted,
        rank=lambda call: call.p_wrong,
    ),
)


def example_groups(
    tested: TestedCalls, threshold: float | None, queries: Mapping[str, str]
) -> tuple[Group, ...]:
    """Return each kind of call with its count and an example.

    Args:
        tested: test calls.
        threshold: largest P(wrong) allowed; None allows nothing.
        queries: record id -> query, as far as they may be shown.
    """
    groups = []
    for kind in _KINDS:
        own = [call for call in tested.calls if kind.holds(call, passes(call, threshold))]
        first = min(own, key=kind.rank, default=None)
        example = None if first is None else _example(first, tested, threshold, queries)
        groups.append(
            Group(
                title=kind.title,
                meaning=kind.meaning,
                css=kind.css,
                calls=len(own),
                example=example,
            )
        )
    return tuple(groups)


def surest_errors(calls: Sequence[TestedCall], most: int) -> tuple[TestedCall, ...]:
    """Return wrong calls, those with the smallest P(wrong) first."""
    wrong = sorted((call for call in calls if call.wrong), key=lambda call: call.p_wrong)
    return tuple(wrong[:most])


def _example(
    call: TestedCall, tested: TestedCalls, threshold: float | None, queries: Mapping[str, str]
) -> Example:
    return Example(
        call=call,
        query=queries.get(call.record_id),
        verdicts=tier_verdicts(call, tested.tools_of(call), threshold),
    )


def tier_verdicts(
    call: TestedCall, tools: tuple[str, ...], threshold: float | None
) -> tuple[TierVerdict, ...]:
    """Return what the default policy, enforced, does with the call in each of its tiers.

    Args:
        call: as read.
        tools: its menu.
        threshold: largest P(wrong) allowed; None allows nothing.
    """
    policy = Policy(mode="enforce")
    status: ToolStatus = "calibrated" if call.trusted else "uncalibrated"
    reading = Reading(menu=tools, chosen=call.chosen, status=status, p_wrong=call.p_wrong)
    return tuple(
        TierVerdict(
            tier=name,
            action=Judge(
                policy=policy,
                ruling=ToolRuling(
                    key=None, tier=name, rule="judge", doubtful=tier.doubtful, risk_target=None
                ),
                threshold=threshold,
                statuses={call.chosen: status},
            )
            .verdict(reading)
            .action,
        )
        for name, tier in policy.tiers.items()
    )
