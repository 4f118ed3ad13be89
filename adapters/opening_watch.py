"""Where a turn's first call could start, and what the model's state was there.

That is where the answer begins: at the turn's very start, or after the thoughts it begins with.
Blanks may stand in between, so the state is read at each position until the answer has begun, and
the last reading counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from toolguard.adapters.wire.turn import begins_thought_mark, start_of_answer
from toolguard.guard.answer_gate import OpeningEvidence, opening_log_odds
from toolguard.guard.errors import ToolguardError
from toolguard.guard.guard import fault_text

_MARK_ENDS = (">", "]")  # a thought's closing mark ends with one of these


class OpeningWatcher:
    """Follows one row up to the beginning of its answer.

    Args:
        text: gives the turn's text so far, special tokens included.
        tokens: ids that open a call, see `opening_tokens`.
    """

    __slots__ = ("_begun", "_hidden", "_text", "_thinking", "_tokens", "at_opening", "evidence")

    def __init__(self, text: Callable[[], str], tokens: Sequence[int]) -> None:
        self._text, self._tokens = text, tokens
        self._begun = self._thinking = False
        self._hidden: Tensor | None = None
        self.at_opening = False
        self.evidence: OpeningEvidence | None = None
        self.look()

    def feed(self, piece: str) -> None:
        """Take note of a token with text `piece`, which the turn's text holds already."""
        if self._begun or (self._thinking and not any(end in piece for end in _MARK_ENDS)):
            return
        self.look()

    def look(self) -> None:
        """Look at the turn's text: is it at its answer's beginning, before it, or beyond?"""
        text = self._text()
        start = start_of_answer(text)
        rest = "" if start is None else text[start:]
        self._thinking = start is None
        self.at_opening = start is not None and not rest
        self._begun = bool(rest) and not begins_thought_mark(rest)

    def keep(self, hidden: Tensor) -> None:
        """Take the state (dim,) at the row's last position."""
        self._hidden = hidden.detach().clone()

    def close(self, logits: Tensor) -> None:
        """Make the evidence of the state kept and the logits (vocab,) of the same position."""
        try:
            log_odds = opening_log_odds(logits, self._tokens)
        except ToolguardError as error:
            self.fail(fault_text(error))
        else:
            self.evidence = OpeningEvidence(hidden=self._hidden, log_odds=log_odds)

    def fail(self, why: str) -> None:
        """Note that the position could not be read."""
        self.evidence = OpeningEvidence(fault=why)
