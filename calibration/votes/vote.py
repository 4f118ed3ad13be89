"""The one interface behind which every signal turns what was read of calls into risks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np

from toolguard.calibration.labels.labelled_calls import Floats
from toolguard.calibration.votes.evidence import VoteEvidence
from toolguard.guard.errors import CalibrationError

Need = Literal["states", "lens", "written", "samples", "question", "similarity"]
"""Evidence beyond the one reading pass and its scores; see `evidence.CallEvidence`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a vote takes beyond the pass in which the call is made anyway.

    Args:
        prompts: forwards over a whole prompt, a call.
        tokens: most tokens decoded one by one, a call.
        encodings: texts that another model must encode, a call.
        words: the same for people.
    """

    prompts: int = 0
    tokens: int = 0
    encodings: int = 0
    words: str = "nothing: read in the pass that makes the call"

    @property
    def is_free(self) -> bool:
        """Whether it takes nothing."""
        return not (self.prompts or self.tokens or self.encodings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "prompts": self.prompts,
            "tokens": self.tokens,
            "encodings": self.encodings,
            "words": self.words,
        }


FREE = Cost()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Risks:
    """What a vote says of some calls.

    Args:
        values: (calls,) float64, larger where a call is more likely wrong; +inf, the most risky of
            all, for a call that the vote cannot read.
        unreadable: number of calls it cannot read.
    """

    values: Floats
    unreadable: int

    @classmethod
    def of(cls, found: Iterable[float | None]) -> Self:
        """Return the risks from one value a call, None for a call that cannot be read.

        Raises:
            CalibrationError: if a value is NaN: a vote must say that it cannot read a call.
        """
        told = list(found)
        values = np.array([np.inf if value is None else value for value in told], dtype=np.float64)
        if np.isnan(values).any():
            raise CalibrationError(f"{int(np.isnan(values).sum())} of {len(told)} risks are NaN")
        return cls(values=values, unreadable=sum(value is None for value in told))


class Vote(Protocol):
    """A signal, as a way to rank calls by how likely they are wrong."""

    @property
    def name(self) -> str:
        """What `--votes` calls it."""

    @property
    def cost(self) -> Cost:
        """What it takes to have it for one call."""

    @property
    def needs(self) -> frozenset[Need]:
        """What must be gathered for it."""

    def risks(self, evidence: VoteEvidence) -> Risks:
        """Return its risks of the gathered calls, in their order."""
