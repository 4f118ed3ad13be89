"""Evidence of made-up calls, for votes that need no model."""

from __future__ import annotations

import numpy as np
import torch

from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.judged_calls import JudgedCall
from toolguard.calibration.reading.collect import Observation
from toolguard.calibration.reading.name_walk import FirstBranch
from toolguard.calibration.votes.cross_fitting import fold_calls
from toolguard.calibration.votes.evidence import CallEvidence, VoteEvidence
from toolguard.guard.readout import margin
from toolguard.guard.signals import menu_entropy

NAMES = ("get_weather", "send_email", "search")


def made_call(
    number=0,
    *,
    chosen=0,
    right=0,
    scores=(-0.1, -3.0, -4.0),
    names=NAMES,
    query=None,
    arguments=None,
    **evidence,
):
    """Return evidence of one call; the query of each number shares no word with another's."""
    record = Record(
        id=f"r{number}",
        source="made",
        split="all",
        query=query or " ".join(f"word{number}x{place}" for place in range(4)),
        tools=[{"name": name} for name in names],
        call={"name": names[right], "arguments": arguments or {}},
    )
    told = torch.tensor(scores, dtype=torch.float32)
    judged = JudgedCall(
        record=record,
        chosen=names[chosen],
        wrong=chosen != right,
        readout_right=None,
        margins={"logprob": margin(told, chosen), "entropy": -menu_entropy(told)},
        p_wrong=None,
        trusted=True,
    )
    branch = None
    if len(names) > 1:
        branch = FirstBranch(
            at_decision=True,
            token_ids=torch.arange(len(names)),
            log_probs=torch.tensor(scores, dtype=torch.float64),
            chosen=chosen,
        )
    observation = Observation(
        record_id=record.id,
        query_hash=number,
        menu_names=names,
        menu_hashes=names,
        label=right,
        right=frozenset({right}),
        chosen=chosen,
        scores=told,
        hidden=torch.empty(0, 4),
        branch=branch,
    )
    return CallEvidence(judged=judged, observation=observation, **evidence)


def made_evidence(n=200, *, dim=6, noise=1.0, doubt=5.0, seed=0, shuffled=False):
    """Return calls whose state points to the right tool, and whose choice follows a noisy copy.

    Args:
        n: number of calls.
        dim: of the states.
        noise: of the states around their tool's centre.
        doubt: what stirs the choice beyond that; more makes more errors.
        seed: of everything.
        shuffled: give each call the state of another one, so that states tell nothing.
    """
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(len(NAMES), dim))
    label = rng.integers(0, len(NAMES), n)
    states = centres[label] + noise * rng.normal(size=(n, dim))
    scores = -1.5 * ((states[:, None] - centres) ** 2).mean(2)
    scores += doubt * rng.normal(size=(n, len(NAMES)))
    scores -= np.logaddexp.reduce(scores, axis=1, keepdims=True)
    order = rng.permutation(n) if shuffled else np.arange(n)
    calls = [
        made_call(
            place,
            chosen=int(scores[place].argmax()),
            right=int(label[place]),
            scores=tuple(scores[place]),
            state=torch.tensor(states[order[place]], dtype=torch.float32),
        )
        for place in range(n)
    ]
    folds = fold_calls([call.judged.record for call in calls], seed)
    return VoteEvidence(calls=calls, folds=folds, seed=seed)
