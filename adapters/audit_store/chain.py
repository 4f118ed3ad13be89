"""The hash chain over the rows: how each is bound to those before it, and how a break is found.

A row's hash covers its content and the hash before it, so a changed, moved or inserted row no
longer fits. The head names the last row and is signed with the key, so that rows missing at the
end, or a chain that was computed anew, show too. Knows nothing of databases.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from toolguard.adapters.audit_store.event import derived_columns
from toolguard.guard.errors import ConfigError
from toolguard.guard.seal import Seal
from toolguard.guard.tools import canonical_json, sha256_text

ProblemKind = Literal["changed", "missing", "reordered", "inserted", "truncated", "head", "anchor"]
"""What is wrong at a place of the chain."""

SealState = Literal["holds", "broken", "unchecked", "unkeyed"]
"""Of the head's signature: `unchecked` without the key, `unkeyed` if it was never signed."""

_CONTENT = ("kind", "call_id", "run_id", "tool", "action", "payload", "created_at")
_PROBLEM_LIMIT = 1000  # kept in a report; all are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainProblem:
    """One thing that is wrong with the chain.

    Args:
        seq: the row, or the first of several; 0 for the head.
        kind: what is wrong.
        detail: the same as a sentence.
    """

    seq: int
    kind: ProblemKind
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """What a walk over the whole chain found.

    Args:
        ok: whether nothing is wrong.
        checked: rows read.
        problems: the first thousand problems.
        found: number of all problems.
        seq: the head's row number; 0 for an empty store.
        hash: the head's hash; empty if there is no head.
        seal: whether the head's signature holds.
    """

    ok: bool
    checked: int
    problems: tuple[ChainProblem, ...]
    found: int
    seq: int
    hash: str
    seal: SealState


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A row and its hash, noted elsewhere at some time; proves that the store goes on from there.

    Args:
        seq: row number.
        hash: 64 hex digits.
    """

    seq: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> Anchor:
        """Return the anchor written `SEQ:HASH`.

        Raises:
            ConfigError: if the text is something else.
        """
        seq, _, digest = text.partition(":")
        if not (seq.isdecimal() and int(seq) > 0 and len(digest) == 64):
            raise ConfigError(
                f"an anchor is SEQ:HASH, found {text!r:.80}",
                hint="take it from what `toolguard audit verify` printed before",
            )
        return cls(seq=int(seq), hash=digest)


def genesis(store_id: str) -> str:
    """Return what stands in the place of a hash before the first row of this store."""
    return sha256_text(f"toolguard audit store {store_id}")


def row_hash(previous: str, row: Mapping[str, Any]) -> str:
    """Return the hash of a row that follows the row of hash `previous`.

    The number is left out: the links give the order, and numbers without a gap give the rest.
    """
    return sha256_text(previous + canonical_json([row[name] for name in _CONTENT]))


def head_signature(seal: Seal | None, store_id: str, seq: int, last: str) -> str:
    """Return the signature over the head; empty without a key."""
    return "" if seal is None else seal.sign({"store": store_id, "seq": seq, "hash": last})


def key_name(seal: Seal | None) -> str:
    """Return what tells one key from another without giving it away; empty without a key."""
    return "" if seal is None else seal.sign("toolguard audit key")[:16]


def head_seal(seal: Seal | None, head: Mapping[str, Any]) -> SealState:
    """Return whether the head's signature holds."""
    if seal is None:
        return "unchecked" if head["signature"] or head["key_name"] else "unkeyed"
    signed = {"store": head["store_id"], "seq": head["seq"], "hash": head["hash"]}
    return "holds" if seal.holds(signed, head["signature"]) else "broken"


def check_chain(
    rows: Iterable[Mapping[str, Any]],
    head: Mapping[str, Any] | None,
    seal: Seal | None,
    anchor: Anchor | None = None,
) -> ChainReport:
    """Return what is wrong with rows, given in order of their numbers, and their head."""
    walk = _Walk(genesis(head["store_id"]) if head else None, anchor)
    for row in rows:
        walk.step(row)
    walk.finish(head)
    state: SealState = "broken" if head is None else head_seal(seal, head)
    if head is not None and state == "broken":
        walk.report(0, "head", "the signature of the head does not hold with this key")
    return ChainReport(
        ok=walk.found == 0,
        checked=walk.checked,
        problems=tuple(walk.problems),
        found=walk.found,
        seq=head["seq"] if head else 0,
        hash=head["hash"] if head else "",
        seal=state,
    )


class _Walk:
    """Goes over the rows once; remembers two hashes and no row."""

    def __init__(self, start: str | None, anchor: Anchor | None) -> None:
        self.hashes: deque[str | None] = deque([None, start], maxlen=2)  # of the last two rows
        self.linked = True  # whether the last row followed the one before it
        self.anchor = anchor
        self.last = self.checked = self.found = 0
        self.problems: list[ChainProblem] = []

    def report(self, seq: int, kind: ProblemKind, detail: str) -> None:
        self.found += 1
        if len(self.problems) < _PROBLEM_LIMIT:
            self.problems.append(ChainProblem(seq=seq, kind=kind, detail=detail))

    def step(self, row: Mapping[str, Any]) -> None:
        seq = row["seq"]
        self.checked += 1
        if seq > self.last + 1:
            self.report(self.last + 1, "missing", f"{_rows(self.last + 1, seq - 1)} missing")
            self.hashes.extend((None, None))
        self._link(seq, row)
        if not _intact(row):
            self.report(seq, "changed", f"row {seq} is not what was written")
        if self.anchor and seq == self.anchor.seq and row["hash"] != self.anchor.hash:
            self.report(seq, "anchor", f"row {seq} is not the row of the anchor")
        self.last = max(seq, self.last)
        self.hashes.append(row["hash"])

    def _link(self, seq: int, row: Mapping[str, Any]) -> None:
        (before, last), linked = self.hashes, self.linked
        self.linked = seq >= 1 and (last is None or row["previous"] == last)
        if seq < 1:
            self.report(seq, "inserted", f"row {seq} stands before the first")
        elif self.linked:
            return
        elif linked and before is not None and row["previous"] == before:
            self.report(seq - 1, "inserted", f"row {seq} follows row {seq - 2}, not {seq - 1}")
        else:
            self.report(seq, "reordered", f"row {seq} does not follow the row before it")

    def finish(self, head: Mapping[str, Any] | None) -> None:
        if head is None:
            self.report(0, "head", "the head of the chain is missing")
            return
        end = head["seq"]
        if self.last < end:
            self.report(self.last + 1, "truncated", f"{_rows(self.last + 1, end)} missing")
        elif self.last > end:
            self.report(end + 1, "inserted", f"rows stand after {end}, the last that was written")
        elif self.hashes[-1] not in (head["hash"], None):
            self.report(end, "head", f"the head does not name the hash of row {end}")
        if self.anchor and self.last < self.anchor.seq:
            self.report(self.anchor.seq, "anchor", f"row {self.anchor.seq} of the anchor is gone")


def _rows(first: int, last: int) -> str:
    return f"row {first} is" if first == last else f"rows {first} to {last} are"


def _intact(row: Mapping[str, Any]) -> bool:
    """Return whether the row's hash and derived columns fit its content."""
    try:
        if row_hash(row["previous"], row) != row["hash"]:
            return False
        derived = derived_columns(json.loads(row["payload"]))
    except (TypeError, ValueError, RecursionError):
        return False  # a value of another type than was ever written
    return derived == (row["reason"], row["p_wrong"])
