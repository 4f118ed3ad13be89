"""Going on after a redirect: a name is forced, and the model writes the rest.

The name is the target's or, where the model is asked between two tools first, its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from transformers import DynamicCache

from toolguard.adapters.menu_plan import MenuPlan
from toolguard.adapters.request import Judged, Row
from toolguard.adapters.turn_prompt import TurnPrompt
from toolguard.guard.decision import Decision

REDIRECTS = 8  # redirected calls in one turn after which the rest is cut off

Continue = Callable[[TurnPrompt, "DynamicCache | None", tuple[Judged, ...]], Row]
"""Generates from a prompt whose turn ends with a forced name; given the decisions so far."""

Answer = Callable[[Decision, Sequence[int]], Decision]
"""Asks the model between two tools, given the turn up to the name; returns the decision settled."""

Cache = TypeVar("Cache", bound=DynamicCache)


def follow_redirects(
    row: Row,
    prompt: TurnPrompt,
    plan: MenuPlan,
    cache: DynamicCache | None,
    go_on: Continue,
    answer: Answer,
) -> Row:
    """Return the row with each redirected call written anew under its target's name.

    Args:
        row: as generated.
        prompt: what it was generated from.
        plan: the menu.
        cache: of this row alone, or None to compute the prompt again.
        go_on: generates the rest.
        answer: settles a decision that asks.
    """
    for _ in range(REDIRECTS):
        judged = row.pending_redirect
        if judged is None:
            return row
        kept = row.watcher.tokens[: judged.first_token]
        if judged.decision.asks:
            judged = replace(judged, decision=answer(judged.decision, kept))
            row.judged[-1] = judged
        name = judged.decision.executed_tool
        if name is None:
            return row
        forced = plan.names.paths[name]
        # The decision token is computed again, without what may have steered it.
        reused = cropped(cache, len(prompt.before) + len(kept) - 1)
        row = go_on(prompt.with_turn([*kept, *forced]), reused, tuple(row.judged))
    return row


def cropped(cache: Cache | None, length: int) -> Cache | None:
    """Return the cache with its first `length` positions, or None if it cannot give them."""
    if cache is None or length < 1 or cache.get_seq_length() < length:
        return None
    try:
        cache.crop(length - cache.get_seq_length())
    except RuntimeError:  # a sliding window has let go of positions that are needed again
        return None
    return cache
