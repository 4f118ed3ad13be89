"""A rate as a small drawing for a table's cell: a dot, its interval, and perhaps a mark."""

from __future__ import annotations

from markupsafe import Markup

from toolguard.calibration.report.plot import Drawing
from toolguard.guard.rate import Rate

_WIDTH, _HEIGHT = 78.0, 14.0


def interval_bar(
    rate: Rate,
    css: str = "",
    *,
    span: tuple[float, float] = (0.0, 1.0),
    mark: float | None = None,
) -> Markup:
    """Return the drawing; empty for a rate that is undetermined.

    Args:
        rate: what is drawn.
        css: class of the dot and its interval.
        span: values at the ends; what lies beyond stands at the end.
        mark: value that is marked, as a target or zero.
    """
    if rate.value is None or rate.low is None or rate.high is None:
        return Markup("")
    low, high = span
    drawing = Drawing(_WIDTH, _HEIGHT, "")

    def at(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.0
        return 4 + (_WIDTH - 8) * min(max(share, 0.0), 1.0)

    middle = _HEIGHT / 2
    drawing.line((4, middle), (_WIDTH - 4, middle), "rail")
    if mark is not None:
        drawing.line((at(mark), 1), (at(mark), _HEIGHT - 1), "mark")
    drawing.line((at(rate.low), middle), (at(rate.high), middle), f"reach {css}")
    drawing.circle((at(rate.value), middle), 3.6, f"dot {css}")
    return drawing.html()
