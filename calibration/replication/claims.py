"""The published claims, and where in the measurements the number stands that answers each.

Source: Wu et al., arXiv 2605.07990, as far as abstracts and second-hand copies of the body tell it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Measured = Mapping[str, Any]
"""What `measure.measure_source` returns."""

Found = Mapping[str, Any] | None
"""A rate as `Rate.to_dict` gives it, or None where it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One row of the table.

    Args:
        words: what is claimed or controlled.
        published: the paper's number with its models; empty for a row of our own.
        read: finds the number.
    """

    words: str
    published: str
    read: Callable[[Measured], Found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One table.

    Args:
        title: its heading.
        claims: its rows.
        percent: whether its numbers are shares.
    """

    title: str
    claims: tuple[Claim, ...]
    percent: bool = True


def _steering(
    method: str, norm: str | None, *, turns: str = "single", alpha: float = 1.0
) -> Callable[[Measured], Found]:
    def read(told: Measured) -> Found:
        for cell in _cells(told, turns, "apart", "cells"):
            same = (cell["method"], cell["norm"], cell["place"]) == (method, norm, "decision")
            if same and cell["alpha"] in (None, alpha) and cell["n"]:
                return dict(cell["switched"])
        return None

    return read


def _colliding(place: str) -> Callable[[Measured], Found]:
    def read(told: Measured) -> Found:
        for cell in _cells(told, "single", "colliding", "cells"):
            if (cell["method"], cell["place"], cell["alpha"]) == ("mean_difference", place, 1.0):
                return dict(cell["switched"]) if cell["n"] else None
        return None

    return read


def _whole_call(method: str, key: str) -> Callable[[Measured], Found]:
    def read(told: Measured) -> Found:
        for cell in _cells(told, "single", "apart", "whole_calls"):
            if cell["method"] == method and cell[key]["n"]:
                return dict(cell[key])
        return None

    return read


def _cells(told: Measured, turns: str, pairs: str, key: str) -> Iterator[Mapping[str, Any]]:
    own = told.get("steering", {}).get("profile_layer")
    for group in told.get("steering", {}).get("groups", ()):
        if (group["turns"], group["pairs"]) == (turns, pairs):
            yield from (cell for cell in group[key] if cell["layer"] in (None, own))


def _signal(profile: str, signal: str, metric: str) -> Callable[[Measured], Found]:
    def read(told: Measured) -> Found:
        found: Found = told.get(profile, {}).get("signals", {}).get(signal, {}).get(metric)
        return found

    return read


def _gain(signal: str, metric: str) -> Callable[[Measured], Found]:
    def read(told: Measured) -> Found:
        found: Found = told.get("own", {}).get("against_logprob", {}).get(signal, {}).get(metric)
        return found

    return read


def _readable(readout: str) -> Callable[[Measured], Found]:
    def read(told: Measured) -> Found:
        for row in told["readability"]["read"]:
            if (row["readout"], row["layer"]) == (readout, told["second_to_last"]):
                return dict(row["accuracy"])
        return None

    return read


def _itself(key: str) -> Callable[[Measured], Found]:
    return lambda told: told["readability"][key]


READING = (
    Claim(
        words="freely written turn opens with a right tool's call",
        published="base 2-10 %, tuned 90-95 % (BFCL names)",
        read=_itself("written"),
    ),
    Claim(
        words="favourite name of the menu once a call is opened",
        published="",
        read=_itself("chosen"),
    ),
    Claim(
        words="readout: uncentred cosine, 3 labelled queries a tool",
        published="base 61-82 %, tuned 53-74 % (BFCL); 61-89 % (14 airline tools)",
        read=_readable("cosine_3"),
    ),
    Claim(
        words="readout: the same, all labelled queries",
        published="",
        read=_readable("cosine"),
    ),
    Claim(
        words="readout: shrinkage LDA, all labelled queries",
        published="",
        read=_readable("lda"),
    ),
)
"""What can be read, and what the model itself does; for every step of a training, too."""

ERRORS = (
    Claim(
        words="errors, lowest to highest quarter of the paper's margin",
        published="14x (Gemma 3 12B), 21x (27B)",
        read=_signal("paper", "activation", "error_ratio"),
    ),
    Claim(
        words="the same for the log-prob margin (baseline)",
        published="not reported",
        read=_signal("paper", "logprob", "error_ratio"),
    ),
    Claim(
        words="AUROC of the paper's margin for wrong calls",
        published="not reported",
        read=_signal("paper", "activation", "auroc"),
    ),
    Claim(
        words="AUROC of the log-prob margin there (baseline)",
        published="not reported",
        read=_signal("paper", "logprob", "auroc"),
    ),
    Claim(
        words="whole menus: AUROC of the log-prob margin (baseline)",
        published="",
        read=_signal("own", "logprob", "auroc"),
    ),
    Claim(
        words="whole menus: AUROC of the activation margin",
        published="",
        read=_signal("own", "activation", "auroc"),
    ),
    Claim(
        words="whole menus: AUROC of P(wrong)",
        published="",
        read=_signal("own", "combined", "auroc"),
    ),
    Claim(
        words="AUROC, activation less log-prob, paired",
        published="-.11 to +.39 by family (probe, third party)",
        read=_gain("activation", "auroc"),
    ),
    Claim(
        words="AUROC, P(wrong) less log-prob, paired",
        published="",
        read=_gain("combined", "auroc"),
    ),
)
"""How well a margin tells wrong calls."""

STEERING = (
    Claim(
        words="mean difference, alpha 1",
        published="77-100 % (12 tuned models); 77-94 % airline",
        read=_steering("mean_difference", "natural"),
    ),
    Claim(
        words="mean difference, alpha 2",
        published="80-93 % (early draft, alpha 2-3)",
        read=_steering("mean_difference", "natural", alpha=2.0),
    ),
    Claim(
        words="unembedding row, matched norm",
        published="93-100 %",
        read=_steering("unembedding_row", "matched"),
    ),
    Claim(
        words="part along the row, natural norm",
        published="0-3 %",
        read=_steering("parallel", "natural"),
    ),
    Claim(
        words="part along the row, matched norm",
        published="93-100 %",
        read=_steering("parallel", "matched"),
    ),
    Claim(
        words="what that leaves, natural norm",
        published="0-17 %",
        read=_steering("orthogonal", "natural"),
    ),
    Claim(
        words="what that leaves, matched norm",
        published="0-17 %",
        read=_steering("orthogonal", "matched"),
    ),
    Claim(
        words="random vector, same norm",
        published="0 %",
        read=_steering("random", "matched"),
    ),
    Claim(
        words="name written for the model (redirect)",
        published="not reported",
        read=_steering("redirect", None),
    ),
    Claim(
        words="mean difference where names share their first token",
        published="harder (no number found)",
        read=_colliding("decision"),
    ),
    Claim(
        words="the same, acting where the names part",
        published="",
        read=_colliding("partings"),
    ),
    Claim(
        words="mean difference, alpha 1, multi-turn prompts",
        published="gain or loss up to 30 points, no direction",
        read=_steering("mean_difference", "natural", turns="multi"),
    ),
    Claim(
        words="call fits its schema: unsteered",
        published="60-90 %",
        read=_whole_call("none", "schema_valid"),
    ),
    Claim(
        words="call fits the target's schema: steered",
        published="27-73 %",
        read=_whole_call("mean_difference", "schema_valid"),
    ),
    Claim(
        words="call fits the target's schema: name written for it",
        published="27-87 %",
        read=_whole_call("redirect", "schema_valid"),
    ),
)
"""What a push of the hidden state does, on names-only menus as in the paper."""

SECTIONS = (
    Section(title="Reading the choice", claims=READING),
    Section(title="Telling wrong calls", claims=ERRORS, percent=False),
    Section(title="Steering the choice", claims=STEERING),
)
