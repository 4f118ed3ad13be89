"""All votes there are, and which of them are meant by free, all, or a list of names."""

from __future__ import annotations

from collections.abc import Sequence

from toolguard.calibration.votes.cross_fitting import FittedVote
from toolguard.calibration.votes.mean_votes import PAPER_QUERIES, mean_fit
from toolguard.calibration.votes.probe import probe_fit
from toolguard.calibration.votes.reading_votes import (
    RandomVote,
    ReadingVote,
    activation_risk,
    combined_risk,
    disagreement_risk,
    entropy_risk,
    first_token_risk,
    length_risk,
    lens_risk,
    logprob_risk,
    nll_risk,
    no_risk,
    similarity_risk,
)
from toolguard.calibration.votes.vote import Cost, Vote
from toolguard.calibration.votes.written_calls import CALL_TOKENS
from toolguard.guard.errors import ConfigError
from toolguard.guard.signals import ACTIVATION, ENTROPY, LOGPROB

BASELINE = LOGPROB
COMBINED = "combined"
SAMPLES = 5
_NAME_TOKENS = 16  # a sampled call is written up to the end of its name

_WRITTEN = Cost(
    tokens=CALL_TOKENS, words="the call itself: no verdict before its arguments are written"
)
_ASKED = Cost(prompts=1, words="one more prompt, with a question at its end")
_ENCODED = Cost(encodings=1, words="a sentence encoder's pass over the query")

_FIXED: tuple[Vote, ...] = (
    ReadingVote(name=LOGPROB, read=logprob_risk),
    ReadingVote(name="first_token", read=first_token_risk),
    ReadingVote(name=ENTROPY, read=entropy_risk),
    ReadingVote(name=ACTIVATION, read=activation_risk),
    ReadingVote(name=COMBINED, read=combined_risk),
    ReadingVote(name="logit_lens", read=lens_risk, needs=frozenset({"lens"})),
    FittedVote(name="lens_probe", fit=probe_fit(lambda call: call.lens), needs=frozenset({"lens"})),
    FittedVote(name="probe", fit=probe_fit(lambda call: call.state), needs=frozenset({"states"})),
    FittedVote(
        name="cosine_3",
        fit=mean_fit("cosine", queries=PAPER_QUERIES),
        needs=frozenset({"states"}),
    ),
    FittedVote(name="cosine", fit=mean_fit("cosine"), needs=frozenset({"states"})),
    FittedVote(name="lda", fit=mean_fit("lda"), needs=frozenset({"states"})),
    ReadingVote(name="nll", read=nll_risk, cost=_WRITTEN, needs=frozenset({"written"})),
    ReadingVote(name="call_length", read=length_risk, cost=_WRITTEN, needs=frozenset({"written"})),
    ReadingVote(name="p_true", read=no_risk, cost=_ASKED, needs=frozenset({"question"})),
    ReadingVote(
        name="embedding", read=similarity_risk, cost=_ENCODED, needs=frozenset({"similarity"})
    ),
    RandomVote(),
)


def all_votes(samples: int = SAMPLES) -> tuple[Vote, ...]:
    """Return every vote, in the order in which they are shown.

    Args:
        samples: sampled calls that self-consistency looks at.
    """
    agreement = ReadingVote(
        name="self_consistency",
        read=disagreement_risk,
        cost=Cost(
            prompts=1,
            tokens=samples * _NAME_TOKENS,
            words=f"one prompt that {samples} samples share, and a name for each",
        ),
        needs=frozenset({"samples"}),
    )
    return (*_FIXED[:-1], agreement, _FIXED[-1])


def choose_votes(text: str, samples: int = SAMPLES) -> tuple[Vote, ...]:
    """Return the votes that `text` means, the log-prob margin always first.

    Args:
        text: "free", those that cost nothing beyond the pass that makes the call; "all"; or names
            with commas between them.
        samples: sampled calls that self-consistency looks at.

    Raises:
        ConfigError: for a name that no vote has.
    """
    votes = all_votes(samples)
    if text == "all":
        return votes
    if text == "free":
        return tuple(vote for vote in votes if vote.cost.is_free)
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    unknown = sorted(set(wanted) - {vote.name for vote in votes})
    if unknown or not wanted:
        raise ConfigError(
            f"no vote is called {', '.join(unknown)}" if unknown else "--votes names no vote",
            hint=f"pass free, all, or some of {', '.join(names_of(votes))}",
        )
    return tuple(vote for vote in votes if vote.name in {BASELINE, *wanted})


def names_of(votes: Sequence[Vote]) -> tuple[str, ...]:
    """Return the votes' names, in their order."""
    return tuple(vote.name for vote in votes)
