"""Whether the model should call at all: read where a call could start, before any name.

A model that starts a call may be wrong to: the user may want an answer in words, or something may
have to be asked first. Both are told from the state at the last position before the call's opening
and from how likely the opening was; the same forward passes give them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from toolguard.guard.calibrator import Calibrator
from toolguard.guard.errors import ReadoutError, ShapeError
from toolguard.guard.profile_meta import CallOrAnswer, NoCallKind, RiskEntry
from toolguard.guard.readout import Readout
from toolguard.guard.trie import ROOT, NameTrie

__all__ = [
    "AnswerGate",
    "NoCallKind",
    "OpeningEvidence",
    "opening_log_odds",
    "opening_tokens",
    "threshold_at",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpeningEvidence:
    """What decoding read where the turn's first call could start.

    Args:
        hidden: (dim,) block output at the gate's layer; None if not read.
        log_odds: of the opening of a call against everything else, natural log.
        fault: why something is missing; empty if nothing is.
    """

    hidden: Tensor | None = None
    log_odds: float = math.nan
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnswerGate:
    """Tells from an opening whether an answer, or a question, should stand in place of the call.

    Args:
        section: what the profile says of it.
        readout: linear discriminant of the turns with a call and of each kind without, in the
            order of `section.kinds`.

    Raises:
        ShapeError: if the readout has another number of rows.
    """

    section: CallOrAnswer
    readout: Readout
    _calibrators: Mapping[NoCallKind, Calibrator] = field(init=False)

    def __post_init__(self) -> None:
        if self.readout.tools != 1 + len(self.section.kinds):
            raise ShapeError(
                f"{self.readout.tools} means do not fit a call and {len(self.section.kinds)} kinds"
            )
        made = {kind: Calibrator.from_dict(e.calibrator) for kind, e in self.section.kinds.items()}
        object.__setattr__(self, "_calibrators", made)

    @property
    def kinds(self) -> tuple[NoCallKind, ...]:
        """What it can tell from a call."""
        return tuple(self.section.kinds)

    def margins(self, hidden: Tensor) -> Tensor:
        """Return how much nearer each state is to a call than to each kind of turn without one.

        Args:
            hidden: (rows, dim), any float dtype and device.

        Returns: (rows, kinds) float32, natural log units.

        Raises:
            ReadoutError: if a margin is not finite.
            ShapeError: if `hidden` has another width.
        """
        scores = self.readout.scores(hidden)
        return scores[:, :1] - scores[:, 1:]

    def read(self, opening: OpeningEvidence) -> dict[str, float]:
        """Return, for each kind, P(this should stand in place of the call) in [0, 1].

        Raises:
            ReadoutError: if the opening was not read, or is not finite.
            ShapeError: if the state has another width.
        """
        if opening.fault or opening.hidden is None:
            raise ReadoutError(opening.fault or "the opening of the call was not read")
        found = self.margins(opening.hidden[None])[0].tolist()
        return {
            kind: self._calibrators[kind].probability(
                {"logprob": opening.log_odds, "activation": margin}
            )
            for kind, margin in zip(self.kinds, found, strict=True)
        }

    def probabilities(
        self, kind: NoCallKind, log_odds: ArrayLike, margins: ArrayLike
    ) -> NDArray[np.float64]:
        """Return (rows,) P(this kind should stand in place of the call), as `read` gives it.

        Args:
            kind: one of `kinds`.
            log_odds: (rows,) of the opening.
            margins: (rows,) the kind's column of `margins`.

        Raises:
            ReadoutError: if a value is NaN.
            ShapeError: if the lengths differ.
        """
        return self._calibrators[kind].probabilities({"logprob": log_odds, "activation": margins})

    def threshold(self, kind: NoCallKind, target: float) -> float | None:
        """Return the largest probability at which a call goes on; None if none does."""
        return threshold_at(self.section.kinds[kind].risk, target)


def threshold_at(risk: Sequence[RiskEntry], target: float) -> float | None:
    """Return the threshold of the strictest wanted entry: the last one at or below `target`."""
    stored = [entry for entry in risk if entry.target <= target]
    return stored[-1].threshold if stored else None


def opening_tokens(prefix_ids: Sequence[int], trie: NameTrie) -> tuple[int, ...]:
    """Return the token that begins a call's opening; without one, those that begin a name."""
    return tuple(prefix_ids[:1]) or trie.children(ROOT)


def opening_log_odds(logits: Tensor, tokens: Sequence[int]) -> float:
    """Return the log-odds of `tokens` against every other token, natural log; may be infinite.

    Args:
        logits: (vocab,) any float dtype and device.
        tokens: distinct ids.

    Raises:
        ReadoutError: if the logits do not determine it.
        ShapeError: if `logits` is not one row.
    """
    if logits.ndim != 1:
        raise ShapeError(f"expected logits (vocab,), found {tuple(logits.shape)}")
    values = logits.to(torch.float64)
    places = torch.tensor(list(tokens), device=logits.device)
    inside = values[places].logsumexp(0)
    outside = values.index_fill(0, places, -torch.inf).logsumexp(0)
    found = float(inside - outside)
    if math.isnan(found):
        raise ReadoutError("the logits where a call could start are not finite")
    return found
