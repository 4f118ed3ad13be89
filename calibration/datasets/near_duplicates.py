"""Near-duplicate queries: normal form, fingerprints, and an exact search that is not quadratic.

Two queries are near duplicates if the Jaccard similarity of their token sets is at least 0.8. The
search is exact, by prefix filtering over an inverted index: of two similar sets, each sorted with
its rarest tokens first, the first few tokens must share some, so only those are looked up.

Source: Bayardo, Ma, Srikant, "Scaling up all pairs similarity search", WWW 2007 (prefix filter);
Wang, Li, Feng, "Can we beat the prefix filtering?", SIGMOD 2012 (prefixes that must share several
tokens).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import operator
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

# Scripts written without spaces are cut into single characters: Han and kana.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")

# Largest set size, and the number of tokens in a key of the index up to it.
_WIDTHS = ((16, 4), (35, 3), (100, 2), (sys.maxsize, 1))


def query_tokens(text: str) -> list[str]:
    """Return the tokens of `text` in order: compatibility form, case folded, no punctuation.

    Text without a letter or digit is one token, itself without outer blanks.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _TOKEN.findall(folded) or [folded.strip()]


def query_fingerprint(text: str) -> int:
    """Return a stable unsigned 64-bit hash of the normalised `text`.

    Equal for texts that differ only in case, punctuation, blanks or Unicode form.
    """
    normal = " ".join(query_tokens(text))
    return int.from_bytes(hashlib.blake2b(normal.encode(), digest_size=8).digest())


def query_fingerprints(queries: Iterable[str]) -> frozenset[int]:
    """Return the fingerprints of `queries`, to recognise them in a later evaluation."""
    return frozenset(query_fingerprint(query) for query in queries)


def group_near_duplicates(token_sets: Sequence[frozenset[str]]) -> list[int]:
    """Return a group number for each set: connected by near duplicates means the same group."""
    distinct = list(dict.fromkeys(token_sets))
    forest = _Forest(len(distinct))
    ranked = _rank(distinct)
    index = _Index()
    for item in _by_size(ranked):
        # A bucket is the group its members had when they were entered: one look skips them all.
        for other in index.similar(ranked[item], functools.partial(forest.joined, item)):
            forest.join(item, other)
        index.add(item, ranked[item], forest.find(item))
    place = {tokens: item for item, tokens in enumerate(distinct)}
    return [forest.find(place[tokens]) for tokens in token_sets]


def crossing_near_duplicates(
    token_sets: Sequence[frozenset[str]], parts: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield pairs of near duplicates that lie in different parts.

    At least one pair for each set that has such a partner among the sets no larger than itself.

    Args:
        token_sets: the sets.
        parts: the part in which each lies, same length.
    """
    ranked = _rank(token_sets)
    index = _Index()
    for item in _by_size(ranked):
        for other in index.similar(ranked[item], functools.partial(operator.eq, parts[item])):
            yield other, item
        index.add(item, ranked[item], parts[item])


class _Forest:
    """Disjoint sets over 0..size-1 (union by smaller root, path halving)."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, item: int) -> int:
        """Return the representative of the item's set."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def joined(self, one: int, two: int) -> bool:
        """Whether both items are in one set."""
        return self.find(one) == self.find(two)

    def join(self, one: int, two: int) -> None:
        """Make the sets of both items one."""
        low, high = sorted((self.find(one), self.find(two)))
        self._parent[high] = low


def _rank(token_sets: Sequence[frozenset[str]]) -> list[tuple[int, ...]]:
    """Return each set as ascending ranks; rank 0 is the rarest token of all."""
    counts = Counter(token for tokens in token_sets for token in tokens)
    order = sorted(counts, key=lambda token: (counts[token], token))
    rank = {token: place for place, token in enumerate(order)}
    return [tuple(sorted(rank[token] for token in tokens)) for tokens in token_sets]


def _by_size(ranked: Sequence[tuple[int, ...]]) -> list[int]:
    return sorted(range(len(ranked)), key=lambda item: (len(ranked[item]), ranked[item]))


class _Index:
    """Inverted index over combinations of rare tokens, of the sets seen so far, in buckets.

    Sets must be added in ascending size: the prefix lengths below rely on it.
    """

    def __init__(self) -> None:
        # Hash of a key -> bucket -> items; a lone item stands for itself, which most keys hold.
        self._postings: dict[int, int | dict[int, list[int]]] = {}
        self._sets: dict[int, frozenset[int]] = {}
        self._buckets: dict[int, int] = {}

    def add(self, item: int, ranks: tuple[int, ...], bucket: int) -> None:
        """Enter a set under a bucket."""
        self._sets[item] = frozenset(ranks)
        self._buckets[item] = bucket
        size, width = len(ranks), _key_width(len(ranks))
        # A similar set of at least this size lacks at most a ninth of its tokens.
        for key in map(hash, itertools.combinations(ranks[: size // 9 + width], width)):
            entry = self._postings.setdefault(key, item)
            if isinstance(entry, int) and entry != item:
                entry = self._postings[key] = {self._buckets[entry]: [entry]}
            if isinstance(entry, dict):
                entry.setdefault(bucket, []).append(item)

    def similar(self, ranks: tuple[int, ...], skip: Callable[[int], bool]) -> Iterator[int]:
        """Yield entered sets that are near duplicates of `ranks`, from buckets not skipped."""
        tokens = frozenset(ranks)
        seen: set[int] = set()
        for key in _probe_keys(ranks):
            for bucket, items in self._entries(key):
                if skip(bucket):
                    continue
                for item in items:
                    if item not in seen and _are_similar(tokens, self._sets[item]):
                        yield item
                        break  # the caller has joined the bucket, or has its one pair
                    seen.add(item)

    def _entries(self, key: int) -> Iterable[tuple[int, list[int]]]:
        entry = self._postings.get(key)
        if entry is None:
            return ()
        if isinstance(entry, int):
            return ((self._buckets[entry], [entry]),)
        return entry.items()


def _key_width(size: int) -> int:
    """Return how many rare tokens make a key for sets of this size.

    Wider keys are shared by fewer sets but there are more of them: the steps keep each set below
    some 250 keys. Templates with few slot values need wide keys to stay far from quadratic.
    """
    return min(size, next(width for most, width in _WIDTHS if size <= most))


def _probe_keys(ranks: tuple[int, ...]) -> Iterator[int]:
    """Yield the hash of every key under which a similar set of at most this size may stand."""
    size = len(ranks)
    widths = {_key_width(other) for other in range(-(-4 * size // 5), size + 1)}
    for width in widths:
        # At most a fifth of these tokens is missing from a similar set.
        yield from map(hash, itertools.combinations(ranks[: size // 5 + width], width))


def _are_similar(one: frozenset[int], two: frozenset[int]) -> bool:
    """Whether the Jaccard similarity is at least 4/5, in whole numbers."""
    return 9 * len(one & two) >= 4 * (len(one) + len(two))
