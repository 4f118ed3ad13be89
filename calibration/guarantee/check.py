"""What a profile's risk guarantee is worth: on calls like its own, and on calls from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolguard.calibration.datasets.near_duplicates import group_near_duplicates, query_tokens
from toolguard.calibration.guarantee.drift_power import REPEATS, WINDOWS, drift_power
from toolguard.calibration.guarantee.risk import measure_risk
from toolguard.calibration.guarantee.split_draws import (
    CHOSEN_ON,
    SPLITS,
    SplitCalls,
    verify_guarantee,
)
from toolguard.calibration.labels.judged_calls import JudgedCall
from toolguard.guard.drift import FEWEST, DriftState, measure_drift, reference_distributions
from toolguard.guard.errors import CalibrationError, ConfigError
from toolguard.guard.policy import Policy
from toolguard.guard.profile import Profile
from toolguard.guard.signals import ALWAYS_READ

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

REFUSED = 1.1  # above every threshold: what the guard cannot vouch for is not allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class GuaranteeOptions:
    """How much to measure.

    Args:
        splits: random splits for each target.
        chosen_on: share of the queries that each split chooses its threshold on.
        windows: numbers of live calls that the drift test looks at.
        repeats: draws a window.
        seed: of splits and draws.

    Raises:
        ConfigError: if a number lies outside its range.
    """

    splits: int = SPLITS
    chosen_on: float = CHOSEN_ON
    windows: tuple[int, ...] = WINDOWS
    repeats: int = REPEATS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.splits < 1 or self.repeats < 1 or not 0 < self.chosen_on < 1:
            raise ConfigError(
                "splits and repeats must be at least 1 and chosen_on in (0, 1), "
                f"found {self.splits}, {self.repeats} and {self.chosen_on}"
            )
        if not self.windows or min(self.windows) < FEWEST:
            raise ConfigError(
                f"windows must hold {FEWEST} calls at least, found {list(self.windows)}",
                hint="the drift test says nothing on fewer",
            )


def measure_guarantee(
    profile: Profile,
    same: Sequence[JudgedCall],
    shifted: Sequence[JudgedCall],
    options: GuaranteeOptions,
    policy: Policy | None = None,
) -> dict[str, Any]:
    """Return what the thresholds of a profile are worth, as plain JSON values.

    Args:
        profile: whose thresholds are judged.
        same: fresh calls of the kind it was calibrated on.
        shifted: calls from elsewhere; empty leaves the shift out.
        options: how much to measure.
        policy: whose tiers are looked at one by one; None leaves them out.

    Raises:
        CalibrationError: if a record is in both kinds, or too few of the calls can be judged.
    """
    if shared := {call.record.id for call in same} & {call.record.id for call in shifted}:
        raise CalibrationError(
            f"{len(shared)} records are in both kinds, {min(shared)!r} among them: a shift cannot "
            "be measured against itself",
            hint="give --shifted data that is not in --data",
            records=tuple(sorted(shared)),
        )
    judged = [call for call in same if _vouched(call)]
    if len(judged) < 2:
        raise CalibrationError(
            f"only {len(judged)} of {len(same)} calls are of tools that the profile vouches for",
            hint="pass --data with records of the tools calibrated",
        )
    return {
        "signals": list(profile.meta.signals),
        "vouched": {"same": len(judged), "shifted": sum(map(_vouched, shifted))},
        "splits": _splits(profile, judged, options),
        "thresholds": {
            "same": _thresholds(profile, same),
            "shifted": _thresholds(profile, shifted),
            "shifted_if_vouched": _thresholds(profile, [_if_vouched(call) for call in shifted]),
        },
        "tiers": []
        if policy is None
        else [
            {
                **_tier(profile, policy, tier, same, shifted),
                **_tier_splits(profile, policy, tier, judged, options),
            }
            for tier in policy.tiers
        ],
        "drift": _drift(profile, judged, shifted, options),
    }


def _if_vouched(call: JudgedCall) -> JudgedCall:
    """Return the call as if the profile vouched for its tool, as after `calibrate --add-tools`."""
    return replace(call, trusted=True)


def _vouched(call: JudgedCall) -> bool:
    return call.trusted and call.p_wrong is not None


def _risks(calls: Sequence[JudgedCall]) -> Floats:
    """Return (calls,) P(wrong); above every threshold where the guard would not judge by it."""
    return np.array(
        [call.p_wrong if call.trusted and call.p_wrong is not None else REFUSED for call in calls]
    )


def _splits(
    profile: Profile, calls: Sequence[JudgedCall], options: GuaranteeOptions
) -> list[dict[str, Any]]:
    """Return the check of every target of the profile over random splits."""
    made = _split_calls(calls)
    return [_verified(profile, made, entry.target, options) for entry in profile.meta.risk]


def _split_calls(calls: Sequence[JudgedCall]) -> SplitCalls:
    groups = group_near_duplicates([frozenset(query_tokens(c.record.query)) for c in calls])
    return SplitCalls.of(_risks(calls), [call.wrong for call in calls], groups)


def _verified(
    profile: Profile,
    calls: SplitCalls,
    target: float,
    options: GuaranteeOptions,
    measured: Booleans | None = None,
) -> dict[str, Any]:
    return verify_guarantee(
        calls,
        target=target,
        confidence=profile.meta.requested_risk.confidence,
        splits=options.splits,
        chosen_on=options.chosen_on,
        seed=options.seed,
        measured=measured,
    )


def _thresholds(profile: Profile, calls: Sequence[JudgedCall]) -> list[dict[str, Any]]:
    """Return coverage and error rate at each stored threshold."""
    return [
        {
            "target": entry.target,
            "threshold": entry.threshold,
            **_measured(calls, entry.target, entry.threshold),
        }
        for entry in profile.meta.risk
    ]


def _measured(
    calls: Sequence[JudgedCall], target: float, threshold: float | None
) -> dict[str, Any]:
    """Return coverage, error rate, and whether the rate is shown to be above the target."""
    found = measure_risk(_risks(calls), [call.wrong for call in calls], threshold)
    low = found.realised.low
    return {
        "coverage": found.coverage.to_dict(),
        "realised": found.realised.to_dict(),
        "broken": None if low is None else low > target,
    }


def _tier(
    profile: Profile,
    policy: Policy,
    tier: str,
    same: Sequence[JudgedCall],
    shifted: Sequence[JudgedCall],
) -> dict[str, Any]:
    """Return what the tier's own target allows among the calls of its tools."""
    asked = policy.tier_target(tier)
    target, threshold = _asked(profile, asked), profile.threshold(asked)
    row: dict[str, Any] = {"tier": tier, "target": target, "threshold": threshold}
    for name, calls in (("same", same), ("shifted", shifted)):
        own = [call for call in calls if policy.tier_of(call.chosen) == tier]
        row[name] = _measured(own, target, threshold)
    return row


def _asked(profile: Profile, target: float | None) -> float:
    return profile.meta.requested_risk.target if target is None else target


def _tier_splits(
    profile: Profile,
    policy: Policy,
    tier: str,
    calls: Sequence[JudgedCall],
    options: GuaranteeOptions,
) -> dict[str, Any]:
    """Return the check of the tier's target on the tier's calls; None where they cannot be split.

    `pooled`: the threshold comes from the calls of all tools, as in a profile, whose promise is
    about all of them together. `own`: it comes from the tier's calls, which promises it for these.
    """
    target = _asked(profile, policy.tier_target(tier))
    made = _split_calls(calls)
    members = np.array([policy.tier_of(call.chosen) == tier for call in calls])
    if len(np.unique(made.groups[members])) < 2:
        return {"pooled": None, "own": None}
    return {
        "pooled": _verified(profile, made, target, options, members),
        "own": _verified(profile, made.only(members), target, options),
    }


def _drift(
    profile: Profile,
    same: Sequence[JudgedCall],
    shifted: Sequence[JudgedCall],
    options: GuaranteeOptions,
) -> dict[str, Any]:
    """Return the power of the drift test, and what it says of these calls against the profile.

    Like the dashboard it looks at calls of tools that the profile vouches for (`of` is `vouched`).
    Where there are too few for any window it looks at all (`of` is `all`); calls of unknown tools
    have no activation margin, and where most are such calls the test is that of the other signals.
    """
    signals = tuple(dict.fromkeys((*ALWAYS_READ, *profile.meta.signals)))
    vouched = [call for call in shifted if _vouched(call)]
    enough = len(vouched) >= min(options.windows)
    live = vouched if enough else shifted
    shared = [s for s in signals if 2 * sum(s in c.margins for c in live) >= len(live)]
    power = drift_power(
        _columns(same, shared),
        _columns(live, shared) if live else None,
        windows=options.windows,
        repeats=options.repeats,
        seed=options.seed,
    )
    return {
        "all_calls": {
            "same": _look(profile, same, signals),
            "shifted": _look(profile, vouched, signals),
        },
        "of": "vouched" if enough else "all",
        **power,
    }


def _look(profile: Profile, calls: Sequence[JudgedCall], signals: Sequence[str]) -> DriftState:
    """Return what the dashboard would say, which looks at calls of calibrated tools alone."""
    live = {name: values.tolist() for name, values in _columns(calls, signals).items()}
    return measure_drift(live, reference_distributions(profile.meta)).state


def _columns(calls: Sequence[JudgedCall], signals: Sequence[str]) -> dict[str, Floats]:
    """Return the signals of the calls that have them all, as the audit records keep them."""
    rows = [
        [call.margins[name] for name in signals]
        for call in calls
        if all(np.isfinite(call.margins.get(name, np.inf)) for name in signals)
    ]
    found = np.array(rows, dtype=np.float64).reshape(len(rows), len(signals))
    return {name: found[:, place] for place, name in enumerate(signals)}
