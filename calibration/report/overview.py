"""What a profile is and what it is worth, in words and in a handful of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolguard.adapters.shown_numbers import NONE, figure, percent
from toolguard.calibration.report.plot import per_cent
from toolguard.calibration.report.stored_metrics import dug, rate_at, words_at
from toolguard.guard.profile_meta import ProfileMeta, RiskEntry
from toolguard.guard.rate import Rate
from toolguard.guard.signals import LOGPROB

SUFFICES = "log-prob suffices"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One number: its name, itself, its interval and what it is out of."""

    name: str
    value: str
    note: str
    css: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The head of the page.

    Args:
        title: the model.
        facts: what it is, in a few words each.
        badge: the signals of P(wrong), in a few words.
        verdict: sentences, the most important one first.
        tiles: numbers.
        warnings: of the calibration.
    """

    title: str
    facts: tuple[str, ...]
    badge: str
    verdict: tuple[str, ...]
    tiles: tuple[Tile, ...]
    warnings: tuple[str, ...]


def overview(meta: ProfileMeta) -> Overview:
    """Return the head of a profile's page; what the profile does not keep is left out."""
    model = meta.model
    return Overview(
        title=model.name,
        facts=(
            f"{model.family}, {model.blocks} blocks of width {model.hidden_size}, {model.dtype}",
            f"{meta.wire_format} format",
            f"{len(meta.tools)} tools",
            f"read in block {meta.layer} by {readout_words(meta)}",
        ),
        badge=_badge(meta),
        verdict=tuple(filter(None, (_accuracy(meta), _running(meta), *_signals(meta)))),
        tiles=tuple(tile for tile in _tiles(meta) if tile.value),
        warnings=tuple(str(words) for words in dug(meta.metrics, "warnings") or ()),
    )


def _badge(meta: ProfileMeta) -> str:
    if meta.signals == (LOGPROB,):
        words = words_at(meta.metrics, "signals", "words")
        return SUFFICES if words.endswith(SUFFICES) else "P(wrong) from log-prob"
    return f"P(wrong) from {' + '.join(meta.signals)}"


def readout_words(meta: ProfileMeta) -> str:
    """Return the readout's name for people."""
    kinds = {
        "cosine": "cosine",
        "centred_cosine": "centred cosine",
        "lda": "linear discriminant (LDA)",
    }
    return kinds[meta.readout]


def requested_row(meta: ProfileMeta) -> Mapping[str, Any] | None:
    """Return what the test split shows of the requested risk target; None if it is not kept."""
    rows = dug(meta.metrics, "test", "risk") or ()
    return next((row for row in rows if row["target"] == meta.requested_risk.target), None)


def usable_entry(meta: ProfileMeta) -> RiskEntry | None:
    """Return the requested target's entry, or the next larger one that lets anything run."""
    asked = meta.requested_risk.target
    found = (entry for entry in meta.risk if entry.target >= asked and entry.threshold is not None)
    return next(found, None)


def _accuracy(meta: ProfileMeta) -> str:
    rate = rate_at(meta.metrics, "test", "accuracy", "model")
    if rate is None or rate.value is None:
        return ""
    return f"The model picks a right tool in {percent(rate.value)} of {rate.n:,} test calls."


def _running(meta: ProfileMeta) -> str:
    row, asked = requested_row(meta), meta.requested_risk
    if row is None:
        return ""
    target = f"At a risk target of {per_cent(asked.target)}"
    if row["threshold"] is None:
        return f"{target} nothing may run: the calls are too few, or too often wrong, to prove it."
    coverage = rate_at(row, "coverage")
    realised = rate_at(row, "realised")
    share = percent(coverage.value if coverage else None)
    if realised is None or realised.value is None:
        return f"{target}, {share} of the test calls may run."
    wrong = percent(realised.value)
    return f"{target}, {share} of the test calls may run; {wrong} of those are wrong."


def _signals(meta: ProfileMeta) -> tuple[str, ...]:
    """Return what calibration found of the signals, in its own words."""
    found = [words_at(meta.metrics, "signals", key) for key in ("uses", "words")]
    own = ": ".join(filter(None, found)) or words_at(meta.metrics, "select", "words")
    return (f"{own[:1].upper()}{own[1:]}.",) if own else ()


def _tiles(meta: ProfileMeta) -> tuple[Tile, ...]:
    test = dug(meta.metrics, "test") or {}
    row = requested_row(meta) or {}
    target = per_cent(meta.requested_risk.target)
    logprob = rate_at(test, "signals", "logprob", "auroc")
    realised = rate_at(row, "realised")
    kept = realised is not None and (realised.value or 0) <= meta.requested_risk.target
    alone = f"log-prob alone {figure(logprob.value)}" if logprob else ""
    return (
        _tile("model right", rate_at(test, "accuracy", "model")),
        _tile("AUROC of P(wrong)", rate_at(test, "signals", "combined", "auroc"), extra=alone),
        _tile(f"may run at {target} risk", rate_at(row, "coverage")),
        _tile("wrong among those", realised, css="run" if kept else "block"),
        _tile("P(wrong) is off by (ECE)", rate_at(test, "p_wrong", "ece")),
    )


def _tile(name: str, rate: Rate | None, *, extra: str = "", css: str = "") -> Tile:
    if rate is None:
        return Tile(name=name, value="", note="")
    shares = not name.startswith("AUROC")
    if rate.value is None or rate.low is None or rate.high is None:
        return Tile(name=name, value=NONE, note="nothing to measure on")
    value = percent(rate.value) if shares else figure(rate.value)
    low, high = (
        (f"{100 * rate.low:.1f}", f"{100 * rate.high:.1f}")
        if shares
        else (figure(rate.low), figure(rate.high))
    )
    note = " · ".join(filter(None, (f"{low} to {high}", f"n = {rate.n:,}", extra)))
    return Tile(name=name, value=value, note=note, css=css)
