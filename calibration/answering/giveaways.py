"""What tells turns without a call from others though no model is looked at.

Data sets often offer other menus, or ask in another style, where no tool fits. A reading that tells
no more than these has learned the data set and not whether to call.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from toolguard.calibration.answering.openings import Opening
from toolguard.calibration.datasets.near_duplicates import query_tokens
from toolguard.calibration.fitting.statistics import ToolStatistics
from toolguard.guard.readout import build_readout

Floats = NDArray[np.float64]

_JITTER = 1e-6  # keeps the covariance of prompt sizes invertible where a kind has one size


def prompt_size_risks(rest: Sequence[Opening], own: Sequence[Opening]) -> Floats:
    """Return (own,) what the numbers of tools and tokens tell, by a linear discriminant.

    Args:
        rest: turns to learn from, both with a call and without.
        own: turns to score.
    """
    sizes = _sizes(rest)
    statistics = ToolStatistics(2, sizes.shape[1])
    statistics.update(sizes, torch.tensor([opening.step != "call" for opening in rest]).long())
    covariance = statistics.pooled_covariance()
    covariance = covariance + _JITTER * torch.eye(len(covariance), dtype=torch.float64)
    readout = build_readout("lda", statistics.means, statistics.means.mean(dim=0), covariance)
    scores = readout.scores(_sizes(own)).double().numpy()
    risk: Floats = scores[:, 1] - scores[:, 0]
    return risk


def _sizes(openings: Sequence[Opening]) -> torch.Tensor:
    """Return (rows, 2) logarithms of menu and prompt size."""
    pairs = [[opening.menu_size, opening.prompt_tokens] for opening in openings]
    return torch.tensor(pairs, dtype=torch.float64).log()


def query_word_risks(rest: Sequence[Opening], own: Sequence[Opening]) -> Floats:
    """Return (own,) what the words of the query tell, by naive Bayes over which words occur.

    Args:
        rest: turns to learn from, both with a call and without.
        own: turns to score.

    Source: McCallum & Nigam (1998), "A comparison of event models for naive Bayes text
        classification", multinomial model with Laplace's prior, on binary counts.
    """
    called, other = (
        Counter(word for o in rest if (o.step == "call") is right for word in _words(o))
        for right in (True, False)
    )
    vocabulary = called.keys() | other.keys()
    totals = [counts.total() + len(vocabulary) for counts in (called, other)]
    log_ratio = {
        word: math.log((other[word] + 1) / totals[1]) - math.log((called[word] + 1) / totals[0])
        for word in vocabulary
    }
    return np.array([sum(log_ratio.get(word, 0.0) for word in _words(o)) for o in own])


def _words(opening: Opening) -> frozenset[str]:
    return frozenset(query_tokens(opening.query))
