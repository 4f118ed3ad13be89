"""Margins of right calls above the line, of wrong ones below it."""

from __future__ import annotations

from itertools import pairwise

from markupsafe import Markup

from toolguard.calibration.report.outcomes import MarginBins
from toolguard.calibration.report.plot import axis, frame, per_cent

_GAP = 1.0  # between bars, in the drawing's units


def margin_chart(signal: str, bins: MarginBins) -> Markup:
    """Return the histogram of one signal; each outcome's bars add up to one.

    Args:
        signal: what is measured, with its unit.
        bins: of it.
    """
    above, below = (max(*shares, 0.01) * 1.05 for shares in (bins.right, bins.wrong))
    own = frame(
        f"Spread of the {signal} among right and among wrong calls",
        axis(signal, bins.edges[0], bins.edges[-1]),
        axis("share of calls", -below, above, written=lambda share: per_cent(abs(share))),
        height=260.0,
    )
    zero = own.y.at(0)
    for (low, high), right, wrong in zip(pairwise(bins.edges), bins.right, bins.wrong, strict=True):
        left, width = own.x.at(low) + _GAP / 2, own.x.at(high) - own.x.at(low) - _GAP
        top, bottom = own.y.at(right), own.y.at(-wrong)
        reach = f"{low:.3g} to {high:.3g}"
        own.drawing.rect(
            left, top, width, zero - top, "right", tip=f"{reach}: {right:.1%} of right calls"
        )
        own.drawing.rect(
            left, zero, width, bottom - zero, "wrong", tip=f"{reach}: {wrong:.1%} of wrong calls"
        )
    own.drawing.line((own.x.start, zero), (own.x.end, zero), "axis")
    return own.drawing.html()
