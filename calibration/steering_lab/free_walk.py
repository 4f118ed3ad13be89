"""Which name a row writes if nothing but the model chooses its tokens.

At each token the favourite of the whole vocabulary is followed; if it goes on with no name, the row
has none. (`name_walk`, in contrast, renormalises over the menu's names, as the guard scores them.)
A row that can no longer reach the name that is wanted of it is only asked where names part: which
other name it has chosen is then clear, and whether it would end it well is nobody's question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from toolguard.calibration.reading.packed_rows import Rows
from toolguard.guard.trie import ROOT, NameTrie


@dataclass(slots=True, kw_only=True, eq=False)
class _Walker:
    """One row: what it has written, where that is in the trie, and what was not fed yet."""

    trie: NameTrie
    wanted: str | None
    tokens: list[int]
    node: int | None
    pending: list[int]

    @property
    def open(self) -> bool:
        """Whether it stands where a token must be asked for."""
        return self.node is not None and bool(self.trie.children(self.node))

    def take(self, token: int) -> None:
        """Write the model's token, and those that need not be asked for."""
        self.pending = []
        self._step(token)
        while self.node is not None and not self._at_stake:
            kids = self.trie.children(self.node)
            if len(kids) != 1:
                return
            self._step(kids[0])

    @property
    def _at_stake(self) -> bool:
        if self.wanted is None or self.node is None:
            return True
        return self.trie.names.index(self.wanted) in self.trie.names_below(self.node)

    def _step(self, token: int) -> None:
        self.tokens.append(token)
        self.pending.append(token)
        self.node = None if self.node is None else self.trie.advance(self.node, token)


def walk_freely(
    rows: Rows,
    logits: Tensor,
    tries: Sequence[NameTrie],
    openings: Sequence[Sequence[int]],
    wanted: Sequence[str | None],
) -> list[list[int]]:
    """Return what each row writes behind its opening, to the end of a name or off all of them.

    Args:
        rows: stand at the ends of their openings; they are fed what the walk needs.
        logits: (rows, vocab) there.
        tries: each row's names.
        openings: what of a name each row has written.
        wanted: the name each row should end in; None if every token counts, whatever the name.
    """
    walkers = [
        _Walker(trie=trie, wanted=name, tokens=[], node=node_after(trie, opening), pending=[])
        for trie, opening, name in zip(tries, openings, wanted, strict=True)
    ]
    asked = [row for row, walker in enumerate(walkers) if walker.open]
    logits = logits[asked]
    while asked:
        for row, token in zip(asked, logits.argmax(dim=1).tolist(), strict=True):
            walkers[row].take(token)
        asked = [row for row in asked if walkers[row].open]
        if asked:
            logits = rows.feed(asked, [walkers[row].pending for row in asked])
    return [walker.tokens for walker in walkers]


def node_after(trie: NameTrie, tokens: Sequence[int]) -> int | None:
    """Return the node that `tokens` lead to from the root, or None if they leave all names."""
    node: int | None = ROOT
    for token in tokens:
        node = None if node is None else trie.advance(node, token)
    return node


def name_begun_by(trie: NameTrie, tokens: Sequence[int]) -> str | None:
    """Return the name that `tokens` begin with, its terminator included, or None."""
    node = ROOT
    for token in tokens:
        reached = trie.advance(node, token)
        if reached is None:
            return None
        node = reached
        if (name := trie.name_at(node)) is not None:
            return name
    return None


def name_singled_out_by(trie: NameTrie, tokens: Sequence[int]) -> str | None:
    """Return the only name that begins as `tokens` do, as far as they keep to one; else None.

    That is a name won at each place where names part, whether or not it was written to its end.
    """
    node = ROOT
    for token in tokens:
        reached = trie.advance(node, token)
        if reached is None:
            break
        node = reached
    below = trie.names_below(node)
    return trie.names[below[0]] if len(below) == 1 else None
