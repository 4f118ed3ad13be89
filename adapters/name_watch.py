"""Following one row of generated tokens: where a tool's name opens, how it goes on, when it is complete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolguard.adapters.decision_token import NameTokens
from toolguard.adapters.wire.base import WireFormat
from toolguard.guard.trie import ROOT, NameTrie

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME_LIMIT = 128  # tokens after which an unfinished name is judged as it stands


class TokenTexts:
    """The text of single tokens, decoded once each; good enough to notice a call opening, not to spell a name."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def piece(self, token: int) -> str:
        """Return the text of one token, special tokens included."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self.join([token])
        return found

    def join(self, tokens: Sequence[int]) -> str:
        """Return the text of several tokens, special tokens included."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class NameWritten:
    """A tool name is complete.

    Args:
        name: un-escaped, exactly as decoded.
        start: character offset of its first character in the turn.
        first_token: index, in the turn's tokens, of the first token after the decision token.
    """

    name: str
    start: int
    first_token: int


class NameWatcher:
    """The state of one row of one turn.

    Args:
        texts: decodes tokens.
        wire: tells where names stand.
        trie: the menu's names; walked only while the model spells a name canonically.
        names: their tokens, for the decision token.
        lead: text of the turn that stands in the prompt, such as an opened thought.
    """

    __slots__ = ("_at_start", "_lead", "_names", "_texts", "_trie", "_wire", "first_token", "in_name", "node", "off_position",
                 "start", "tokens", "_searched")

    def __init__(self, texts: TokenTexts, wire: WireFormat, trie: NameTrie, names: NameTokens, lead: str = "") -> None:
        self._texts, self._wire, self._trie, self._names, self._lead = texts, wire, trie, names, lead
        self.tokens: list[int] = []
        self.in_name = False
        self.node: int | None = None  # where the name stands in the trie; None = spelled another way
        self.off_position = False  # the name opened elsewhere than at the calibrated decision token
        self.start = -1
        self.first_token = 0
        self._searched = 0
        self._open(lead)

    @property
    def text(self) -> str:
        """The turn's text so far, special tokens included."""
        return self._lead + self._texts.join(self.tokens)

    @property
    def at_decision(self) -> bool:
        """Whether the last token is a decision token: the next forward's last position is read."""
        return self.in_name and self.node == ROOT and self.first_token == len(self.tokens)

    def feed(self, token: int) -> NameWritten | None:
        """Take the next token; return the name that it completes, if any."""
        self.tokens.append(token)
        if self.in_name:
            return self._go_on(token)
        if self._wire.may_open(self._texts.piece(token)):
            return self._open(self.text)
        return None

    def prime(self, tokens: Sequence[int]) -> None:
        """Take tokens that stand in the prompt already; only a name still open at their end will be reported."""
        self.tokens.extend(tokens)
        text = self.text
        while (span := self._wire.find_name(text, self._searched)) and span.end is not None:
            self._searched = span.end
        self.in_name = False
        self._open(text)

    def skip_name(self) -> None:
        """Go on after a name that was forced and needs no verdict."""
        self.in_name = False
        self._searched = len(self.text)

    def _open(self, text: str) -> NameWritten | None:
        span = self._wire.find_name(text, self._searched)
        if span is None:
            return None
        first_call = self._searched == 0
        self.in_name, self.start, self.first_token = True, span.start, len(self.tokens)
        here = span.end is None and span.start == len(text)
        self.node = ROOT if here else None
        self.off_position = not (here and self._at_calibrated_token(first_call=first_call))
        if span.end is not None and span.name is not None:
            return self._written(span.name, span.end)
        return None

    def _at_calibrated_token(self, *, first_call: bool) -> bool:
        # Later calls of a turn may follow another separator; the first must meet calibration's token.
        prefix = self._names.prefix_ids
        return not first_call or not prefix or (bool(self.tokens) and self.tokens[-1] == prefix[-1])

    def _go_on(self, token: int) -> NameWritten | None:
        if self.node is not None:
            self.node = self._trie.advance(self.node, token)
            if self.node is not None and self._trie.name_at(self.node) is None:
                return None
        # A complete path, or a spelling that no path has: only the decoded characters count.
        text = self.text
        span = self._wire.find_name(text, self.start)
        self.node = None if self.node is None or span is None or span.name is None else self.node
        if span is None or span.start != self.start:
            self.in_name = False  # what looked like an opening was prose: no parser will read a call here
            return None
        if span.name is not None and span.end is not None:
            return self._written(span.name, span.end)
        if len(self.tokens) - self.first_token > NAME_LIMIT:
            return self._written(text[self.start :], len(text))
        return None

    def _written(self, name: str, end: int) -> NameWritten:
        self.in_name = False
        self._searched = end
        return NameWritten(name=name, start=self.start, first_token=self.first_token)
