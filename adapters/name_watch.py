"""Following one row of generated tokens: where a tool's name opens, goes on, and is complete.

Two things are followed side by side. The text says what a parser will read, so it alone decides
which name was written. The tokens say where in the menu's trie the model stands, which is what
scores and masks need; a name may be spelled by tokens that no path of the trie has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolguard.adapters.decision_token import NameTokens
from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.turn import NameSpan
from toolguard.guard.trie import ROOT, NameTrie

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME_LIMIT = 128  # tokens after which an unfinished name is judged as it stands
_OPENING_REACH = 64  # characters before a name in which its opening is looked for


class TokenTexts:
    """What tokens say, and which ones may complete the opening of a name; each worked out once.

    Args:
        tokenizer: decodes; the text of single tokens is good enough to notice an opening, not to
            spell a name.
        wire: the format of calls; where its calls begin with a mark in brackets, no name opens
            before the mark, `tag`, has been written.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, wire: WireFormat) -> None:
        self.tokenizer = tokenizer
        self.wire = wire
        first_line = wire.prefix().split("\n")[0]
        self.tag = first_line if len(first_line) > 1 and first_line[-1] in ">]" else ""
        self._pieces: dict[int, tuple[str, bool]] = {}

    def piece(self, token: int) -> tuple[str, bool]:
        """Return a token's text, and whether it can complete the opening of a name."""
        found = self._pieces.get(token)
        if found is None:
            text = self.join([token])
            found = self._pieces[token] = (text, self.wire.may_open(text))
        return found

    def join(self, tokens: Sequence[int]) -> str:
        """Return the text of several tokens, special tokens included."""
        return str(
            self.tokenizer.decode(
                list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NameWritten:
    """A tool name is complete.

    Args:
        name: un-escaped, exactly as decoded.
        start: character offset of its first character in the turn.
        first_token: index, in the turn's tokens, of the first token after the decision token.
        canonical: whether the tokens since then are the menu's own spelling of this name; the last
            one may end differently, as what follows a name fuses with its terminator.
        calibrated_token: whether the name opened at the token that calibration read.
    """

    name: str
    start: int
    first_token: int
    canonical: bool
    calibrated_token: bool


class NameWatcher:
    """The state of one row of one turn.

    Args:
        texts: decodes tokens.
        trie: the menu's names; walked only while the model spells a name canonically.
        names: their tokens, for the decision token.
        lead: text of the turn that stands in the prompt, such as an opened thought.
    """

    __slots__ = (
        "_calibrated",
        "_fused",
        "_in_name",
        "_lead",
        "_names",
        "_names_met",
        "_opening",
        "_searched",
        "_start",
        "_tagged",
        "_texts",
        "_trie",
        "_window",
        "first_token",
        "node",
        "tokens",
    )

    def __init__(
        self, texts: TokenTexts, trie: NameTrie, names: NameTokens, lead: str = ""
    ) -> None:
        self._texts, self._trie, self._names, self._lead = texts, trie, names, lead
        self.tokens: list[int] = []
        self.node: int | None = None  # where the tokens stand in the trie; None = nowhere
        self.first_token = 0
        self._in_name = False
        self._start = -1
        self._calibrated = False
        self._searched = 0
        self._names_met = 0
        self._window = ""  # last characters written, for the mark of a call
        self._tagged = False
        opening = texts.wire.prefix()
        self._opening = "".join(opening.split())
        # Some tokenizer joins a name with the sign before it: the decision is made before the sign.
        self._fused = bool(opening) and not texts.join(names.prefix_ids).endswith(opening)
        self._read()
        if not self._in_name:
            self._expect_name()

    @property
    def text(self) -> str:
        """The turn's text so far, special tokens included."""
        return self._lead + self._texts.join(self.tokens)

    def text_before(self, ends: frozenset[int]) -> str:
        """Return the turn's text without a last token that is one of `ends`."""
        ended = bool(self.tokens) and self.tokens[-1] in ends
        return self._lead + self._texts.join(self.tokens[:-1] if ended else self.tokens)

    @property
    def at_decision(self) -> bool:
        """Whether the last token is a decision token: the next forward's last position is read."""
        return self.node == ROOT and self.first_token == len(self.tokens)

    @property
    def certain(self) -> bool:
        """Whether a name is bound to follow: a turn's very start may as well become an answer."""
        return self._in_name or self.first_token > 0

    def feed(self, token: int) -> Sequence[NameWritten]:
        """Take the next token; return the names that it completes."""
        self.tokens.append(token)
        if self.node is not None:
            self.node = self._trie.advance(self.node, token)
            if self._in_name and self.node is not None and self._trie.name_at(self.node) is None:
                return ()  # a canonical spelling goes on
        found: Sequence[NameWritten] = ()
        if self._may_open(token) or self._in_name:
            found = self._read()
        if not self._in_name:
            self._expect_name()
        return found

    def prime(self, tokens: Sequence[int]) -> Sequence[NameWritten]:
        """Take tokens that stand in the prompt already; return the names complete in them."""
        self._in_name, self.node = False, None
        self.tokens.extend(tokens)
        found = self._read()
        if not self._in_name:
            self._expect_name()
        return found

    def end(self) -> Sequence[NameWritten]:
        """Return the name that the turn's last token ends, in a format where a turn is a name."""
        if not self._in_name or self._texts.wire.prefix():
            return ()
        text = self._lead + self._texts.join(self.tokens[:-1])
        name = text[self._start :].rstrip()
        return (self._complete(name, self._start + len(name)),)

    def skip_name(self) -> None:
        """Go on after a name that was forced and needs no verdict."""
        self._in_name, self.node = False, None
        text = self.text
        self._searched = len(text)
        self._names_met += 1
        self._look_for_tag(text)

    def withdraw(self) -> None:
        """Forget the last token, which completed a name that may not stand.

        It may hold more than the name's end: `()]` is a whole list of arguments.
        """
        self.tokens.pop()

    def drop_last(self, token: int) -> None:
        """Forget a run of `token` at the end: padding after another criterion ended the row."""
        while self.tokens and self.tokens[-1] == token:
            self.tokens.pop()

    def _may_open(self, token: int) -> bool:
        piece, opens = self._texts.piece(token)
        tag = self._texts.tag
        if not self._tagged:
            window = self._window + piece
            self._tagged = tag in window
            self._window = window[1 - len(tag) :] if tag else ""
        return opens and self._tagged

    def _expect_name(self) -> None:
        """Stand at the trie's root if a fused name may come, though no name has opened yet."""
        if not self._fused:
            self.node = None
            return
        prefix = self._names.prefix_ids
        here = self.tokens[-len(prefix) :] == list(prefix) if prefix else not self.tokens
        if here:
            self.node, self.first_token = ROOT, len(self.tokens)

    def _read(self) -> Sequence[NameWritten]:
        """Look at the text: take up a name that opened, return those that are complete."""
        text = self.text
        found: list[NameWritten] = []
        while True:
            span = self._texts.wire.find_name(text, self._searched)
            if span is None:  # what looked like an opening was prose: no parser reads a call here
                self._in_name, self.node = False, None if self._in_name else self.node
                self._look_for_tag(text)
                return found
            if not self._in_name or span.start != self._start:
                self._begin(span, text)
            if span.end is not None and span.name is not None:
                found.append(self._complete(span.name, span.end))
            elif len(self.tokens) - self.first_token > NAME_LIMIT:
                found.append(self._complete(text[span.start :], len(text)))
            else:
                break
        if self.node is not None and self._trie.name_at(self.node) is not None:
            self.node = None  # the menu's name is spelled, but the text says that it goes on
        return found

    def _look_for_tag(self, text: str) -> None:
        tag = self._texts.tag
        rest = text[self._searched :]
        self._tagged, self._window = tag in rest, rest[1 - len(tag) :] if tag else ""

    def _begin(self, span: NameSpan, text: str) -> None:
        self._in_name, self._start = True, span.start
        if self._fused and self.node is not None:
            self._calibrated = True  # the tokens were met before the text opened
            return
        here = not self._fused and span.end is None and span.start == len(text)
        self.node = ROOT if here else None
        self.first_token = len(self.tokens)
        self._calibrated = here and self._at_calibrated_token(text[: span.start])

    def _at_calibrated_token(self, before: str) -> bool:
        prefix = self._names.prefix_ids
        if not prefix:
            return True
        opening = "".join(before[-_OPENING_REACH:].split())
        if self._names_met:  # a later call may follow another separator
            return opening.endswith((self._opening, ","))
        # Arguments before the name would be evidence that calibration never had.
        return opening.endswith(self._opening) and self.tokens[-1:] == [prefix[-1]]

    def _complete(self, name: str, end: int) -> NameWritten:
        written = NameWritten(
            name=name,
            start=self._start,
            first_token=self.first_token,
            canonical=self._is_canonical(name),
            calibrated_token=self._calibrated,
        )
        self._in_name, self.node = False, None
        self._searched = max(end, self._start + 1)  # an empty name must not be found again
        self._names_met += 1
        return written

    def _is_canonical(self, name: str) -> bool:
        path = self._names.paths.get(name)
        spelled = self.tokens[self.first_token :]
        return path is not None and len(spelled) == len(path) and spelled[:-1] == list(path[:-1])
