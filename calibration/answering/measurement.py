"""How well each signal tells turns that should not be calls, cross-fitted on the turns themselves.

No turn is scored by anything that saw it or a near duplicate of it: block, discriminant and
calibrator are chosen anew from the other folds. Log-probability, which needs no fit, stands beside
every signal, and so does what the data give away without any model (`giveaways`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolguard.calibration.answering.gate_fit import (
    Floats,
    fit_gate,
    gate_risks,
    kinds_in,
    opening_folds,
)
from toolguard.calibration.answering.giveaways import prompt_size_risks, query_word_risks
from toolguard.calibration.answering.openings import Opening
from toolguard.calibration.answering.operating_point import passed_at_kept
from toolguard.calibration.datasets.near_duplicates import query_fingerprint
from toolguard.calibration.fitting.statistics import ToolStatistics
from toolguard.calibration.measuring.metrics import auroc, paired_difference
from toolguard.guard.errors import CalibrationError
from toolguard.guard.profile_meta import NoCallKind
from toolguard.guard.rate import wilson

SIGNALS = ("logprob", "activation", "combined", "distance", "prompt_size", "query_words")
"""`distance` is how far the decision token's state lies from the nearest tool mean."""

FEWEST_A_TOOL = 3  # right calls that a tool's mean is made from, as in `calibrate`


def measure_openings(
    openings: Sequence[Opening], layers: Sequence[int], *, folds: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Return what each signal reaches, source by source, as plain JSON values.

    Args:
        openings: turns with a call, and turns without.
        layers: block index of each row of their states.
        folds: of cross-fitting.
        seed: of folds and bootstraps.

    Raises:
        CalibrationError: if a turn or its query is in both parts of a fit.
    """
    by_source: dict[str, list[Opening]] = {}
    for opening in openings:
        by_source.setdefault(opening.source, []).append(opening)
    return {source: _measure(own, layers, folds, seed) for source, own in sorted(by_source.items())}


def _measure(
    openings: Sequence[Opening], layers: Sequence[int], folds: int, seed: int
) -> dict[str, Any]:
    counts = Counter(opening.step for opening in openings)
    found: dict[str, Any] = {"n": dict(sorted(counts.items())), "starts": starts(openings)}
    if not counts["call"]:
        return found | {"kinds": {}, "left_out": "no turn with a right call"}
    kinds = {}
    for kind in kinds_in(openings):
        own = [opening for opening in openings if opening.step in ("call", kind)]
        try:
            risks = cross_fitted_risks(own, kind, layers, folds=folds, seed=seed)
        except CalibrationError as error:
            kinds[kind] = {"left_out": error.message}
            continue
        kinds[kind] = signal_rates(risks, np.array([o.step == kind for o in own]), seed=seed)
    return found | {"kinds": kinds}


def starts(openings: Sequence[Opening]) -> dict[str, Any]:
    """Return how often the likeliest next token opens a call, by what is right to do."""
    found: dict[str, Any] = {}
    for step in sorted({opening.step for opening in openings}):
        started = [opening.starts for opening in openings if opening.step == step]
        found[step] = wilson(sum(started), len(started)).to_dict()
    return found


def signal_rates(
    risks: Mapping[str, Floats], unneeded: NDArray[np.bool_], *, seed: int = 0
) -> dict[str, Any]:
    """Return AUROC, what gets through at 95 % kept, and differences to log-probability.

    Args:
        risks: signal -> (turns,), larger where a call is more likely unneeded.
        unneeded: (turns,) true where no call was right.
        seed: of the bootstraps.
    """
    baseline = risks["logprob"]
    return {
        signal: {
            "auroc": auroc(risk, unneeded).to_dict(),
            "passed_at_95_kept": passed_at_kept(risk, unneeded, seed=seed).to_dict(),
        }
        | (
            {}
            if signal == "logprob"
            else {
                "auroc_against_logprob": paired_difference(
                    "auroc", risk, baseline, unneeded, seed=seed
                ).to_dict()
            }
        )
        for signal, risk in risks.items()
    }


def cross_fitted_risks(
    openings: Sequence[Opening],
    kind: NoCallKind,
    layers: Sequence[int],
    *,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, Floats]:
    """Return (turns,) risks by signal; a signal that cannot be fitted is left out.

    Args:
        openings: turns with a call and turns of one kind without.
        kind: which.
        layers: block index of each row of their states.
        folds: outer folds, and inner ones.
        seed: of both.

    Raises:
        CalibrationError: if there are too few turns for a fit.
    """
    fold_of = opening_folds(openings, folds, seed)
    risks = {signal: np.full(len(openings), np.nan) for signal in SIGNALS}
    for fold in np.unique(fold_of):
        rest = [o for o, f in zip(openings, fold_of, strict=True) if f != fold]
        own = [o for o, f in zip(openings, fold_of, strict=True) if f == fold]
        refuse_shared(rest, own)
        gate = fit_gate(rest, layers, folds=folds, seed=seed)
        read = gate_risks(gate, kind, own, layers)
        rows = fold_of == fold
        risks["logprob"][rows] = read.logprob
        risks["activation"][rows] = read.activation
        risks["combined"][rows] = read.combined
        risks["distance"][rows] = _distances(rest, own, layers.index(gate.section.layer))
        risks["prompt_size"][rows] = prompt_size_risks(rest, own)
        risks["query_words"][rows] = query_word_risks(rest, own)
    return {signal: risk for signal, risk in risks.items() if not np.isnan(risk).any()}


def refuse_shared(fitted: Sequence[Opening], scored: Sequence[Opening]) -> None:
    """Check that no turn that is scored was fitted to, by id or by the text of its query.

    Raises:
        CalibrationError: if one was; its id is in the field `record_id`.
    """
    ids = {opening.record_id for opening in fitted}
    queries = {query_fingerprint(opening.query) for opening in fitted}
    for opening in scored:
        if opening.record_id in ids or query_fingerprint(opening.query) in queries:
            raise CalibrationError(
                f"record {opening.record_id!r} is scored by a fit that saw it or its query",
                record_id=opening.record_id,
            )


def _distances(rest: Sequence[Opening], own: Sequence[Opening], place: int) -> Floats:
    """Return Mahalanobis distances from the nearest tool's mean; NaN where no two tools have one.

    Source: Lee, Lee, Lee & Shin (2018), "A simple unified framework for detecting
        out-of-distribution samples and adversarial attacks".
    """
    calls = Counter(opening.tool for opening in rest if opening.step == "call")
    tools = sorted(tool for tool, n in calls.items() if n >= FEWEST_A_TOOL)
    unread = np.full(len(own), np.nan)
    if len(tools) < 2 or not own or not len(own[0].decision):
        return unread
    fitted = [o for o in rest if o.tool in tools]
    statistics = ToolStatistics(len(tools), fitted[0].decision.shape[1])
    statistics.update(
        torch.stack([o.decision[place] for o in fitted]),
        torch.tensor([tools.index(o.tool) for o in fitted]),
    )
    factor = torch.linalg.cholesky(statistics.shrunk_covariance("diagonal").matrix)
    states = torch.stack([o.decision[place] for o in own]).double()  # (rows, dim)
    white = torch.linalg.solve_triangular(factor, states.T, upper=False).T
    means = torch.linalg.solve_triangular(factor, statistics.means.T, upper=False).T
    nearest: Floats = torch.cdist(white, means).amin(dim=1).numpy()
    return nearest
