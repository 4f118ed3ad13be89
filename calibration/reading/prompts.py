"""From labelled records to token ids that end at the decision token, menu by menu.

A template may end its generation prompt inside a thought. No thought is generated here: an empty
one is closed in front of the call, so a thinking model is read as if it had thought nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from toolguard.adapters.decision_token import name_tokens
from toolguard.adapters.wire import WireFormat
from toolguard.adapters.wire.turn import opens_thought
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.reading.shared_text import (
    Ids,
    SharedText,
    as_ids,
    common_length,
    encode,
    find_shared_text,
)
from toolguard.guard.errors import ConfigError, ToolguardError
from toolguard.guard.tools import Menu, Tool
from toolguard.guard.trie import NameTrie

if TYPE_CHECKING:
    from toolguard.adapters.loading import LoadedModel

OnSkip = Callable[[Record, ToolguardError], None]
"""What is told of each record that cannot be used, and why."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_MENUS = 256  # bound on the menus remembered, so that memory stays flat
_BATCH = 64  # prompts tokenised at once; long ones, so that only a few stand as lists


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OfferedMenu:
    """A menu as the model is told of it.

    Args:
        source: as it stands in the record.
        menu: the same, without descriptions and parameters if only names are told.
        hashes: content hash of each tool of `menu`, in its order.
        text_hash: content hash of `menu`.
    """

    source: Menu
    menu: Menu
    hashes: tuple[str, ...]
    text_hash: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NamePaths:
    """How a menu's names are spelled in tokens after a prompt.

    Args:
        prefix_ids: see `decision_token.NameTokens`.
        trie: paths of the names from the decision token on.
        longest: tokens in the longest path.
    """

    prefix_ids: tuple[int, ...]
    trie: NameTrie
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """One record's prompt, behind what its group shares.

    Args:
        record: what it was made from.
        offered: the menu in the prompt.
        trie: token paths of the menu's names from the decision token on.
        suffix: (tokens,) int32, not empty; the last one is the decision token.
        prefix_ids: the last tokens of it, which open the call; see `decision_token.NameTokens`.
    """

    record: Record
    offered: OfferedMenu
    trie: NameTrie
    suffix: Ids
    prefix_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptGroup:
    """Prompts that begin alike; shared: (tokens,) int32, may be empty."""

    shared: Ids
    prompts: tuple[Prompt, ...]


class _Recent(Generic[Key, Value]):
    """The values of the `_MENUS` keys used last."""

    def __init__(self) -> None:
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """Return the value of `key`, made if it is not there; an exception is not remembered."""
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        if len(self._values) > _MENUS:
            self._values.popitem(last=False)
        return self._values[key]


class PromptWriter:
    """Writes the prompts of one model and wire format; remembers menus, never records.

    Args:
        loaded: its tokenizer writes, its config bounds the length.
        wire: how calls are written.
        names_only: tell the model the tools' names alone.
    """

    def __init__(self, loaded: LoadedModel, wire: WireFormat, *, names_only: bool = False) -> None:
        self._tokenizer = loaded.tokenizer
        self._wire = wire
        self._names_only = names_only
        self._context = context_length(loaded)
        self._offered: _Recent[int, OfferedMenu] = _Recent()
        # Not by record: names and format decide the paths, whatever stands before them.
        self._paths: _Recent[tuple[str, ...], NamePaths] = _Recent()
        self._shared: _Recent[tuple[str, str], SharedText] = _Recent()

    def offer(self, record: Record) -> OfferedMenu:
        """Return the record's menu as the model is told of it.

        Raises:
            ConfigError: if the record offers no tools.
        """
        menu = record.menu
        # Hashing a menu takes longer than a small prompt; its identity holds while it is kept.
        return self._offered.get(id(menu), lambda: self._make_offer(menu))

    def _make_offer(self, source: Menu) -> OfferedMenu:
        told = Menu(tuple(Tool(name=name) for name in source.names)) if self._names_only else source
        hashes = tuple(tool.content_hash for tool in told)
        return OfferedMenu(source=source, menu=told, hashes=hashes, text_hash=told.content_hash)

    def group_key(self, record: Record) -> tuple[str, str]:
        """Return what records share whose prompts begin alike: menu and system text.

        Raises:
            ConfigError: if the record offers no tools.
        """
        leading = _leading(record)
        return self.offer(record).text_hash, leading[0]["content"] if leading else ""

    def write(self, records: Sequence[Record], on_skip: OnSkip) -> PromptGroup:
        """Return the prompts of records with one `group_key`, and what they all begin with.

        Equal records give equal prompts, whatever was written before. A single record shares
        nothing.

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
            # Copied: a slice would keep the whole prompt in memory.
            Prompt(
                record=record,
                offered=self.offer(record),
                trie=paths.trie,
                suffix=ids[length:].copy(),
                prefix_ids=paths.prefix_ids,
            )
            for record, paths, ids in rows
        )
        return PromptGroup(
            shared=rows[0][2][:length].copy() if rows else as_ids(()), prompts=prompts
        )

    def trie(self, record: Record) -> NameTrie:
        """Return the token paths of the names on the record's menu.

        Raises:
            ConfigError: as `text`, or if the format cannot carry a name.
        """
        names = self.offer(record).menu.names
        return self._paths.get(names, lambda: self._make_paths(names, self.text(record))).trie

    def text(self, record: Record) -> str:
        """Return the record's rendered prompt, an opened thought closed.

        Raises:
            ConfigError: if the record offers no tools or the template refuses its conversation.
        """
        return self._render(record.conversation_with_system(), self.offer(record).menu)

    def _render(self, messages: Sequence[dict[str, Any]], menu: Menu) -> str:
        return close_thought(self._wire.render(self._tokenizer, messages, menu))

    def _tokenise(
        self, records: Sequence[Record], shared: SharedText | None, on_skip: OnSkip
    ) -> list[tuple[Record, NamePaths, Ids]]:
        ready: list[tuple[Record, NamePaths]] = []
        texts: list[str] = []
        for record in records:
            try:
                text = self.text(record)
                ready.append((record, self._name_paths(self.offer(record).menu.names, text)))
            except ConfigError as error:
                on_skip(record, error)
            else:
                texts.append(text)
        told = shared.encode(self._tokenizer, texts) if shared else encode(self._tokenizer, texts)
        rows = []
        for (record, paths), prompt in zip(ready, told, strict=True):
            ids = np.concatenate([prompt, as_ids(paths.prefix_ids)])
            # The last token of a name is chosen, never fed.
            if too_long := self._too_long(record, len(ids) + paths.longest - 1):
                on_skip(record, too_long)
            else:
                rows.append((record, paths, ids))
        return rows

    def _name_paths(self, names: tuple[str, ...], context: str) -> NamePaths:
        return self._paths.get(names, lambda: self._make_paths(names, context))

    def _make_paths(self, names: tuple[str, ...], context: str) -> NamePaths:
        tokens = name_tokens(self._tokenizer, self._wire, names, context)
        longest = max(len(path) for path in tokens.paths.values())
        trie = NameTrie(tokens.paths)
        return NamePaths(prefix_ids=tokens.prefix_ids, trie=trie, longest=longest)

    def _shared_text(self, record: Record) -> SharedText | None:
        menu = self.offer(record).menu
        try:
            return self._shared.get(
                self.group_key(record),
                lambda: find_shared_text(
                    self._tokenizer, lambda chat: self._render(chat, menu), _leading(record)
                ),
            )
        except ConfigError:  # a template may insist on longer conversations
            return None

    def _too_long(self, record: Record, needed: int) -> ConfigError | None:
        """Return the error if a prompt with its name takes more tokens than the model knows."""
        if self._context is None or needed <= self._context:
            return None
        return ConfigError(
            f"record {record.id!r}: its prompt and a name take {needed} tokens, "
            f"the model's context holds {self._context}",
            hint="leave the record out, offer fewer tools, or tell only their names",
            record_id=record.id,
            tokens=needed,
            context=self._context,
        )


def context_length(loaded: LoadedModel) -> int | None:
    """Return how many positions the model knows, or None if its config sets no bound."""
    config: Any = loaded.model.config.get_text_config(decoder=True)
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def close_thought(prompt: str) -> str:
    """Return `prompt` with a thought that it leaves open at its end closed, empty."""
    mark = opens_thought(prompt)
    if mark is None:
        return prompt
    # The mark, an empty line, the closing mark: as templates write a thought that is switched off.
    return f"{prompt.rstrip()}\n\n{mark[0]}/{mark[1:]}\n\n"


def _leading(record: Record) -> list[dict[str, Any]]:
    """Return the system message that the record's conversation begins with, or nothing."""
    first = record.conversation_with_system()[:1]
    return first if first[0]["role"] == "system" else []


def _shared_length(rows: Sequence[Ids], shared: SharedText | None) -> int:
    """Return how many tokens all prompts begin with, their last ones left out."""
    if len(rows) < 2:
        return 0
    # The shared text bounds it: what queries of one window happen to share differs by window.
    common = shared.ids if shared is not None else rows[0]
    length = min(common_length(common, row) for row in rows)
    return min(length, *(len(row) - 1 for row in rows))
