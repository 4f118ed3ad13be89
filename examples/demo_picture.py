"""The demo's picture: margins of right and wrong calls, and risk against coverage."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from toolguard.calibration.labels.judged_calls import JudgedCall
from toolguard.calibration.measuring.metrics import aurc
from toolguard.guard.signals import ALWAYS_READ

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

# Okabe and Ito's palette, which stays apart for colour-blind readers; line styles differ as well.
RIGHT, WRONG = "#0072B2", "#D55E00"
STYLES: Mapping[str, tuple[str, str]] = {
    "logprob": ("#E69F00", "--"),
    "activation": ("#009E73", ":"),
    "combined": ("#000000", "-"),
}


def draw(calls: Sequence[JudgedCall], path: Path, threshold: float | None) -> bool:
    """Write the picture: margins of right and wrong calls, and risk against coverage.

    Args:
        calls: of the test split; those without all margins are left out.
        path: PNG file to write.
        threshold: largest P(wrong) that is allowed, to be marked; None marks nothing.

    Returns:
        False if there is nothing to draw, or nothing to draw with.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("matplotlib is missing: install toolguard-margin[plot]", file=sys.stderr)
        return False
    readings = [
        call for call in calls if call.p_wrong is not None and call.margins.keys() >= {*ALWAYS_READ}
    ]
    if not readings:
        return False
    wrong = np.array([reading.wrong for reading in readings], dtype=bool)
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = cast("tuple[SubFigure, SubFigure]", figure.subfigures(1, 2))
    counts = f"n = {len(wrong)} test calls, {int(wrong.sum())} wrong"
    figure.suptitle(f"{counts} (none of them seen in calibration)")
    left.suptitle("Margin of the tool the model chose")
    upper, lower = left.subplots(2, 1)
    for axes, signal, unit in ((upper, "logprob", "nats"), (lower, "activation", "readout units")):
        values = np.array([reading.margins[signal] for reading in readings])
        _histogram(axes, values, wrong, f"{signal} margin, {unit}")
    right.suptitle("Wrong calls among those allowed, the surest first")
    axes = right.subplots()
    for signal in STYLES:
        _risk_coverage(axes, signal, _risk(readings, signal), wrong)
    if threshold is not None:
        _mark_threshold(axes, _risk(readings, "combined"), wrong, threshold)
    axes.set(xlabel="share of calls allowed", ylabel="share of them wrong", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return True


def _risk(readings: Sequence[JudgedCall], signal: str) -> NDArray[np.float64]:
    """Return (calls,) numbers that are larger where a call looks more likely wrong."""
    if signal == "combined":
        return np.array([reading.p_wrong for reading in readings], dtype=float)
    return np.array([-reading.margins[signal] for reading in readings])


def _histogram(
    axes: Axes, values: NDArray[np.float64], wrong: NDArray[np.bool_], label: str
) -> None:
    """Draw right calls upwards and wrong ones downwards, each as shares of their own number."""
    bins = np.histogram_bin_edges(values, bins=24)
    for kind, chosen, colour, sign in (("right", ~wrong, RIGHT, 1), ("wrong", wrong, WRONG, -1)):
        count = int(chosen.sum())
        shares = np.histogram(values[chosen], bins=bins)[0] / max(1, count)
        axes.bar(
            bins[:-1],
            sign * shares,
            width=np.diff(bins),
            align="edge",
            color=colour,
            hatch="" if sign > 0 else "///",
            edgecolor="white",
            label=f"{kind} ({count})",
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel=label, ylabel="share of its kind")
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.legend(frameon=False)


def _risk_coverage(
    axes: Axes, signal: str, risk: NDArray[np.float64], wrong: NDArray[np.bool_]
) -> None:
    order = np.argsort(risk, kind="stable")
    accepted = np.arange(1, len(order) + 1)
    area = aurc(risk, wrong).value
    colour, style = STYLES[signal]
    axes.plot(
        accepted / len(order),
        np.cumsum(wrong[order]) / accepted,
        style,
        color=colour,
        label=signal if area is None else f"{signal}, area {area:.3f}",
    )


def _mark_threshold(
    axes: Axes, p_wrong: NDArray[np.float64], wrong: NDArray[np.bool_], threshold: float
) -> None:
    allowed = p_wrong <= threshold
    if allowed.any():
        label = f"threshold: {int(wrong[allowed].sum())} of {int(allowed.sum())} allowed are wrong"
        axes.plot(allowed.mean(), wrong[allowed].mean(), "o", color="black", label=label)
