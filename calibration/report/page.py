"""The page that shows what a profile is worth: everything on it, put together and rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from toolguard.adapters.shown_numbers import figure, percent
from toolguard.adapters.shown_text import shown
from toolguard.calibration.report.call_section import call_section
from toolguard.calibration.report.evaluation_section import evaluation_section
from toolguard.calibration.report.figures import layer_figures, map_figure, signal_name
from toolguard.calibration.report.interval_bar import interval_bar
from toolguard.calibration.report.overview import overview
from toolguard.calibration.report.plot import per_cent
from toolguard.calibration.report.profile_sections import (
    correction_rows,
    facts,
    gate_rows,
    signal_rows,
    target_rows,
    tried_rows,
)
from toolguard.calibration.report.tested_calls import FILE, TestedCalls
from toolguard.guard.profile import Profile
from toolguard.guard.rate import Rate

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInput:
    """What the page is made of.

    Args:
        profile: what it is about.
        tested: its test calls; None for a profile that came without.
        evaluation: what `toolguard evaluate --json` wrote; None leaves it out.
        queries: record id -> query, as far as they may be shown.
    """

    profile: Profile
    tested: TestedCalls | None = None
    evaluation: Mapping[str, Any] | None = None
    queries: Mapping[str, str] = field(default_factory=dict)


def report_page(given: ReportInput) -> str:
    """Return the page as HTML that needs nothing from anywhere and runs no script."""
    meta, evaluation = given.profile.meta, given.evaluation
    style = (FOLDER / "static" / "report.css").read_text(encoding="utf-8")
    values = {
        "style": Markup(style),  # noqa: S704 - our own file
        "meta": meta,
        "overview": overview(meta),
        "signals": signal_rows(meta),
        "tried": tried_rows(meta),
        "targets": target_rows(meta),
        "calls": call_section(meta, given.tested, given.queries),
        "layers": layer_figures(meta),
        "map": map_figure(given.profile, given.tested),
        "turns": gate_rows(meta),
        "corrections": correction_rows(meta),
        "evaluation": None if evaluation is None else evaluation_section(evaluation),
        "facts": facts(meta),
        "missing": missing_parts(given),
        "has_queries": bool(given.queries),
    }
    return _environment().get_template("report.html").render(values)


def missing_parts(given: ReportInput) -> tuple[str, ...]:
    """Return what the page lacks and how to get it, one sentence each."""
    found = []
    if given.tested is None:
        found.append(
            f"The profile's folder has no {FILE}, so curves, histograms, confusions and examples "
            "are left out: make the profile again with this version of `toolguard calibrate`."
        )
    if not given.profile.meta.metrics:
        found.append("The profile keeps no metrics: it was not made by `toolguard calibrate`.")
    if given.evaluation is None:
        found.append(
            "Nothing was measured on other data: run `toolguard evaluate --json evaluate.json` "
            "and pass --evaluation evaluate.json."
        )
    if not given.queries and given.tested is not None:
        found.append("Queries are not shown: pass --data with the records of the calibration.")
    return tuple(found)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        shown=shown,
        figure=figure,
        percent=percent,
        per_cent=per_cent,
        interval=interval_bar,
        signal=signal_name,
        signed=lambda value, digits: f"{value:+.{digits}f}",
        span=_span,
        reach=_reach,
        words=lambda text: shown(text).replace("logprob", "log-prob").replace("_", " "),
    )
    return environment


def _reach(rate: Rate) -> str:
    """Return the interval and n of a share in brackets; empty if it is undetermined."""
    if rate.low is None or rate.high is None:
        return ""
    return f"[{100 * rate.low:.1f} to {100 * rate.high:.1f}, n = {rate.n:,}]"


def _span(rates: Sequence[Rate | None]) -> tuple[float, float]:
    """Return the ends of a scale on which all these rates, none below 0, can be told apart."""
    highs = [rate.high for rate in rates if rate is not None and rate.high is not None]
    return 0.0, max(highs, default=1.0)
