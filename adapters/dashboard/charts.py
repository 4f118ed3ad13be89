"""Histograms as shapes: live numbers as bars, the calibration's as a line, in the same bins."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from toolguard.guard.distribution import Distribution

WIDTH, HEIGHT = 560.0, 150.0
BINS = 28
_TAIL = 0.005  # of each sample beyond each end of the axis; counted in the outermost bins


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bin's live share, in the units of the drawing; `label` says it in words."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """A drawing of WIDTH by HEIGHT.

    Args:
        title: what is counted.
        bars: live, one a bin.
        outline: path of the calibration's share a bin; empty if it is not known.
        ticks: places on the axis with their labels.
        marks: places of thresholds with their labels.
        live: live numbers.
        reference: the calibration's.
        top: share at the upper edge.
    """

    title: str
    bars: tuple[Bar, ...]
    outline: str
    ticks: tuple[tuple[float, str], ...]
    marks: tuple[tuple[float, str], ...]
    live: int
    reference: int
    top: float


def histogram(
    title: str,
    live: Sequence[float],
    reference: Distribution | None,
    *,
    span: tuple[float, float] | None = None,
    bins: int = BINS,
    marks: Sequence[tuple[float, str]] = (),
) -> Histogram | None:
    """Return the drawing, or None if there is nothing to draw.

    Args:
        title: what is counted.
        live: numbers.
        reference: the calibration's, if it is known.
        span: ends of the axis; by default so that nearly all numbers stand within.
        bins: number of bars.
        marks: values to be marked, with labels.
    """
    if not live and not (reference and reference.n):
        return None
    rising = sorted(live)
    low, high = span or _span(rising, reference)
    edges = [low + (high - low) * at / bins for at in range(bins + 1)]
    live_shares = _live_shares(rising, edges)
    kept = _reference_shares(reference, edges) if reference and reference.n else []
    top = max([*live_shares, *kept, 0.01]) * 1.05
    step = WIDTH / bins
    return Histogram(
        title=title,
        bars=tuple(
            Bar(
                x=round(at * step + 0.5, 2),
                y=round(HEIGHT * (1 - share / top), 2),
                width=round(step - 1, 2),
                height=round(HEIGHT * share / top, 2),
                label=f"{edges[at]:.3g} to {edges[at + 1]:.3g}: {share:.1%}",
            )
            for at, share in enumerate(live_shares)
        ),
        outline=_outline(kept, step, top),
        ticks=tuple((WIDTH * at / 4, f"{low + (high - low) * at / 4:.3g}") for at in range(5)),
        marks=tuple(
            (round(WIDTH * (value - low) / (high - low), 2), label)
            for value, label in marks
            if low <= value <= high
        ),
        live=len(live),
        reference=reference.n if reference else 0,
        top=top,
    )


def _span(rising: Sequence[float], reference: Distribution | None) -> tuple[float, float]:
    ends: list[float] = []
    if rising:
        last = len(rising) - 1
        ends += [rising[round(last * _TAIL)], rising[round(last * (1 - _TAIL))]]
    if reference and reference.n:
        ends += [reference.quantile(_TAIL), reference.quantile(1 - _TAIL)]
    low, high = min(ends), max(ends)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _live_shares(rising: Sequence[float], edges: Sequence[float]) -> list[float]:
    if not rising:
        return [0.0] * (len(edges) - 1)
    below = [bisect_left(rising, edge) for edge in edges]
    below[0], below[-1] = 0, len(rising)
    return [(b - a) / len(rising) for a, b in pairwise(below)]


def _reference_shares(reference: Distribution, edges: Sequence[float]) -> list[float]:
    below = [_interpolated(reference, edge) for edge in edges]
    below[0], below[-1] = 0.0, 1.0
    return [b - a for a, b in pairwise(below)]


def _interpolated(reference: Distribution, value: float) -> float:
    """Return the share below `value`, on a straight line between the values that are kept."""
    place = bisect_right(reference.values, value)
    if place == 0:
        return 0.0
    if place == len(reference.values):
        return 1.0
    a, b = reference.values[place - 1], reference.values[place]
    low, high = reference.shares[place - 1], reference.shares[place]
    return low + (high - low) * (value - a) / (b - a)


def _outline(shares: Sequence[float], step: float, top: float) -> str:
    if not shares:
        return ""
    parts = [f"M0 {HEIGHT:g}"]
    for at, share in enumerate(shares):
        parts.append(f"V{HEIGHT * (1 - share / top):.2f}H{(at + 1) * step:.2f}")
    return "".join([*parts, f"V{HEIGHT:g}"])
