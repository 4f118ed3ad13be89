"""A profile as text that a person can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toolguard.calibration.answering.gate_table import gate_lines
from toolguard.calibration.measuring.rate_text import rate_text
from toolguard.guard.profile import Profile
from toolguard.guard.profile_meta import ProfileMeta

_SHOWN_TOOLS = 5
_LABEL = 16


def profile_table(profile: Profile, *, decision_token: str) -> list[str]:
    """Return the lines that say what was calibrated, what it is worth, and what is missing.

    Args:
        profile: as fitted.
        decision_token: text of the decision token.
    """
    meta = profile.meta
    return [
        *_identity(meta, decision_token),
        "",
        *_test(meta),
        "",
        *_risk(meta),
        "",
        *gate_lines(meta.call_or_answer),
        *_signals(meta),
        *_correction(meta),
        *_uncalibrated(meta),
        *(_row("warning", words) for words in meta.metrics["warnings"]),
    ]


def _row(label: str, text: str) -> str:
    return f"{label:<{_LABEL}} {text}"


def _identity(meta: ProfileMeta, decision_token: str) -> list[str]:
    collection = meta.metrics["collection"]
    splits = meta.splits
    read = " ".join(filter(None, (meta.model.name, meta.model.revision)))
    readout = " ".join(filter(None, (meta.readout.replace("_", " "), _shrunk(meta))))
    return [
        _row("model", f"{read} ({meta.model.family}, {meta.model.dtype})"),
        _row("format", f"{meta.wire_format}, decision token {decision_token!r}"),
        _row("layer", f"{meta.layer} of {meta.model.blocks}, {readout} ({_chosen_by(meta)})"),
        _row("tools", f"{len(meta.tools)}, {_calibrated(meta)} of them calibrated"),
        _row(
            "calls",
            f"{splits.fit:,} fit, {splits.select:,} select, {splits.test:,} test; "
            f"{_left_out(collection)}",
        ),
    ]


def _shrunk(meta: ProfileMeta) -> str:
    target = meta.covariance_target
    weight = meta.metrics["choice"]["shrinkage"]
    return f"shrunk by {weight:.2g} towards its {target}" if target and weight else ""


def _chosen_by(meta: ProfileMeta) -> str:
    choice = meta.metrics["choice"]
    if choice["by"] == "preset":
        return "as published"
    words = {"auroc": "AUROC", "readout_accuracy": "readout accuracy"}[choice["by"]]
    own = next(
        candidate
        for candidate in choice["candidates"]
        if (candidate["layer"], candidate["readout"], candidate["covariance_target"])
        == (meta.layer, meta.readout, meta.covariance_target)
    )
    value = own[choice["by"]]["value"]
    return f"{words} {value:.3f}, best of {len(choice['candidates'])} in {choice['folds']} folds"


def _calibrated(meta: ProfileMeta) -> int:
    return sum(tool.status == "calibrated" for tool in meta.tools)


def _left_out(collection: Mapping[str, Any]) -> str:
    names = {
        "no_call": "without a call",
        "call_not_offered": "calling a tool not offered",
        "beyond_limit": "beyond the limit",
        "skipped": "that could not be read",
        "problems": "problems in the data",
    }
    parts = [f"{collection[key]:,} {words}" for key, words in names.items() if collection.get(key)]
    return f"left out: {', '.join(parts)}" if parts else "none left out"


def _test(meta: ProfileMeta) -> list[str]:
    test = meta.metrics["test"]
    lines = [
        f"on {meta.splits.test:,} test calls, with 95 % intervals",
        _row("  model right", rate_text(test["accuracy"]["model"])),
        _row("  readout right", rate_text(test["accuracy"]["readout"])),
        f"  {'signal':<14} {'AUROC':<24}{'AURC (lower is better)'}",
    ]
    for name, found in test["signals"].items():
        lines.append(f"  {name:<14} {rate_text(found['auroc']):<24}{rate_text(found['aurc'])}")
    error = test["p_wrong"]
    lines.append(
        _row("  P(wrong)", f"ECE {rate_text(error['ece'])}, Brier {rate_text(error['brier'])}")
    )
    return lines


def _risk(meta: ProfileMeta) -> list[str]:
    asked = meta.requested_risk
    lines = [
        f"calls allowed so that with confidence {asked.confidence:g} at most this share is wrong",
        f"  {'target':<14} {'P(wrong) at most':<24}{'allowed (test)':<24}wrong among them (test)",
    ]
    for found in meta.metrics["test"]["risk"]:
        mark = "*" if found["target"] == asked.target else ""
        threshold = found["threshold"]
        limit = "nothing can be allowed" if threshold is None else f"{threshold:.4f}"
        lines.append(
            f"  {found['target']:<6g}{mark:<8} {limit:<24}"
            f"{rate_text(found['coverage']):<24}{rate_text(found['realised'])}"
        )
    return lines


def _signals(meta: ProfileMeta) -> list[str]:
    """Return which signals P(wrong) uses, and what adding each one did in cross-validation."""
    choice = meta.metrics["signals"]
    lines = [_row("signals", choice["uses"]), _row("", choice["words"])]
    if choice["tried"]:
        lines.append(f"  {'with':<14} {'AURC (below 0 is better)':<34}AUROC (above 0 is better)")
    for tried in choice["tried"]:
        cells = [_signed(tried[f"{metric}_difference"]) for metric in ("aurc", "auroc")]
        kept = "  kept" if tried["kept"] else ""
        lines.append(f"  + {tried['signal']:<14} {cells[0]:<32}{cells[1]}{kept}")
    check = meta.metrics["select"]["aurc_difference"]
    if check["value"] is not None:
        lines.append(
            f"  (the activation on the select split, which chose nothing: {_signed(check)})"
        )
    return lines


def _correction(meta: ProfileMeta) -> list[str]:
    """Return what turning doubtful calls into others fixed and broke on the select split."""
    found = meta.metrics.get("correction")
    if found is None:
        return []
    helps = found["helps"]
    words = f"{helps} helps" if helps else "no correction helps: doubtful calls are better stopped"
    lines = [_row("correction", words)]
    for name, method in found["methods"].items():
        tool = method["tool"]
        if name != "keep" and tool["net"]["value"] is not None:
            net = f"net gain {_signed(tool['net'])}"
            counts = f"{tool['fixed']} fixed, {tool['broken']} broken of {found['n']} doubtful"
            lines.append(_row("", f"({name}: {counts}, {net} on the select split)"))
    return lines


def _signed(value: Mapping[str, Any]) -> str:
    return f"{value['value']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}]"


def _uncalibrated(meta: ProfileMeta) -> list[str]:
    names = [tool.name for tool in meta.tools if tool.status == "uncalibrated"]
    return [_row("uncalibrated", _listed(names))] if names else []


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_TOOLS
    return ", ".join(names[:_SHOWN_TOOLS]) + (f" and {more} more" if more > 0 else "")
