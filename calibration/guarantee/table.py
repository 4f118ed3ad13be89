"""The check of a guarantee as text that a person can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolguard.calibration.measuring.rate_text import rate_text

_FIRST, _OTHER = 14, 28  # widths of columns
_TITLES = {"same": "fresh calls", "shifted": "shifted calls"}
_TIER_CELLS = ("exceeded_known", "coverage")
_IF_VOUCHED = "shifted calls if it vouched for all their tools, as after calibrate --add-tools"


def guarantee_table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines that say what `measure_guarantee` found.

    Args:
        result: what it returned, with the counts of `FreshCalls` for both kinds under `data`.
    """
    kinds = [name for name in _TITLES if result["data"][name]]
    lines = [_counts(result, name) for name in kinds]
    lines += ["", *_splits(result), "", *_conformal(result)]
    for name in kinds:
        lines += ["", *_thresholds(result, name, _TITLES[name])]
    if result["vouched"]["shifted"] < (result["data"]["shifted"] or {}).get("calls", 0):
        lines += ["", *_thresholds(result, "shifted_if_vouched", _IF_VOUCHED)]
    if result["tiers"]:
        lines += ["", *_tiers(result, kinds)]
    return [*lines, "", *_drift(result["drift"], kinds)]


def broken_targets(result: Mapping[str, Any]) -> list[float]:
    """Return the targets that are exceeded more often than their confidence allows."""
    return [row["target"] for row in result["splits"] if not row["kept"]]


def _row(first: object, *others: str) -> str:
    cells = "".join(f"{cell:<{_OTHER}}" for cell in others)
    return f"  {first:<{_FIRST}}{cells}".rstrip()


def _counts(result: Mapping[str, Any], name: str) -> str:
    found = result["data"][name]
    return (
        f"{_TITLES[name]:<16} {found['calls']:,}, {found['wrong']:,} of them wrong; the profile "
        f"vouches for the tools of {result['vouched'][name]:,}; left out: {found['leaked']:,} seen "
        f"in calibration, {found['skipped']:,} skipped"
    )


def _splits(result: Mapping[str, Any]) -> list[str]:
    rows = result["splits"]
    lines = [
        f"{rows[0]['splits']} splits: chosen on one part of the fresh calls, measured on the other",
        "(of allowed and wrong the mean, and the middle 95 % of the splits)",
        _row("target", "threshold found", "exceeded there", "allowed", "wrong among them"),
    ]
    for row in rows:
        cells = [rate_text(row[key]) for key in ("found", "exceeded", "coverage", "realised")]
        lines.append(_row(row["target"], *cells))
    lines += [
        f"{rows[0]['splits']} draws from these calls as the whole population",
        _row("target", "exceeded in it"),
    ]
    for row in rows:
        promised = f"{1 - row['confidence']:.2g} promised: {'kept' if row['kept'] else 'BROKEN'}"
        lines.append(_row(row["target"], rate_text(row["exceeded_known"]), promised))
    return lines


def _conformal(result: Mapping[str, Any]) -> list[str]:
    lines = [
        "beside it conformal risk control: on average so many of all calls are wrong and allowed",
        _row("target", "wrong and allowed", "allowed", "target exceeded among them"),
    ]
    for row in result["splits"]:
        own = row["conformal"]
        cells = [rate_text(own[key]) for key in ("harm", "coverage", "exceeded")]
        lines.append(_row(row["target"], *cells))
    return lines


def _thresholds(result: Mapping[str, Any], name: str, title: str) -> list[str]:
    lines = [
        f"the profile's own thresholds on {title}",
        _row("target", "P(wrong) at most", "allowed", "wrong among them"),
    ]
    for row in result["thresholds"][name]:
        limit = "nothing" if row["threshold"] is None else f"{row['threshold']:.4f}"
        lines.append(_row(row["target"], limit, rate_text(row["coverage"]), _realised(row)))
    return lines


def _realised(row: Mapping[str, Any]) -> str:
    return rate_text(row["realised"]) + (" too many" if row["broken"] else "")


def _tiers(result: Mapping[str, Any], kinds: list[str]) -> list[str]:
    titles = [f"{what}, {_TITLES[name]}" for name in kinds for what in ("allowed", "wrong")]
    lines = ["calls of each tier's own tools, at its own target", _row("tier", "target", *titles)]
    for row in result["tiers"]:
        cells = [
            text
            for name in kinds
            for text in (rate_text(row[name]["coverage"]), _realised(row[name]))
        ]
        lines.append(_row(row["tier"], f"{row['target']:g}", *cells))
    lines += [
        "the same draws, tier by tier: threshold from the calls of all tools, and from the tier's",
        _row("tier", "exceeded, from all", "allowed", "exceeded, from its own", "allowed"),
    ]
    for row in result["tiers"]:
        found = [row[name] for name in ("pooled", "own")]
        cells = [rate_text(own[key]) if own else "-" for own in found for key in _TIER_CELLS]
        lines.append(_row(row["tier"], *cells))
    return lines


def _drift(drift: Mapping[str, Any], kinds: list[str]) -> list[str]:
    lines = [
        (
            f"drift test of {' and '.join(drift['signals'])} at {drift['level']:g} a look, "
            f"against {drift['reference']:,} calls"
        ),
        _row("live calls", "false alarms", "shift noticed"),
    ]
    lines += [
        _row(row["window"], rate_text(row["false_alarm"]), rate_text(row["detected"]))
        for row in drift["windows"]
    ]
    if drift["shifted"] and drift["of"] == "all":
        lines.append("  (the shifted calls are all of them: few are of tools it vouches for)")
    looks = [f"{_TITLES[name]}: {drift['all_calls'][name].replace('_', ' ')}" for name in kinds]
    return [*lines, _row("all of them", *looks)]
