"""Votes read off each call for itself, with nothing fitted on the calls they are measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from toolguard.calibration.votes.evidence import CallEvidence, VoteEvidence
from toolguard.calibration.votes.vote import FREE, Cost, Need, Risks
from toolguard.guard.readout import margin
from toolguard.guard.signals import ACTIVATION, LOGPROB, menu_entropy

Reading = Callable[[CallEvidence], float | None]
"""Gives a call's risk, or None if it cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingVote:
    """A risk read off each call for itself."""

    name: str
    read: Reading
    cost: Cost = FREE
    needs: frozenset[Need] = frozenset()

    def risks(self, evidence: VoteEvidence) -> Risks:
        """Return the risks of the calls."""
        return Risks.of(self.read(call) for call in evidence.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomVote:
    """Risks drawn at random: what no vote may fall below."""

    name: str = "random"
    cost: Cost = FREE
    needs: frozenset[Need] = frozenset()

    def risks(self, evidence: VoteEvidence) -> Risks:
        """Return numbers that the seed decides."""
        drawn = np.random.default_rng(evidence.seed).random(len(evidence.calls))
        return Risks(values=drawn, unreadable=0)


def logprob_risk(call: CallEvidence) -> float | None:
    """Return the negated whole-name log-prob margin of the chosen tool."""
    return _negated(call.judged.margins.get(LOGPROB))


def first_token_risk(call: CallEvidence) -> float | None:
    """Return the negated log-prob margin of the first token that tells the names apart.

    It sees no difference between names that go on alike behind that token. On a menu of one tool
    nothing competes.
    """
    branch = call.observation.branch
    if branch is None:
        return -np.inf if len(call.observation.menu_names) == 1 else None
    return -margin(branch.log_probs.float(), branch.chosen)


def entropy_risk(call: CallEvidence) -> float:
    """Return the entropy of the whole-name distribution over the menu, in nats."""
    return menu_entropy(call.observation.scores)


def activation_risk(call: CallEvidence) -> float | None:
    """Return the negated margin of the chosen tool by the profile's readout."""
    return _negated(call.judged.margins.get(ACTIVATION))


def combined_risk(call: CallEvidence) -> float | None:
    """Return the profile's P(wrong)."""
    return call.judged.p_wrong


def nll_risk(call: CallEvidence) -> float | None:
    """Return the mean negative log-likelihood of the name and the arguments' values.

    Source: the restriction to tokens that carry meaning, arXiv 2604.22985.
    """
    return None if call.written is None else call.written.nll


def length_risk(call: CallEvidence) -> float | None:
    """Return the number of tokens of the call."""
    return None if call.written is None else float(call.written.tokens)


def disagreement_risk(call: CallEvidence) -> float | None:
    """Return the share of sampled calls that do not name the chosen tool.

    Source: Wang et al. (2023), "Self-consistency improves chain of thought reasoning".
    """
    if not call.samples:
        return None
    return sum(name != call.judged.chosen for name in call.samples) / len(call.samples)


def no_risk(call: CallEvidence) -> float | None:
    """Return the log-odds that the model, asked whether the call is right, says no.

    Source: P(True), Kadavath et al. (2022), "Language models (mostly) know what they know".
    """
    return _negated(call.yes)


def similarity_risk(call: CallEvidence) -> float | None:
    """Return the negated lead of the chosen tool's text in similarity to the query."""
    if call.similarity is None:
        return None
    chosen = call.observation.chosen
    rivals = call.similarity[:chosen] + call.similarity[chosen + 1 :]
    return max(rivals, default=-np.inf) - call.similarity[chosen]


def lens_risk(call: CallEvidence) -> float | None:
    """Return in how many blocks of the later half the logit lens prefers another name's token."""
    if call.lens is None:
        return None
    late = call.lens[len(call.lens) // 2 :]
    return float((late <= 0).sum())


def _negated(value: float | None) -> float | None:
    return None if value is None else -value
