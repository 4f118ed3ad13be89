"""The figures of the page: what is counted, drawn, and told how to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from toolguard.calibration.labels.labelled_calls import Booleans, Floats
from toolguard.calibration.measuring.risk_coverage import CoveragePoint, risk_coverage
from toolguard.calibration.report.line_charts import (
    Curve,
    Sweep,
    coverage_chart,
    layer_chart,
    reliability_chart,
)
from toolguard.calibration.report.map_chart import MapCall, MapTool, map_chart
from toolguard.calibration.report.margin_chart import margin_chart
from toolguard.calibration.report.outcomes import margin_bins, reliability
from toolguard.calibration.report.plot import per_cent
from toolguard.calibration.report.stored_metrics import dug
from toolguard.calibration.report.tested_calls import TestedCalls
from toolguard.calibration.report.tool_map import map_tools
from toolguard.guard.profile import Profile
from toolguard.guard.profile_meta import ProfileMeta
from toolguard.guard.rate import Rate, undetermined, wilson

P_WRONG = "P(wrong)"
NAMES = {
    "combined": P_WRONG,
    "logprob": "log-prob margin",
    "activation": "activation margin",
    "entropy": "menu entropy",
    "activation_gap": "activation top gap",
}
"""What people call the signals; others go by their own names."""

_STYLES = {"combined": "s3", "logprob": "s1", "activation": "s2"}
_MORE_STYLES = ("s4", "s5", "s6", "s7")
_VARIANTS = {
    ("centred_cosine", None): "centred cosine",
    ("cosine", None): "cosine",
    ("lda", "diagonal"): "LDA, towards the diagonal",
    ("lda", "identity"): "LDA, towards the identity",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One entry of a figure's legend: the class it is drawn in, and its name."""

    css: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing with its title, how to read it, and its legend."""

    title: str
    reading: str
    svg: Markup
    legend: tuple[Key, ...] = ()


def signal_name(name: str) -> str:
    """Return what people call a signal."""
    return NAMES.get(name, name.replace("_", " "))


def signal_style(name: str, others: Sequence[str] = ()) -> str:
    """Return the class a signal is drawn in; `others` are those that share the further classes."""
    if name in _STYLES:
        return _STYLES[name]
    rest = [other for other in others if other not in _STYLES]
    place = rest.index(name) if name in rest else 0
    return _MORE_STYLES[min(place, len(_MORE_STYLES) - 1)]


def coverage_figure(tested: TestedCalls, target: float) -> Figure | None:
    """Return the risk-coverage curves of all signals; None without both outcomes."""
    wrong = tested.wrong
    if not wrong.any() or wrong.all():
        return None
    risks: dict[str, Floats] = {"combined": tested.p_wrong}
    risks |= {name: -tested.signal(name) for name in tested.signal_names}
    curves = [
        Curve(
            name=signal_name(name),
            css=signal_style(name, tested.signal_names),
            points=risk_coverage(risk, wrong),
        )
        for name, risk in risks.items()
    ]
    return _coverage(curves, wrong, target)


def _coverage(curves: Sequence[Curve], wrong: Booleans, target: float | None) -> Figure:
    """Return curves with the two orders that bound them: a perfect one, and none."""
    base = float(wrong.mean())
    bounds = [
        Curve(name="perfect order", css="bound", points=risk_coverage(wrong, wrong)),
        Curve(name="random order", css="bound dashed", points=_flat(base)),
    ]
    return Figure(
        title="Risk over coverage",
        reading=(
            "Let the safest calls run first. At each share of calls that run, how many of those "
            "are wrong? Lower is better; at 100% every curve meets the model's own error rate."
        ),
        svg=coverage_chart([*bounds, *curves], target),
        legend=tuple(Key(css=curve.css, name=curve.name) for curve in (*curves, *bounds)),
    )


def _flat(risk: float) -> tuple[CoveragePoint, ...]:
    return tuple(CoveragePoint(coverage=share, risk=risk) for share in (0.0, 1.0))


def risk_at(tested: TestedCalls, signal: str, coverage: float) -> Rate:
    """Return the error rate among the safest `coverage` of the calls, by one signal.

    Where calls of equal risk lie across the edge, their mean number of errors counts, rounded.
    """
    risk = tested.p_wrong if signal == "combined" else -tested.signal(signal)
    n = len(risk)
    curve = risk_coverage(risk, tested.wrong, points=max(n, 1))
    point = next((own for own in curve if own.coverage >= coverage), None)
    if point is None:
        return undetermined(0)
    taken = round(point.coverage * n)
    return wilson(round(point.risk * taken), taken)


def reliability_figure(tested: TestedCalls) -> Figure | None:
    """Return observed error rates over P(wrong), for calls of trusted tools; None without one."""
    trusted = np.array([call.trusted for call in tested.calls], dtype=bool)
    bins = reliability(tested.p_wrong[trusted], tested.wrong[trusted])
    if not bins:
        return None
    return Figure(
        title="Is P(wrong) honest?",
        reading=(
            f"The {int(trusted.sum()):,} calls of calibrated tools in bins of equal size. On the "
            "diagonal, calls said to be wrong one time in ten are. Bars are 95% intervals."
        ),
        svg=reliability_chart(bins),
    )


def margin_figures(tested: TestedCalls, kind: str) -> tuple[Figure, ...]:
    """Return how each signal spreads among right and wrong calls.

    Args:
        tested: test calls.
        kind: of the readout, which decides the activation's unit.
    """
    activation = "natural log units" if kind == "lda" else "cosine"
    units = {"logprob": "nats", "entropy": "nats, negated"}
    figures = []
    for name in tested.signal_names:
        bins = margin_bins(tested.signal(name), tested.wrong)
        if bins is None:
            continue
        unit = units.get(name, activation)
        figures.append(
            Figure(
                title=f"{signal_name(name)}".capitalize(),
                reading=(
                    f"{bins.n_right:,} right calls above the line, {bins.n_wrong:,} wrong ones "
                    "below it; each side adds up to 100%."
                ),
                svg=margin_chart(f"{signal_name(name)} ({unit})", bins),
                legend=(Key(css="right", name="right"), Key(css="wrong", name="wrong")),
            )
        )
    return tuple(figures)


def layer_figures(meta: ProfileMeta) -> tuple[Figure, ...]:
    """Return what cross-validation found of each block and readout; empty if nothing is kept."""
    candidates = dug(meta.metrics, "choice", "candidates") or ()
    by_name: dict[str, list[dict[str, object]]] = {}
    for found in candidates:
        name = _VARIANTS.get((found["readout"], found["covariance_target"]), found["readout"])
        by_name.setdefault(name, []).append(found)
    chosen = (meta.layer, _VARIANTS.get((meta.readout, meta.covariance_target), meta.readout))
    styles = ("s1", "s2", "s3", "s4")
    measures = (
        ("auroc", "AUROC", "How well the readout's margin tells wrong calls from right ones"),
        ("readout_accuracy", "accuracy", "How often the readout's own best tool is right"),
    )
    figures = []
    for key, name, meaning in measures:
        sweeps = [
            Sweep(
                name=variant,
                css=css,
                rates=tuple((int(str(own["layer"])), _rate(own[key])) for own in rows),
            )
            for css, (variant, rows) in zip(styles, by_name.items(), strict=False)
        ]
        svg = layer_chart(sweeps, chosen, name) if sweeps else None
        if svg is not None:
            figures.append(
                Figure(
                    title=f"{name[:1].upper()}{name[1:]} by block",
                    reading=(
                        f"{meaning}, in cross-validation on the fit split. The ring marks what the "
                        "profile uses; bars are 95% intervals."
                    ),
                    svg=svg,
                    legend=tuple(Key(css=sweep.css, name=sweep.name) for sweep in sweeps),
                )
            )
    return tuple(figures)


def _rate(found: object) -> dict[str, float | None]:
    return found if isinstance(found, dict) else {"value": None}


def map_figure(profile: Profile, tested: TestedCalls | None) -> Figure | None:
    """Return the tools on a plane with the test calls; None for fewer than three tools."""
    status = {tool.name: tool.status for tool in profile.meta.tools}
    calls: list[MapCall] = []
    if tested is not None and tested.map is not None:
        places = tested.map.tools
        explained = tested.map.explained
        calls = [
            MapCall(
                at=call.at,
                wrong=call.wrong,
                tip=f"{call.record_id}: {call.expected} was right, {call.chosen} was chosen",
            )
            for call in tested.calls
            if call.at is not None
        ]
    else:
        plane = map_tools(profile)
        if plane is None:
            return None
        found = [(float(x), float(y)) for x, y in plane.tools.tolist()]
        places = dict(zip(profile.names, found, strict=True))
        explained = plane.explained
    tools = [
        MapTool(name=name, at=at, calibrated=status.get(name) == "calibrated")
        for name, at in places.items()
    ]
    legend = [Key(css="tool", name="mean of a tool")]
    if not all(tool.calibrated for tool in tools):
        legend.append(Key(css="tool stand-in", name="stand-in for a tool with too few calls"))
    if calls:
        legend += [Key(css="call-right", name="right call"), Key(css="call-wrong", name="wrong")]
    space = "whitened, as LDA sees it" if profile.meta.readout == "lda" else "directions only"
    return Figure(
        title="Map of the tools",
        reading=(
            f"Hidden states at the decision token ({space}), on the plane that shows most of the "
            f"spread of the tools' means: {per_cent(round(explained, 3))} of it. Tools that stand "
            "close are easily confused; what the plane does not show may still part them."
        ),
        svg=map_chart(tools, calls),
        legend=tuple(legend),
    )
