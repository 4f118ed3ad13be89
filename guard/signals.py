"""The signals: what the scores at a decision token say, as one number each; larger is safer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from toolguard.guard.readout import margin, top_gap

LOGPROB = "logprob"
ACTIVATION = "activation"
ENTROPY = "entropy"
ACTIVATION_GAP = "activation_gap"

SIGNALS = (LOGPROB, ACTIVATION, ENTROPY, ACTIVATION_GAP)
"""All that can be read without another forward; `logprob` is the baseline.

`logprob` and `activation` are margins of the chosen tool. `entropy` is the entropy over the menu,
negated. `activation_gap` is the activation's best score minus its second best, whatever was chosen.
"""

ALWAYS_READ = (LOGPROB, ACTIVATION)
"""The signals that are read and recorded even where P(wrong) does not use them."""


def read_signals(
    scores: Mapping[str, Tensor], chosen: int, wanted: Iterable[str] = SIGNALS
) -> dict[str, float]:
    """Return the wanted signals that can be read.

    One is left out if its scores are not there, if the chosen tool has none, or if no rival has
    one: to lead tools that the profile never met by infinity means nothing. On a menu of one tool
    nothing competes, and margins are +inf.

    Args:
        scores: `logprob` and `activation` -> (tools,) float32 in menu order, as far as read.
        chosen: index on the tools axis.
        wanted: names among `SIGNALS`; others are left out.

    Raises:
        ReadoutError: if a score is NaN.
        ShapeError: if `chosen` is no index of the scores.
    """
    found = ((name, _signal(name, scores, chosen)) for name in wanted)
    return {name: value for name, value in found if value is not None}


def menu_entropy(scores: Tensor) -> float:
    """Return the entropy in nats, in [0, ln tools], of the distribution the scores give a menu.

    Args:
        scores: (tools,) log-probabilities up to a common constant; -inf is no chance at all.

    Returns: the entropy; NaN if no score is finite.

    Source: Shannon (1948), "A mathematical theory of communication".
    """
    values: list[float] = scores.tolist()
    best = max(values)
    if not math.isfinite(best):
        return math.nan
    below = [value - best for value in values if value > -math.inf]
    total = sum(map(math.exp, below))
    return math.log(total) - sum(gap * math.exp(gap) for gap in below) / total


def _signal(name: str, scores: Mapping[str, Tensor], chosen: int) -> float | None:
    source = LOGPROB if name == ENTROPY else ACTIVATION if name == ACTIVATION_GAP else name
    values = scores.get(source)
    if values is None or not bool(torch.isfinite(values[chosen])):
        return None
    if name == ENTROPY:
        return -menu_entropy(values)
    found = top_gap(values) if name == ACTIVATION_GAP else margin(values, chosen)
    return None if math.isinf(found) and len(values) > 1 else found
