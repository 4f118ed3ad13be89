"""What `toolguard evaluate` found on other data, as far as its JSON has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from toolguard.calibration.measuring.risk_coverage import CoveragePoint
from toolguard.calibration.report.figures import Figure, Key, signal_name, signal_style
from toolguard.calibration.report.line_charts import Curve, Sweep, coverage_chart, layer_chart
from toolguard.calibration.report.profile_sections import TurnRow, turn_rows
from toolguard.calibration.report.stored_metrics import dug, rate_at, words_at
from toolguard.guard.rate import Rate

_COLOURED = 6  # votes with a colour of their own; the rest are thin and grey


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRate:
    """A rate with what it is of."""

    name: str
    rate: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteRow:
    """A vote, what it costs, and how well it tells wrong calls.

    Args:
        name: for people.
        css: class of its colour.
        cost: in words; empty if it is not known.
        unreadable: calls it cannot read.
        auroc: for wrong calls.
        aurc: lower is better.
        against: AURC minus that of the log-prob margin; None for the margin itself.
    """

    name: str
    css: str
    cost: str
    unreadable: int
    auroc: Rate | None
    aurc: Rate | None
    against: Rate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringRow:
    """A way to switch a call to another tool, and how often it did."""

    name: str
    switched: Rate | None
    schema_valid: Rate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSection:
    """The section.

    Args:
        calls: evaluated.
        wrong: among them.
        sources: the model's accuracy on each source.
        votes: every signal that was measured, the least AURC first.
        coverage: their risk-coverage curves; None if they are not kept.
        lens: what the logit lens sees, block by block; None if it was not measured.
        risk: what the threshold does there: allowed, and wrong among them.
        steering: ways to switch.
        turns: how well turns that need no call are told.
        arguments: AUROC of each vote for wrong arguments of a right tool.
        silent: how often a tool is called where none is right; None if it was not measured.
    """

    calls: int
    wrong: int
    sources: tuple[NamedRate, ...]
    votes: tuple[VoteRow, ...]
    coverage: Figure | None
    lens: Figure | None
    risk: tuple[NamedRate, ...]
    steering: tuple[SteeringRow, ...]
    turns: tuple[TurnRow, ...]
    arguments: tuple[NamedRate, ...]
    silent: Rate | None


def evaluation_section(found: Mapping[str, Any]) -> EvaluationSection:
    """Return the section; parts that the evaluation lacks are empty."""
    styles = _styles(found)
    return EvaluationSection(
        calls=_count(found, "n"),
        wrong=_count(found, "n_wrong"),
        sources=tuple(_named(found, "by_source")),
        votes=tuple(_vote(found, name, css) for name, css in styles.items()),
        coverage=_coverage(found, styles),
        lens=_lens(found),
        risk=tuple(
            NamedRate(name=name, rate=rate)
            for name, key in (("allowed", "coverage"), ("wrong among them", "realised"))
            if (rate := rate_at(found, "risk", key)) is not None
        ),
        steering=tuple(
            SteeringRow(
                name=name.replace("_", " "),
                switched=rate_at(own, "switched"),
                schema_valid=rate_at(own, "schema_valid"),
            )
            for name, own in _mapping(found, "steering").items()
            if rate_at(own, "switched") is not None
        ),
        turns=tuple(_turns(dug(found, "call_or_answer"))),
        arguments=tuple(_named(dug(found, "argument_errors") or {}, "auroc")),
        silent=rate_at(found, "no_call", "called"),
    )


def _styles(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the votes with their classes, the least AURC first, those without one last."""

    def rank(name: str) -> float:
        rate = rate_at(found, "signals", name, "aurc")
        return 2.0 if rate is None or rate.value is None else rate.value

    votes = _mapping(found, "signals")
    names = sorted((name for name in votes if isinstance(votes[name], Mapping)), key=rank)
    coloured = names[:_COLOURED]
    return {
        name: signal_style(name, coloured)
        if name in coloured or signal_style(name) in ("s1", "s2", "s3")
        else "s7"
        for name in names
    }


def _vote(found: Mapping[str, Any], name: str, css: str) -> VoteRow:
    own = found["signals"][name]
    return VoteRow(
        name=signal_name(name),
        css=css,
        cost=words_at(own, "cost", "words"),
        unreadable=_count(own, "unreadable"),
        auroc=rate_at(own, "auroc"),
        aurc=rate_at(own, "aurc"),
        against=rate_at(found, "against_logprob", name, "aurc"),
    )


def _coverage(found: Mapping[str, Any], styles: Mapping[str, str]) -> Figure | None:
    curves = [
        Curve(name=signal_name(name), css=f"{css} thin" if css == "s7" else css, points=points)
        for name, css in styles.items()
        if (points := tuple(_points(dug(found, "signals", name, "curve"))))
    ]
    if not curves:
        return None
    return Figure(
        title="Risk over coverage, vote by vote",
        reading=(
            "Let the safest calls run first, as each vote orders them: how many of those that run "
            "are wrong? The best votes are in colour, the best one first."
        ),
        svg=coverage_chart(curves[::-1]),
        legend=tuple(Key(css=curve.css, name=curve.name) for curve in curves),
    )


def _points(curve: object) -> Iterator[CoveragePoint]:
    for point in curve if isinstance(curve, list) else ():
        coverage, risk = dug(point, "coverage"), dug(point, "risk")
        if isinstance(coverage, int | float) and isinstance(risk, int | float):
            yield CoveragePoint(coverage=coverage, risk=risk)


def _lens(found: Mapping[str, Any]) -> Figure | None:
    rows = dug(found, "lens_by_block")
    sweeps = [
        Sweep(
            name=name,
            css=css,
            rates=tuple(
                (row["block"], row[key]) for row in rows or () if rate_at(row, key) is not None
            ),
        )
        for name, css, key in (
            ("when the call is right", "s4", "agrees_when_right"),
            ("when it is wrong", "s5", "agrees_when_wrong"),
        )
    ]
    svg = layer_chart(sweeps, None, "agreement") if rows else None
    if svg is None:
        return None
    return Figure(
        title="The logit lens, block by block",
        reading=(
            "How often the unembedded state of a block already prefers the tool that is called. "
            "Where the two lines part, the model makes up its mind. Bars are 95% intervals."
        ),
        svg=svg,
        legend=tuple(Key(css=sweep.css, name=sweep.name) for sweep in sweeps),
    )


def _turns(found: object) -> Iterator[TurnRow]:
    yield from turn_rows(dug(found, "gate"), source="the profile's own")
    sources = dug(found, "sources")
    for source in sources if isinstance(sources, Mapping) else ():
        yield from turn_rows(dug(sources, source, "kinds"), source=source)


def _named(found: Mapping[str, Any], key: str) -> Iterator[NamedRate]:
    for name in _mapping(found, key):
        rate = rate_at(found, key, name)
        if rate is not None:
            yield NamedRate(name=name, rate=rate)


def _mapping(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = found.get(key)
    return value if isinstance(value, Mapping) else {}


def _count(found: Mapping[str, Any], key: str) -> int:
    value = found.get(key)
    return value if isinstance(value, int) else 0
