"""What a benchmark found: figures with their spread and goal, as a table and as JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timing import Spread

_PACKAGES = ("torch", "transformers", "tokenizers", "nnsight", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a figure should be: at most `limit`, or at least, in the figure's unit."""

    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Tell whether `value` reaches the goal."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of the report.

    Args:
        name: its key in the results.
        spread: median of what was measured, with quartiles.
        unit: "x" for a ratio of two times measured side by side, else a unit.
        goal: None if the number is only reported.
        note: what it was measured on.
    """

    name: str
    spread: Spread
    unit: str
    goal: Goal | None = None
    note: str = ""

    @property
    def value(self) -> float:
        """The median."""
        return self.spread.median

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        return None if self.goal is None else self.goal.met(self.value)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `low` and `high` are the quartiles."""
        return {
            "value": _rounded(self.value),
            "low": _rounded(self.spread.low),
            "high": _rounded(self.spread.high),
            "n": self.spread.n,
            "unit": self.unit,
            "goal": None if self.goal is None else str(self.goal),
            "met": self.met,
            "note": self.note,
        }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def results_of(
    figures: Sequence[Figure], *, model: str, quick: bool, wall_s: float
) -> dict[str, Any]:
    """Return the whole report: each figure's number by name, then what stands behind it."""
    return {
        **{figure.name: _rounded(figure.value) for figure in figures},
        "figures": {figure.name: figure.to_dict() for figure in figures},
        "goals_met": all(figure.met is not False for figure in figures),
        "model": model,
        "quick": quick,
        "wall_s": round(wall_s, 1),
        "machine": machine_facts(),
    }


def machine_facts() -> Mapping[str, Any]:
    """Return what of this machine decides the figures."""
    return {
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "architecture": platform.machine(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def table_of(figures: Sequence[Figure]) -> str:
    """Return the figures as lines for people."""
    rows = [("figure", "median", "quartiles", "n", "goal", "")]
    rows += [
        (
            figure.name,
            f"{figure.value:.4g} {figure.unit}",
            f"{figure.spread.low:.4g} .. {figure.spread.high:.4g}",
            str(figure.spread.n),
            "" if figure.goal is None else str(figure.goal),
            {True: "met", False: "NOT MET", None: ""}[figure.met],
        )
        for figure in figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
