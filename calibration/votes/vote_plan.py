"""Which of the votes asked for can be had here, and what must be gathered for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toolguard.adapters.loading import LoadedModel
from toolguard.calibration.votes.catalogue import SAMPLES, choose_votes
from toolguard.calibration.votes.self_question import first_tokens
from toolguard.calibration.votes.similarity import Encoder, load_encoder
from toolguard.calibration.votes.vote import Need, Vote
from toolguard.guard.errors import ConfigError, UnsupportedModel

_ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class VotePlan:
    """Votes to measure.

    Args:
        votes: in the order in which they are shown.
        encode: the sentence encoder, if a vote needs one.
        left_out: name -> why a vote cannot be had.
    """

    votes: tuple[Vote, ...]
    encode: Encoder | None
    left_out: Mapping[str, str]

    @property
    def needs(self) -> frozenset[Need]:
        """What must be gathered."""
        return frozenset(need for vote in self.votes for need in vote.needs)


def plan_votes(
    loaded: LoadedModel, text: str, *, samples: int = SAMPLES, embedding_model: str | None = None
) -> VotePlan:
    """Return the votes that `text` means; "all" leaves out those that cannot be had.

    Args:
        loaded: the model.
        text: as `choose_votes` takes it.
        samples: sampled calls that self-consistency looks at.
        embedding_model: see `load_encoder`.

    Raises:
        ConfigError: if a vote does not exist, or what it needs is not installed.
        UnsupportedModel: if a vote cannot be had from this model.
    """
    encode: Encoder | None = None
    kept: list[Vote] = []
    left_out: dict[str, str] = {}
    for vote in choose_votes(text, samples):
        try:
            if "question" in vote.needs:
                first_tokens(loaded.tokenizer)
            if "similarity" in vote.needs:
                encode = encode or load_encoder(embedding_model)
        except (ConfigError, UnsupportedModel) as error:
            if text != _ALL:
                raise
            left_out[vote.name] = error.message
        else:
            kept.append(vote)
    return VotePlan(votes=tuple(kept), encode=encode, left_out=left_out)
