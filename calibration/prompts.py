"""From labelled records to token ids that end at the decision token, menu by menu.

Every prompt of a menu begins alike. What they share is found here, told apart from what is a
record's own, and tokenised once where the tokenizer surely allows it. Knows nothing of models
beyond the length of their context.

A template may end its generation prompt inside a thought. No thought is generated here: an empty
one is closed in front of the call, so a thinking model is read as if it had thought nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolguard.adapters.decision_token import name_tokens
from toolguard.adapters.wire import WireFormat
from toolguard.adapters.wire.turn import opens_thought
from toolguard.calibration.records import Record
from toolguard.guard.errors import ConfigError, ToolguardError
from toolguard.guard.tools import Menu, Tool
from toolguard.guard.trie import NameTrie

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from toolguard.adapters.loading import LoadedModel

Ids = NDArray[np.int32]
OnSkip = Callable[[Record, ToolguardError], None]
"""What is told of each record that cannot be used, and why."""

_MENUS = 256  # bound on the menus remembered, so that memory stays flat
_BATCH = 64  # prompts tokenised at once; long ones, so that only a few stand as Python lists
# First letters that differ, so that no token of the user's text can seem shared.
_PROBES = ("A", "b")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OfferedMenu:
    """A menu as the model is told of it.

    Args:
        menu: without descriptions and parameters if only names are told.
        hashes: content hash of each of its tools, in menu order.
        text_hash: content hash of the whole.
    """

    menu: Menu
    hashes: tuple[str, ...]
    text_hash: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NamePaths:
    """How a menu's names are spelled in tokens; see `decision_token.NameTokens`."""

    prefix_ids: tuple[int, ...]
    trie: NameTrie
    longest: int  # tokens in the longest path


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """One record's prompt, behind what its group shares.

    Args:
        record: what it was made from.
        offered: the menu in the prompt.
        trie: token paths of the menu's names from the decision token on.
        suffix: (tokens,) int32, not empty; the last one is the decision token.
    """

    record: Record
    offered: OfferedMenu
    trie: NameTrie
    suffix: Ids


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptGroup:
    """Prompts that begin alike; shared: (tokens,) int32, may be empty."""

    shared: Ids
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _SharedText:
    """What every prompt of a menu begins with.

    Args:
        text: ends where a special token begins, so that the rest can be tokenised alone; may be
            empty.
        text_ids: its tokens.
        ids: tokens shared as far as two prompts with unlike queries tell; at least `text_ids`.
    """

    text: str
    text_ids: Ids
    ids: Ids


class PromptWriter:
    """Writes the prompts of one model and wire format; remembers menus, never records.

    Args:
        loaded: tokenizer, and the config that bounds the context.
        wire: how calls are written.
        names_only: tell the model the tools' names alone.
    """

    def __init__(self, loaded: LoadedModel, wire: WireFormat, *, names_only: bool = False) -> None:
        self._tokenizer: PreTrainedTokenizerBase = loaded.tokenizer
        self._wire = wire
        self._names_only = names_only
        self._context = context_length(loaded)
        self._offer = lru_cache(_MENUS)(self._make_offer)
        # Paths hang on the names and the format, not on the record: two menus of the same names in
        # the same order share them.
        self._paths: Callable[[tuple[str, ...], str], NamePaths] = _by_first(self._make_paths)
        self._marks = _split_tokens(self._tokenizer)

    def offer(self, record: Record) -> OfferedMenu:
        """Return the record's menu as the model is told of it.

        Raises:
            ConfigError: if the record offers no tools.
        """
        return self._offer(_ById(record.menu))

    def _make_offer(self, key: _ById) -> OfferedMenu:
        menu = key.menu
        if self._names_only:
            menu = Menu(tuple(Tool(name=name) for name in menu.names))
        hashes = tuple(tool.content_hash for tool in menu)
        return OfferedMenu(menu=menu, hashes=hashes, text_hash=menu.content_hash)

    def group_key(self, record: Record) -> tuple[str, str]:
        """Return what records must share for their prompts to begin alike: menu and system text.

        Raises:
            ConfigError: if the record offers no tools.
        """
        return self.offer(record).text_hash, _system_text(record)

    def write(self, records: Sequence[Record], on_skip: OnSkip) -> PromptGroup:
        """Return the prompts of records with one `group_key`.

        What they share is the longest common token prefix of them all; a single record shares
        nothing. It hangs on these records alone, so equal groups give equal prompts.

        Args:
            records: at least one.
            on_skip: told of each record whose prompt cannot be written or exceeds the context.
        """
        shared = self._shared_text(records[0]) if len(records) > 1 else None
        rows: list[tuple[Record, NamePaths, Ids]] = []
        for start in range(0, len(records), _BATCH):
            rows += self._tokenise(records[start : start + _BATCH], shared, on_skip)
        length = _shared_length([ids for *_, ids in rows], shared)
        prompts = tuple(
            # A slice would keep the whole prompt in memory.
            Prompt(record=record, offered=self.offer(record), trie=paths.trie, suffix=ids[length:].copy())
            for record, paths, ids in rows
        )
        return PromptGroup(shared=rows[0][2][:length].copy() if rows else _ids(()), prompts=prompts)

    def text(self, record: Record) -> str:
        """Return the record's rendered prompt, an opened thought closed.

        Raises:
            ConfigError: if the record offers no tools or the template refuses its conversation.
        """
        return self._render(record.conversation_with_system(), self.offer(record).menu)

    def _render(self, messages: Sequence[dict[str, Any]], menu: Menu) -> str:
        return close_thought(self._wire.render(self._tokenizer, messages, menu))

    def _tokenise(
        self, records: Sequence[Record], shared: _SharedText | None, on_skip: OnSkip
    ) -> list[tuple[Record, NamePaths, Ids]]:
        ready: list[tuple[Record, NamePaths, str]] = []
        for record in records:
            try:
                text = self.text(record)
                ready.append((record, self._paths(self.offer(record).menu.names, text), text))
            except ConfigError as error:
                on_skip(record, error)
        rows = []
        encoded = self._encode([text for *_, text in ready], shared)
        for (record, paths, _), prompt in zip(ready, encoded, strict=True):
            ids = np.concatenate([prompt, _ids(paths.prefix_ids)])
            if (error := self._too_long(record, len(ids), paths)) is not None:
                on_skip(record, error)
            else:
                rows.append((record, paths, ids))
        return rows

    def _encode(self, texts: Sequence[str], shared: _SharedText | None) -> list[Ids]:
        """Return the token ids of whole prompts, the shared text's own taken from before."""
        if not texts:
            return []
        text, head = (shared.text, shared.text_ids) if shared else ("", _ids(()))
        if not all(prompt.startswith(text) for prompt in texts):
            text, head = "", _ids(())
        tails = self._tokenizer([prompt[len(text) :] for prompt in texts], **_PLAIN)["input_ids"]
        return [np.concatenate([head, _ids(tail)]) for tail in tails]

    def _shared_text(self, record: Record) -> _SharedText | None:
        """Return what two conversations with unlike queries share; None if they cannot be told."""
        system = record.conversation_with_system()[:1]
        leading = system if system[0]["role"] == "system" else []
        menu = self.offer(record).menu
        try:
            first, second = (
                self._render([*leading, {"role": "user", "content": letter}], menu)
                for letter in _PROBES
            )
        except ConfigError:  # a template may insist on more than one user turn
            return None
        whole = [_ids(ids) for ids in self._tokenizer([first, second], **_PLAIN)["input_ids"]]
        text = first[: self._last_mark(first, _common_prefix(first, second))]
        cut = [_ids(ids) for ids in self._tokenizer([text, first[len(text) :], second[len(text) :]], **_PLAIN)["input_ids"]]
        glued = [np.concatenate([cut[0], tail]) for tail in cut[1:]]
        if not all(np.array_equal(one, other) for one, other in zip(glued, whole, strict=True)):
            text, cut[0] = "", _ids(())
        return _SharedText(text=text, text_ids=cut[0], ids=whole[0][: common_length(*whole)])

    def _last_mark(self, text: str, end: int) -> int:
        """Return where the last special token that ends by `end` begins; 0 if there is none."""
        return max((text.rfind(mark, 0, end) for mark in self._marks), default=0) if end else 0

    def _make_paths(self, names: tuple[str, ...], context: str) -> NamePaths:
        tokens = name_tokens(self._tokenizer, self._wire, names, context)
        return NamePaths(
            prefix_ids=tokens.prefix_ids,
            trie=NameTrie(tokens.paths),
            longest=max(len(path) for path in tokens.paths.values()),
        )

    def _too_long(self, record: Record, length: int, paths: NamePaths) -> ConfigError | None:
        needed = length + paths.longest - 1  # the last token of a name is chosen, never fed
        if self._context is None or needed <= self._context:
            return None
        return ConfigError(
            f"record {record.id!r}: its prompt and name take {needed} tokens, "
            f"more than the model's context of {self._context}",
            hint="leave the record out, offer fewer tools, or use --names-only",
            record_id=record.id,
            tokens=needed,
            context=self._context,
        )


_PLAIN: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
