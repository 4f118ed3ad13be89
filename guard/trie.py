"""Whole-name log-probability over the trie of token paths that spell the menu's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolguard.guard.errors import ConfigError, ReadoutError, ShapeError

ROOT = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Branch:
    """What one branch node needs at run time, as index tensors on the CPU."""

    child_ids: Tensor  # (children,) int64 token ids
    names: Tensor  # (names below,) int64 name indices
    child_of: Tensor  # (names below,) int64 position among the children


class NameTrie:
    """Token paths of a menu's names as a tree of integer nodes; the root, 0, is the decision token.

    Immutable after construction, so one trie can serve several requests and threads.

    Args:
        paths: name -> token ids from the decision token (exclusive) through the name's terminator,
            in menu order.

    Raises:
        ConfigError: if there is no name, a path is empty, or a path equals or starts another one
            (then no token tells where the shorter name ends).
    """

    __slots__ = ("_below", "_branches", "_children", "_leaves", "_name_at", "_parents", "names")

    def __init__(self, paths: Mapping[str, Sequence[int]]) -> None:
        if not paths:
            raise ConfigError("a name trie needs at least one name")
        self.names: tuple[str, ...] = tuple(paths)
        self._children: list[dict[int, int]] = [{}]
        self._parents: list[int] = [ROOT]
        self._below: list[list[int]] = [[]]
        self._name_at: dict[int, str] = {}
        self._leaves: dict[str, int] = {}
        for index, (name, path) in enumerate(paths.items()):
            self._insert(index, name, path)
        self._refuse_inner_names()
        self._branches = {
            node: self._branch(node) for node, kids in enumerate(self._children) if len(kids) > 1
        }

    def _insert(self, index: int, name: str, path: Sequence[int]) -> None:
        if not path:
            raise ConfigError(f"the token path of {name!r} is empty", name=name)
        node = ROOT
        self._below[ROOT].append(index)
        for token in path:
            node = self._child(node, int(token))
            self._below[node].append(index)
        if node in self._name_at:
            raise ConfigError(
                f"{self._name_at[node]!r} and {name!r} have the same token path", name=name
            )
        self._name_at[node] = name
        self._leaves[name] = node

    def _child(self, node: int, token: int) -> int:
        found = self._children[node].get(token)
        if found is not None:
            return found
        self._children.append({})
        self._parents.append(node)
        self._below.append([])
        self._children[node][token] = len(self._children) - 1
        return len(self._children) - 1

    def _refuse_inner_names(self) -> None:
        for node, name in self._name_at.items():
            if self._children[node]:
                longer = self.names[next(i for i in self._below[node] if self.names[i] != name)]
                raise ConfigError(
                    f"the token path of {name!r} starts the path of {longer!r}",
                    hint="paths must run through the name's terminator",
                    name=name,
                )

    def _branch(self, node: int) -> _Branch:
        kids = self._children[node]
        pairs = [
            (name, position)
            for position, kid in enumerate(kids.values())
            for name in self._below[kid]
        ]
        return _Branch(
            child_ids=torch.tensor(list(kids), dtype=torch.int64),
            names=torch.tensor([name for name, _ in pairs], dtype=torch.int64),
            child_of=torch.tensor([position for _, position in pairs], dtype=torch.int64),
        )

    def __len__(self) -> int:
        return len(self._children)

    @property
    def branch_nodes(self) -> tuple[int, ...]:
        """Nodes with at least two children, parents before their descendants."""
        return tuple(self._branches)

    def children(self, node: int) -> tuple[int, ...]:
        """Return the token ids that may follow at `node`; empty at a leaf."""
        return tuple(self._children[node])

    def advance(self, node: int, token: int) -> int | None:
        """Return the node reached from `node` by `token`, or None if no name goes on that way."""
        return self._children[node].get(token)

    def name_at(self, node: int) -> str | None:
        """Return the name whose path ends at `node`, or None if `node` is not a leaf."""
        return self._name_at.get(node)

    def names_below(self, node: int) -> tuple[int, ...]:
        """Return the indices into `names` of the names whose path meets `node`."""
        return tuple(self._below[node])

    def branches_of(self, name: str) -> tuple[int, ...]:
        """Return the branch nodes on the path of `name`, from the root down.

        Raises:
            ConfigError: if the trie does not hold this name.
        """
        node = self._leaves.get(name)
        if node is None:
            raise ConfigError(f"{name!r} is not in the trie", name=name)
        found = []
        while node != ROOT:
            node = self._parents[node]
            if node in self._branches:
                found.append(node)
        return tuple(reversed(found))

    def path_of(self, name: str) -> tuple[int, ...]:
        """Return the tokens that spell `name`, its terminator included.

        Raises:
            ConfigError: if the trie does not hold this name.
        """
        if name not in self._leaves:
            raise ConfigError(f"{name!r} is not in the trie", name=name)
        index = self.names.index(name)
        node, path = ROOT, []
        while node != self._leaves[name]:
            kids = self._children[node].items()
            token, node = next((t, kid) for t, kid in kids if index in self._below[kid])
            path.append(token)
        return tuple(path)

    def is_below(self, node: int, ancestor: int) -> bool:
        """Return whether `node` is `ancestor` or one of its descendants."""
        while node > ancestor:  # a parent always has the smaller number
            node = self._parents[node]
        return node == ancestor

    def scores_after(self, visited: Mapping[int, Tensor]) -> Tensor:
        """Return every name's score from the log-probabilities read along one path.

        A name's score is the sum of log-probabilities along the visited path up to where the name
        leaves it, plus that of the child by which it leaves: exact for the chosen name once all its
        branches are visited, an upper bound shared by all names below that child for a rival. Nodes
        with one child add nothing.

        Args:
            visited: branch node -> (children,) log-probabilities in the order of `children(node)`.

        Returns:
            (names,) float32 on the CPU, natural log, <= 0.

        Raises:
            ReadoutError: if a node is no branch node, or the nodes do not lie on one path.
            ShapeError: if the log-probabilities do not match the node's children.

        Source: DESIGN section 5, one-pass `logprob` definition.
        """
        scores = torch.zeros(len(self.names), dtype=torch.float64)
        last = ROOT
        for node in sorted(visited):
            branch = self._branches.get(node)
            if branch is None or not self.is_below(node, last):
                raise ReadoutError(f"node {node} is not a branch node below node {last}", node=node)
            log_probs = visited[node]
            if log_probs.shape != branch.child_ids.shape:
                raise ShapeError(
                    f"node {node} has {len(branch.child_ids)} children, found {log_probs.shape}"
                )
            scores[branch.names] += log_probs.to("cpu", torch.float64)[branch.child_of]
            last = node
        return scores.to(torch.float32)

    def child_ids(self, node: int) -> Tensor:
        """Return `children(node)` as a (children,) int64 tensor on the CPU."""
        branch = self._branches.get(node)
        return branch.child_ids if branch else torch.tensor(self.children(node), dtype=torch.int64)


class TrieScorer:
    """Gathers one request's name scores while decoding walks down the trie."""

    __slots__ = ("_trie", "_visited")

    def __init__(self, trie: NameTrie) -> None:
        self._trie = trie
        self._visited: dict[int, Tensor] = {}

    def visit(self, node: int, logits: Tensor) -> None:
        """Read the model's next-token logits at `node`; a node with one child or none adds nothing.

        Args:
            node: a node at or below the last one visited.
            logits: (vocab,) any float dtype and device, before any mask or temperature.

        Raises:
            ReadoutError: if a child's logit is NaN or infinite, the node was read before, or it
                lies on another path.
            ShapeError: if `logits` is not one row or shorter than a child's token id.
        """
        if len(self._trie.children(node)) < 2:
            return
        if node in self._visited or (
            self._visited and not self._trie.is_below(node, next(reversed(self._visited)))
        ):
            raise ReadoutError(
                f"node {node} was read before or is not below the last node read", node=node
            )
        if logits.ndim != 1:
            raise ShapeError(f"expected logits (vocab,), found {tuple(logits.shape)}")
        self._visited[node] = branch_log_probs(logits[None], self._trie.child_ids(node))[0]

    def scores(self) -> Tensor:
        """Return (names,) float32 scores as in `NameTrie.scores_after`; 0 before a branch."""
        return self._trie.scores_after(self._visited)


def branch_log_probs(logits: Tensor, child_ids: Tensor | Sequence[int]) -> Tensor:
    """Return log-probabilities renormalised over the children of one branch node.

    Only the children's logits are checked: a generation setting may lawfully put -inf on other
    tokens.

    Args:
        logits: (rows, vocab) any float dtype and device.
        child_ids: (children,) token ids.

    Returns:
        (rows, children) float64 on the CPU.

    Raises:
        ReadoutError: if a child's logit is NaN or infinite.
        ShapeError: if `logits` is not two-dimensional, or an id lies outside the vocabulary.
    """
    ids = torch.as_tensor(child_ids, dtype=torch.int64)
    if logits.ndim != 2 or ids.ndim != 1 or not len(ids):
        raise ShapeError(
            f"expected logits (rows, vocab), ids (children,), found {logits.shape}, {ids.shape}"
        )
    if int(ids.min()) < 0 or int(ids.max()) >= logits.shape[1]:
        raise ShapeError(f"token id {int(ids.max())} lies outside the {logits.shape[1]} logits")
    chosen = logits.index_select(1, ids.to(logits.device)).to(
        "cpu", torch.float64
    )  # (rows, children)
    if not bool(torch.isfinite(chosen).all()):
        raise ReadoutError(
            "the logits of the menu's names are not finite",
            hint="check the weights for NaN, and read logits before any mask is applied",
        )
    return torch.log_softmax(chosen, dim=1)
