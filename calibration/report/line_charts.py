"""Charts of lines: risk over coverage, reliability of P(wrong), and the sweep over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from toolguard.calibration.measuring.risk_coverage import CoveragePoint
from toolguard.calibration.report.outcomes import ReliabilityBin
from toolguard.calibration.report.plot import Frame, Point, axis, frame, per_cent

_HEADROOM = 1.08
_TALLEST = 2.0  # of the error rate of all calls; what lies above is cut off
_APART = 0.09  # of a layer, between the variants that stand side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A risk-coverage curve with its name and how it is drawn."""

    name: str
    css: str
    points: tuple[CoveragePoint, ...]


def coverage_chart(curves: Sequence[Curve], target: float | None = None) -> Markup:
    """Return the risk-coverage curves in one frame, the last one on top.

    Args:
        curves: at least one point each.
        target: risk that was asked for, marked by a line; None marks nothing.
    """
    top = max(point.risk for curve in curves for point in curve.points)
    whole = max(curve.points[-1].risk for curve in curves)
    # Of the first few calls one error is a large share; that must not flatten all the rest.
    top = max(min(top, _TALLEST * whole), target or 0.0, 0.01) * _HEADROOM
    own = frame(
        "Share of wrong calls among those that run, for each share of calls that run, by signal",
        axis("share of calls that run, safest first", 0, 1, written=per_cent),
        axis("wrong among them", 0, top, written=per_cent),
    )
    if target is not None:
        own.line([(0, target), (1, target)], "target")
        place = own.point(0, target)
        own.drawing.text((place[0] + 4, place[1] - 5), f"target {per_cent(target)}", "tick strong")
    for curve in curves:
        own.line([(point.coverage, point.risk) for point in curve.points], f"curve {curve.css}")
    return own.drawing.html()


def reliability_chart(bins: Sequence[ReliabilityBin]) -> Markup:
    """Return observed error rates over P(wrong); on the diagonal the probability is honest."""
    highs = [value for own in bins for value in (own.predicted, own.observed.high or 0)]
    top = min(1.0, max(highs) * _HEADROOM)
    own = frame(
        "Share of calls that were wrong, over the P(wrong) they were given",
        axis("P(wrong), mean of the bin", 0, top, written=per_cent),
        axis("wrong in the bin", 0, top, written=per_cent),
    )
    own.line([(0, 0), (top, top)], "ideal")
    for found in bins:
        rate = found.observed
        if rate.value is None or rate.low is None or rate.high is None:
            continue
        own.whisker(found.predicted, rate.low, min(rate.high, top), "whisker wrongness")
        tip = (
            f"P(wrong) {per_cent(found.predicted)}: {per_cent(rate.value)} wrong "
            f"[{per_cent(rate.low)}, {per_cent(rate.high)}], n = {rate.n}"
        )
        own.drawing.circle(own.point(found.predicted, rate.value), 4, "dot wrongness", tip=tip)
    return own.drawing.html()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What one readout reaches in each layer: `(layer, rate)` pairs, rates as JSON has them."""

    name: str
    css: str
    rates: tuple[tuple[int, Mapping[str, Any]], ...]


def layer_chart(
    sweeps: Sequence[Sweep], chosen: tuple[int, str] | None, name: str
) -> Markup | None:
    """Return a measure of each readout over the layers; None if nothing was measured.

    Args:
        sweeps: one a readout.
        chosen: layer and name of the readout that the profile uses, ringed; None rings nothing.
        name: of the measure.
    """
    known = [
        (sweep, [(layer, rate) for layer, rate in sweep.rates if rate["value"] is not None])
        for sweep in sweeps
    ]
    rates = [rate for _, pairs in known for _, rate in pairs]
    if not rates:
        return None
    layers = sorted({layer for _, pairs in known for layer, _ in pairs})
    low = min(0.5, *(rate["low"] for rate in rates))
    own = frame(
        f"{name} of each readout over the layers",
        axis("block", layers[0] - 0.5, layers[-1] + 0.5, ticks=_some(layers)),
        axis(name, max(0.0, low - 0.02), min(1.0, max(rate["high"] for rate in rates) + 0.02)),
    )
    for place, (sweep, pairs) in enumerate(known):
        aside = (place - (len(known) - 1) / 2) * _APART
        _draw_sweep(own, sweep, pairs, aside, chosen)
    return own.drawing.html()


def _draw_sweep(
    own: Frame,
    sweep: Sweep,
    pairs: Sequence[tuple[int, Mapping[str, Any]]],
    aside: float,
    chosen: tuple[int, str] | None,
) -> None:
    line: list[Point] = [(layer + aside, rate["value"]) for layer, rate in pairs]
    own.line(line, f"curve thin {sweep.css}")
    for (layer, rate), (x, y) in zip(pairs, line, strict=True):
        own.whisker(x, rate["low"], rate["high"], f"whisker {sweep.css}")
        tip = f"{sweep.name}, block {layer}: {y:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        if (layer, sweep.name) == chosen:
            own.drawing.circle(own.point(x, y), 8, f"chosen {sweep.css}")
        own.drawing.circle(own.point(x, y), 3.5, f"dot {sweep.css}", tip=tip)


def _some(layers: Sequence[int], most: int = 12) -> list[float]:
    """Return the layers to mark: all, or every second, third ... so that at most `most` are."""
    step = -(-len(layers) // most)
    return [float(layer) for layer in layers[::step]]
