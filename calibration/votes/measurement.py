"""What each vote is worth on the same calls, beside the log-prob margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolguard.calibration.fitting.profile_metrics import signal_metrics
from toolguard.calibration.labels.call_check import check_call
from toolguard.calibration.labels.labelled_calls import Booleans
from toolguard.calibration.measuring.metrics import RANKING_METRICS, auroc, paired_difference
from toolguard.calibration.measuring.risk_coverage import risk_coverage
from toolguard.calibration.votes.catalogue import BASELINE
from toolguard.calibration.votes.evidence import CallEvidence, VoteEvidence
from toolguard.calibration.votes.logit_lens import lens_by_block
from toolguard.calibration.votes.vote import Risks, Vote


def measure_votes(votes: Sequence[Vote], evidence: VoteEvidence) -> dict[str, Any]:
    """Return what the votes are worth, as plain JSON values.

    `signals` has, by vote, its cost, `n` calls, how many of them it cannot read, AUROC, AURC, the
    errors of the quarters with least and most risk, and the risk-coverage curve. A call that a vote
    cannot read counts as its most risky one. `against_logprob` has the differences to the log-prob
    margin, paired on the same calls: AUROC above 0 and AURC below 0 are better. Their intervals are
    each of one vote; among many votes, one in forty passes 0 on the better side by chance.

    Args:
        votes: the log-prob margin among them.
        evidence: of the calls, as far as the votes need it.

    Raises:
        CalibrationError: if a vote would score a call by a fit that saw it.
    """
    wrong = evidence.wrong
    risks = {vote.name: vote.risks(evidence) for vote in votes}
    measured = signal_metrics(
        {name: found.values for name, found in risks.items()}, wrong, evidence.seed
    )
    return {
        "signals": {
            vote.name: {
                "cost": vote.cost.to_dict(),
                "n": len(wrong),
                "unreadable": risks[vote.name].unreadable,
                **measured[vote.name],
                "curve": _curve(risks[vote.name], wrong),
            }
            for vote in votes
        },
        "against_logprob": {
            name: _against(found, risks[BASELINE], wrong, evidence.seed)
            for name, found in risks.items()
            if name != BASELINE
        },
        "lens_by_block": lens_by_block([call.lens for call in evidence.calls], wrong),
        "argument_errors": argument_errors(evidence, risks),
    }


def _curve(risks: Risks, wrong: Booleans) -> list[dict[str, float]]:
    return [
        {"coverage": point.coverage, "risk": point.risk}
        for point in risk_coverage(risks.values, wrong)
    ]


def _against(risks: Risks, baseline: Risks, wrong: Booleans, seed: int) -> dict[str, Any]:
    return {
        metric: paired_difference(metric, risks.values, baseline.values, wrong, seed=seed).to_dict()
        for metric in RANKING_METRICS
    }


def argument_errors(evidence: VoteEvidence, risks: Mapping[str, Risks]) -> dict[str, Any] | None:
    """Return how votes tell wrong arguments from right ones, among calls of a right tool.

    Kept apart from wrong tools: a vote that reads the choice of a name does not see the values.
    None if no call was written out, or calls carry no arguments.

    Args:
        evidence: of the calls.
        risks: by vote, of all calls.
    """
    if not evidence.with_arguments or all(call.written is None for call in evidence.calls):
        return None
    outcomes = [_argument_error(call) for call in evidence.calls]
    places = [place for place, outcome in enumerate(outcomes) if outcome is not None]
    wrong = np.array([outcomes[place] for place in places], dtype=bool)
    return {
        "n": len(places),
        "n_wrong": int(wrong.sum()),
        "auroc": {
            name: auroc(found.values[places], wrong).to_dict() for name, found in risks.items()
        },
    }


def _argument_error(call: CallEvidence) -> bool | None:
    """Return whether the arguments are wrong; None if the tool is, or no whole call was written."""
    if call.written is None or call.written.call is None or call.judged.wrong:
        return None
    return check_call(call.judged.record, call.written.call) == "wrong_arguments"
