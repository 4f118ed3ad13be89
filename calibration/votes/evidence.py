"""What was gathered of the calls that votes are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from toolguard.calibration.labels.judged_calls import JudgedCall
from toolguard.calibration.labels.labelled_calls import Booleans
from toolguard.calibration.reading.collect import Observation
from toolguard.guard.tools import ToolCall

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCall:
    """The greedy call of a record, its name forced to be the one chosen.

    Args:
        call: the call; None if what was written is not a whole one.
        tokens: how many tokens it takes, from the decision token on.
        nll: mean negative log-likelihood in nats of the tokens that spell the name and the values
            of the arguments, >= 0; None if there is no whole call.
    """

    call: ToolCall | None
    tokens: int
    nll: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CallEvidence:
    """What is known of one call; what no vote asked for is None.

    Args:
        judged: the call as the guard reads it.
        observation: what was read at the decision token, its hidden states left out.
        state: (dim,) float32 hidden state of the late block.
        lens: (blocks,) float32 margins of the chosen name's token by the logit lens; None too if
            the decision token does not choose between names.
        written: the greedy call.
        samples: name of the tool in each sampled call; None where there is none.
        yes: log-odds that the model, asked, calls the call right.
        similarity: (names,) cosine of the query and each tool's text by a sentence encoder.
    """

    judged: JudgedCall
    observation: Observation
    state: Tensor | None = None
    lens: Tensor | None = None
    written: WrittenCall | None = None
    samples: tuple[str | None, ...] | None = None
    yes: float | None = None
    similarity: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VoteEvidence:
    """The calls together.

    Args:
        calls: what is known of each.
        folds: (calls,) cross-fitting fold of each, near duplicates in one; None if the calls do
            not divide into two.
        seed: of what is drawn at random.
        with_arguments: whether calls carry arguments in the model's format.
    """

    calls: Sequence[CallEvidence]
    folds: Indices | None
    seed: int = 0
    with_arguments: bool = True

    @property
    def wrong(self) -> Booleans:
        """(calls,) whether the model chose a wrong tool."""
        return np.array([call.judged.wrong for call in self.calls], dtype=bool)
