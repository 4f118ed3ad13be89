"""The greedy walk from the decision token to a whole name, for many rows at once.

At each branch the model's distribution is renormalised over the names still possible and its
favourite is followed; where only one token can come next, none is asked for. Rows that have reached
a name drop out, so menus whose names begin apart need no forward at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from toolguard.calibration.reading.packed_rows import Rows
from toolguard.guard.errors import ReadoutError
from toolguard.guard.trie import ROOT, NameTrie, branch_log_probs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FirstBranch:
    """The first place on the chosen name's path where another name of the menu parts from it.

    Args:
        at_decision: whether that is the decision token itself; else all names share tokens first.
        token_ids: (children,) int64, the tokens that may follow there.
        log_probs: (children,) float64 on the CPU, renormalised over them.
        chosen: place of the chosen name's token among them.
    """

    at_decision: bool
    token_ids: Tensor
    log_probs: Tensor
    chosen: int

    def detached(self) -> FirstBranch:
        """Return a copy that shares no memory with the pass it was read in."""
        return replace(self, log_probs=self.log_probs.clone())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NameChoice:
    """What the model would call.

    Args:
        chosen: index of the name the greedy walk ends at.
        scores: (names,) float32 on the CPU, as `NameTrie.scores_after` defines them.
        branch: where the names first part; None on a menu of one name.
    """

    chosen: int
    scores: Tensor
    branch: FirstBranch | None


@dataclass(slots=True, kw_only=True, eq=False)
class _Walker:
    """One row on its way: where it stands, and what must be fed to read that node."""

    label: str
    trie: NameTrie
    node: int = ROOT
    pending: list[int] = field(default_factory=list)
    visited: dict[int, Tensor] = field(default_factory=dict)

    def step(self, token: int) -> None:
        """Go to the child `token`; it must be fed before the next reading."""
        reached = self.trie.advance(self.node, token)
        if reached is None:
            raise ReadoutError(f"token {token} is no child of node {self.node}", node=self.node)
        self.node = reached
        self.pending.append(token)

    def follow_chain(self) -> None:
        """Go on for as long as only one token can come next."""
        while len(children := self.trie.children(self.node)) == 1:
            self.step(children[0])

    @property
    def arrived(self) -> bool:
        return not self.trie.children(self.node)


def walk_names(
    rows: Rows, logits: Tensor, tries: Sequence[NameTrie], labels: Sequence[str]
) -> list[NameChoice]:
    """Return each row's greedy whole-name choice and its names' scores.

    Args:
        rows: stand at their decision tokens; they are fed what the walk needs.
        logits: (rows, vocab) at the decision tokens.
        tries: each row's names.
        labels: what to call each row in an error: the record's id.

    Raises:
        ReadoutError: if a name's logit is not finite; the row is in the field `record_id`.
    """
    walkers = [_Walker(label=label, trie=trie) for label, trie in zip(labels, tries, strict=True)]
    for walker in walkers:
        walker.follow_chain()
    at_root = [row for row, walker in enumerate(walkers) if not walker.pending]
    if at_root:
        _choose([walkers[row] for row in at_root], logits[at_root])
    while open_rows := [row for row, walker in enumerate(walkers) if not walker.arrived]:
        logits = rows.feed(open_rows, [walkers[row].pending for row in open_rows])
        _choose([walkers[row] for row in open_rows], logits)
    return [_choice(walker) for walker in walkers]


def _choose(walkers: Sequence[_Walker], logits: Tensor) -> None:
    """Let each walker, all of which stand at branches, take its favourite child."""
    alike: dict[tuple[NameTrie, int], list[int]] = defaultdict(list)
    for row, walker in enumerate(walkers):
        alike[walker.trie, walker.node].append(row)
    for (trie, node), members in alike.items():
        log_probs = _log_probs(trie, node, logits, [walkers[row].label for row in members], members)
        children = trie.children(node)
        for row, row_probs, best in zip(
            members, log_probs, log_probs.argmax(dim=1).tolist(), strict=True
        ):
            walkers[row].visited[node] = row_probs
            walkers[row].pending = []
            walkers[row].step(children[best])
            walkers[row].follow_chain()


def _log_probs(
    trie: NameTrie, node: int, logits: Tensor, labels: Sequence[str], members: Sequence[int]
) -> Tensor:
    """Return (members, children) float64 log-probabilities at `node`."""
    children = trie.child_ids(node).to(logits.device)
    # The children alone: a row of a large vocabulary is not copied for a few numbers of it.
    told = logits[torch.tensor(members, device=logits.device)[:, None], children]
    finite = torch.isfinite(told).all(dim=1)
    if not bool(finite.all()):
        label = labels[int((~finite).nonzero()[0])]
        raise ReadoutError(
            f"record {label!r}: the logits of its tools' names are not finite",
            hint="check the weights for NaN, or try --dtype float32",
            record_id=label,
        )
    return branch_log_probs(told, torch.arange(len(children)))


def _choice(walker: _Walker) -> NameChoice:
    name = walker.trie.name_at(walker.node)
    if name is None:
        raise ReadoutError(f"node {walker.node} ends no name", node=walker.node)
    return NameChoice(
        chosen=walker.trie.names.index(name),
        scores=walker.trie.scores_after(walker.visited),
        branch=_first_branch(walker),
    )


def _first_branch(walker: _Walker) -> FirstBranch | None:
    if not walker.visited:
        return None
    node, log_probs = next(iter(walker.visited.items()))  # in the order of the walk
    return FirstBranch(
        at_decision=node == ROOT,
        token_ids=walker.trie.child_ids(node),
        log_probs=log_probs,
        chosen=int(log_probs.argmax()),
    )
