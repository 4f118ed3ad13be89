"""Votes by the tools' mean hidden states at the late block: the published cosine, and LDA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolguard.calibration.fitting.named_readout import NamedReadout, NamedStates, fit_named
from toolguard.calibration.votes.cross_fitting import Fit, Scorer
from toolguard.calibration.votes.evidence import CallEvidence, Indices
from toolguard.guard.errors import CalibrationError
from toolguard.guard.readout import ReadoutKind
from toolguard.guard.signals import ACTIVATION, read_signals

PAPER_QUERIES = 3  # a tool; arXiv 2605.07990


def mean_fit(kind: ReadoutKind, *, queries: int | None = None) -> Fit:
    """Return what fits a readout to the states of right calls.

    Args:
        kind: see `fit_named`.
        queries: most right calls a tool, in an order fixed by their ids; None takes all.
    """

    def fit(calls: Sequence[CallEvidence], _folds: Indices) -> Scorer:
        right = [call for call in calls if call.state is not None and not call.judged.wrong]
        if not right:
            raise CalibrationError("no right call to make a mean from")
        given = NamedStates(
            ids=[call.judged.record.id for call in right],
            names=[call.judged.chosen for call in right],
            states=_states(right),
        )
        readout = fit_named(kind, given if queries is None else given.first(queries))
        return lambda others: _risks(readout, others)

    return fit


def _risks(readout: NamedReadout, calls: Sequence[CallEvidence]) -> list[float | None]:
    """Return negated margins within the menu; None if the tool, or every rival, has no mean."""
    read = [place for place, call in enumerate(calls) if call.state is not None]
    found: list[float | None] = [None] * len(calls)
    if not read:
        return found
    some = [calls[place] for place in read]
    menus = [call.observation.menu_names for call in some]
    for place, scores in zip(read, readout.menu_scores(_states(some), menus), strict=True):
        found[place] = _risk(scores, calls[place].observation.chosen)
    return found


def _risk(scores: Tensor, chosen: int) -> float | None:
    read = read_signals({ACTIVATION: scores}, chosen, (ACTIVATION,))
    return -read[ACTIVATION] if read else None


def _states(calls: Sequence[CallEvidence]) -> Tensor:
    return torch.stack([call.state for call in calls if call.state is not None])
