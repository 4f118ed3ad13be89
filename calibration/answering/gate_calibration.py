"""A profile's gate: fitted on one split, its thresholds chosen on another, reported on a third."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolguard.calibration.answering.gate_fit import fit_gate, gate_risks
from toolguard.calibration.answering.measurement import refuse_shared, signal_rates, starts
from toolguard.calibration.answering.openings import Opening
from toolguard.calibration.datasets.splits import SPLITS, Split
from toolguard.calibration.fitting.fit_profile import STANDING_TARGETS, risk_entry
from toolguard.calibration.guarantee.risk import choose_threshold, measure_risk
from toolguard.guard.answer_gate import AnswerGate
from toolguard.guard.profile_meta import NoCallEntry, NoCallKind, RiskEntry
from toolguard.guard.rate import wilson


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRisk:
    """How many of the calls that go on may be of a kind that should not have been one.

    Args:
        max_risk: the share the user asked for.
        targets: further shares that thresholds are wanted for.
        confidence: chance with which they must hold.
    """

    max_risk: float = 0.05
    targets: tuple[float, ...] = ()
    confidence: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplitOpenings:
    """Openings by what they serve; no query of `test` is in a fit or a choice.

    Args:
        of: openings of each split.
        layers: block index of each row of their states.

    Raises:
        CalibrationError: if a record or its query is in `test` and in another split.
    """

    of: Mapping[Split, Sequence[Opening]]
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        refuse_shared([*self.of["fit"], *self.of["select"]], self.of["test"])
        refuse_shared(self.of["fit"], self.of["select"])


def calibrate_gate(
    openings: SplitOpenings, risk: GateRisk, *, folds: int = 5, seed: int = 0
) -> AnswerGate:
    """Return a gate with its thresholds and with what it reaches on the test split.

    A threshold is chosen on turns of the select split in which the model starts a call: the guard
    meets no others.

    Args:
        openings: by split.
        risk: what the user asks for.
        folds: of cross-validation within `fit`.
        seed: of folds and bootstraps.

    Raises:
        CalibrationError: if `fit` holds too few turns of a kind.
    """
    gate = fit_gate(openings.of["fit"], openings.layers, folds=folds, seed=seed)
    kinds: dict[NoCallKind, NoCallEntry] = {
        kind: entry.model_copy(update={"risk": _thresholds(gate, kind, openings, risk)})
        for kind, entry in gate.section.kinds.items()
    }
    counts = {split: dict(Counter(o.step for o in openings.of[split])) for split in SPLITS}
    section = gate.section.model_copy(update={"kinds": kinds})
    with_thresholds = AnswerGate(section=section, readout=gate.readout)
    metrics = {
        "turns": counts,
        "starts": starts(openings.of["test"]),
        "test": {
            kind: gate_metrics(
                with_thresholds,
                kind,
                openings.of["test"],
                openings.layers,
                target=risk.max_risk,
                seed=seed,
            )
            for kind in kinds
        },
    }
    return AnswerGate(section=section.model_copy(update={"metrics": metrics}), readout=gate.readout)


def _thresholds(
    gate: AnswerGate, kind: NoCallKind, openings: SplitOpenings, risk: GateRisk
) -> tuple[RiskEntry, ...]:
    started = [o for o in openings.of["select"] if o.starts and o.step in ("call", kind)]
    probability = gate_risks(gate, kind, started, openings.layers).combined
    unneeded = np.array([opening.step == kind for opening in started], dtype=bool)
    return tuple(
        risk_entry(
            choose_threshold(probability, unneeded, target=target, confidence=risk.confidence)
        )
        for target in sorted({*STANDING_TARGETS, risk.max_risk, *risk.targets})
    )


def gate_metrics(
    gate: AnswerGate,
    kind: NoCallKind,
    openings: Sequence[Opening],
    layers: Sequence[int],
    *,
    target: float,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what a gate reaches on turns it was not made from, as plain JSON values.

    Args:
        gate: with thresholds.
        kind: of turns without a call.
        openings: turns with a call and of that kind; others are left out.
        layers: block index of each row of their states.
        target: whose threshold is looked at.
        seed: of the bootstraps.

    Returns: `signals` over all turns and, under `started`, over those in which the model starts a
        call; of the latter `right_stopped`, the share of right calls that the threshold stops, and
        `unneeded_passed`, the share of the others that it lets through; `realised`, the share of
        unneeded ones among the calls that go on.
    """
    own = [opening for opening in openings if opening.step in ("call", kind)]
    started = [opening for opening in own if opening.starts]
    threshold = gate.threshold(kind, target)
    probability = gate_risks(gate, kind, started, layers).combined
    unneeded = np.array([opening.step == kind for opening in started], dtype=bool)
    passed = probability <= (-np.inf if threshold is None else threshold)
    return {
        "n": {"call": sum(o.step == "call" for o in own), kind: sum(o.step == kind for o in own)},
        "signals": _rates(gate, kind, own, layers, seed),
        "started": _rates(gate, kind, started, layers, seed),
        "target": target,
        "threshold": threshold,
        "right_stopped": wilson(int((~passed & ~unneeded).sum()), int((~unneeded).sum())).to_dict(),
        "unneeded_passed": wilson(int((passed & unneeded).sum()), int(unneeded.sum())).to_dict(),
        "realised": measure_risk(probability, unneeded, threshold).realised.to_dict(),
    }


def _rates(
    gate: AnswerGate,
    kind: NoCallKind,
    openings: Sequence[Opening],
    layers: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    read = gate_risks(gate, kind, openings, layers)
    unneeded = np.array([opening.step == kind for opening in openings], dtype=bool)
    risks = {"logprob": read.logprob, "activation": read.activation, "combined": read.combined}
    return signal_rates(risks, unneeded, seed=seed)
