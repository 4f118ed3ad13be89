"""The confusion matrix: one row a right tool, one column a chosen one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from markupsafe import Markup

from toolguard.calibration.report.outcomes import ConfusionMatrix
from toolguard.calibration.report.plot import Drawing

_LETTER = 6.6  # width of a letter, in the drawing's units
_LONGEST = 26  # letters of a name; the pointer shows the rest
_NAMED = 24  # columns with names; more have numbers
_STRONG = 0.55  # share from which on the ink on a cell is light
_COUNTED = 16.0  # size of a cell that has room for its count


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixChart:
    """The drawing, and the width at which it is read best, in CSS pixels."""

    svg: Markup
    width: int


def matrix_chart(matrix: ConfusionMatrix) -> MatrixChart:
    """Return the matrix; cells are shaded by their share of the row."""
    tools = matrix.tools
    cell = _cell(len(tools))
    numbered = len(tools) > _NAMED
    names = [_short(name) for name in tools]
    left = _LETTER * (max(map(len, names)) + (4 if numbered else 1)) + 8
    head = 22 if numbered else 0.8 * _LETTER * max(map(len, names)) + 16
    slant = 0 if numbered else 0.65 * head  # how far the last slanted name reaches out
    width, height = left + cell * len(tools) + max(34, slant), head + cell * len(tools) + 6
    drawing = Drawing(width, height, "Confusion matrix: rows are right tools, columns chosen ones")
    for place, name in enumerate(names):
        label = f"{name}  {place + 1}" if numbered else name
        middle = head + cell * (place + 0.5)
        drawing.text((left - 8, middle + 4), label, "cell-name", anchor="end")
        column = left + cell * (place + 0.5)
        if not numbered:
            drawing.text((column, head - 8), name, "cell-name", turn=-50)
        elif place == 0 or place % 5 == 4:
            drawing.text((column, head - 6), str(place + 1), "cell-name tiny", anchor="middle")
    _draw_cells(drawing, matrix, left, head, cell)
    return MatrixChart(svg=drawing.html(), width=round(width))


def _draw_cells(
    drawing: Drawing, matrix: ConfusionMatrix, left: float, head: float, cell: float
) -> None:
    totals: Counter[str] = Counter()
    for (expected, _), count in matrix.counts.items():
        totals[expected] += count
    size = cell * len(matrix.tools)
    drawing.rect(left, head, size, size, "cells")
    for place, tool in enumerate(matrix.tools):
        row = head + cell * (place + 0.5) + 4
        drawing.text((left + size + 6, row), str(totals[tool]), "cell-name tiny")
        step = cell * place
        drawing.rect(left + step, head + step, cell, cell, "diagonal")
    for (expected, chosen), count in sorted(matrix.counts.items()):
        if not {expected, chosen} <= set(matrix.tools):
            continue
        share = count / totals[expected]
        x = left + cell * matrix.tools.index(chosen)
        y = head + cell * matrix.tools.index(expected)
        kind = "right" if expected == chosen else "wrong"
        tip = f"{expected} was right, {chosen} was chosen: {count} of {totals[expected]}"
        box = drawing.rect(x + 0.5, y + 0.5, cell - 1, cell - 1, f"cell {kind}", tip=tip)
        drawing.shade(box, 0.18 + 0.82 * share)
        if cell >= _COUNTED:
            ink = "count strong" if share > _STRONG else "count"
            drawing.text((x + cell / 2, y + cell / 2 + 4), str(count), ink, anchor="middle")


def _cell(tools: int) -> float:
    """Return the size of a cell: smaller for more tools, so that 80 fit on a screen."""
    for most, size in ((8, 42.0), (14, 32.0), (24, 26.0), (40, 18.0)):
        if tools <= most:
            return size
    return max(10.0, min(14.0, 840 / tools))


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
