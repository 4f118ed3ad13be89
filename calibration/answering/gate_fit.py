"""From openings to a gate: block, discriminant and calibrators, all chosen by cross-validation.

Every margin that chooses or calibrates comes from a discriminant that saw neither its record nor a
near duplicate of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolguard.calibration.answering.labels import NO_CALL_KINDS
from toolguard.calibration.answering.openings import Opening
from toolguard.calibration.datasets.splits import SplitItem
from toolguard.calibration.fitting.fit_calibrator import fit_calibrator
from toolguard.calibration.fitting.layer_choice import assign_folds
from toolguard.calibration.fitting.statistics import ToolStatistics
from toolguard.calibration.measuring.metrics import auroc
from toolguard.guard.answer_gate import AnswerGate
from toolguard.guard.errors import CalibrationError
from toolguard.guard.profile_meta import CallOrAnswer, CovarianceTarget, NoCallEntry, NoCallKind
from toolguard.guard.readout import Readout, build_readout

FEWEST = 20  # turns of a kind, below which nothing is fitted to it
TARGETS: tuple[CovarianceTarget, ...] = ("diagonal", "identity")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Candidate:
    """A block and covariance target, with (rows, kinds) margins that each row's fold did not fit.

    Args:
        layer: block index.
        target: what the covariance is shrunk towards.
        margins: out of fold.
        value: mean AUROC over the kinds.
    """

    layer: int
    target: CovarianceTarget
    margins: Floats
    value: float


def kinds_in(openings: Iterable[Opening]) -> tuple[NoCallKind, ...]:
    """Return the kinds of turn without a call of which there are enough to fit."""
    counts = Counter(opening.step for opening in openings)
    return tuple(kind for kind in NO_CALL_KINDS if counts[kind] >= FEWEST)


def opening_folds(openings: Sequence[Opening], folds: int, seed: int) -> NDArray[np.int64]:
    """Return (rows,) folds in which near duplicates are together and steps spread evenly.

    Raises:
        CalibrationError: if there are fewer than two groups of queries.
    """
    items = [SplitItem(id=o.record_id, query=o.query, tool=o.step) for o in openings]
    placed = assign_folds(items, folds, seed)
    return np.array([placed[opening.record_id] for opening in openings])


def fit_gate(
    openings: Sequence[Opening], layers: Sequence[int], *, folds: int = 5, seed: int = 0
) -> AnswerGate:
    """Return the gate that cross-validation chooses, without thresholds.

    Args:
        openings: turns with a call, and turns without.
        layers: block index of each row of their states.
        folds: of cross-validation.
        seed: of the folds.

    Raises:
        CalibrationError: if there are fewer than `FEWEST` turns with a call or of every other
            kind, or no discriminant can be fitted.
    """
    kinds = kinds_in(openings)
    rows = [opening for opening in openings if opening.step in ("call", *kinds)]
    calls = sum(opening.step == "call" for opening in rows)
    if not kinds or calls < FEWEST:
        raise CalibrationError(
            f"{calls} turns with a call and {len(rows) - calls} without are too few to tell them "
            f"apart, {FEWEST} of each are needed",
            hint="give more records that call for no tool",
        )
    of_class = _classes(rows, kinds)
    best = _choose(rows, kinds, layers, opening_folds(rows, folds, seed))
    hidden = _states(rows, layers.index(best.layer))
    return AnswerGate(
        section=CallOrAnswer(
            layer=best.layer,
            covariance_target=best.target,
            n_call=calls,
            kinds=_entries(rows, kinds, best.margins),
        ),
        readout=_discriminants(hidden, of_class, 1 + len(kinds))[best.target],
    )


def _entries(
    rows: Sequence[Opening], kinds: Sequence[NoCallKind], margins: Floats
) -> dict[NoCallKind, NoCallEntry]:
    log_odds = np.array([row.log_odds for row in rows])
    entries: dict[NoCallKind, NoCallEntry] = {}
    for column, kind in enumerate(kinds):
        own = np.array([row.step in ("call", kind) for row in rows])
        wrong = np.array([row.step == kind for row in rows])[own]
        signals = {"logprob": log_odds[own], "activation": margins[own, column]}
        calibrator = fit_calibrator(signals, wrong)
        entries[kind] = NoCallEntry(n=int(wrong.sum()), calibrator=calibrator.to_dict())
    return entries


def _classes(rows: Sequence[Opening], kinds: Sequence[NoCallKind]) -> Tensor:
    """Return (rows,) int64: 0 for a call, else the kind's place behind it."""
    place: Mapping[str, int] = {"call": 0, **{kind: i for i, kind in enumerate(kinds, start=1)}}
    return torch.tensor([place[row.step] for row in rows])


def _states(rows: Sequence[Opening], place: int) -> Tensor:
    return torch.stack([row.hidden[place] for row in rows])  # (rows, dim)


def _choose(
    rows: Sequence[Opening],
    kinds: Sequence[NoCallKind],
    layers: Sequence[int],
    fold_of: NDArray[np.int64],
) -> _Candidate:
    """Return the candidate with the best AUROC; among equals the later block, then the target."""
    of_class = _classes(rows, kinds)
    found: list[_Candidate] = []
    fault = "no layer was read"
    for place, layer in enumerate(layers):
        try:
            margins = _out_of_fold(_states(rows, place), of_class, len(kinds), fold_of)
        except CalibrationError as error:
            fault = error.message
            continue
        found += [
            _Candidate(layer=layer, target=target, margins=own, value=_value(own, of_class))
            for target, own in margins.items()
        ]
    if not found:
        raise CalibrationError(f"no layer tells calls from other turns: {fault}")
    return max(found, key=lambda c: (round(c.value, 9), c.layer, -TARGETS.index(c.target)))


def _out_of_fold(
    hidden: Tensor, of_class: Tensor, kinds: int, fold_of: NDArray[np.int64]
) -> dict[CovarianceTarget, Floats]:
    """Return (rows, kinds) margins by discriminants of the other folds."""
    margins = {target: np.full((len(hidden), kinds), np.nan) for target in TARGETS}
    for fold in np.unique(fold_of):
        own = torch.from_numpy(fold_of == fold)
        made = _discriminants(hidden[~own], of_class[~own], 1 + kinds)
        for target, readout in made.items():
            scores = readout.scores(hidden[own])
            margins[target][own.numpy()] = (scores[:, :1] - scores[:, 1:]).double().numpy()
    return margins


def _discriminants(
    hidden: Tensor, of_class: Tensor, classes: int
) -> dict[CovarianceTarget, Readout]:
    """Return the linear discriminant of the classes for each covariance target.

    Raises:
        CalibrationError: if a class has no row, or the rows do not vary.
    """
    statistics = ToolStatistics(classes, hidden.shape[1])
    statistics.update(hidden, of_class)
    if not bool(statistics.counts.all()):
        raise CalibrationError(
            "all turns of one kind are near duplicates, so none is left to fit to",
            hint="give records with more different queries",
        )
    centre = statistics.means.mean(dim=0)  # of the classes: how many of each there are says nothing
    return {
        target: build_readout(
            "lda", statistics.means, centre, statistics.shrunk_covariance(target).matrix
        )
        for target in TARGETS
    }


def _value(margins: Floats, of_class: Tensor) -> float:
    """Return the mean AUROC over the kinds."""
    found = []
    for column in range(margins.shape[1]):
        own = ((of_class == 0) | (of_class == column + 1)).numpy()
        rate = auroc(-margins[own, column], (of_class.numpy() == column + 1)[own])
        found.append(0.5 if rate.value is None else rate.value)
    return float(np.mean(found))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GateRisks:
    """How likely each opening should not have been a call, by each signal; larger is likelier.

    Args:
        logprob: (rows,) log-odds against the opening.
        activation: (rows,) how much nearer the state is to the kind than to a call.
        combined: (rows,) P(this kind should stand in place of the call), in [0, 1].
    """

    logprob: Floats
    activation: Floats
    combined: Floats


def gate_risks(
    gate: AnswerGate, kind: NoCallKind, openings: Sequence[Opening], layers: Sequence[int]
) -> GateRisks:
    """Return what the gate says of openings, each as the guard would read it.

    Raises:
        ReadoutError: if a reading is not finite.
    """
    place = layers.index(gate.section.layer)
    column = gate.kinds.index(kind)
    log_odds = np.array([opening.log_odds for opening in openings])
    margins = np.empty(0)
    if openings:
        margins = gate.margins(_states(openings, place))[:, column].double().numpy()
    combined = gate.probabilities(kind, log_odds, margins)
    return GateRisks(logprob=-log_odds, activation=-margins, combined=combined)
