"""The unembedding row of each tool's first distinguishing token: a stand-in for its mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from toolguard.adapters.decision_token import name_tokens
from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.fitting.tool_means import NameRows
from toolguard.calibration.reading.prompts import PromptWriter
from toolguard.guard.errors import CalibrationError, ConfigError
from toolguard.guard.trie import ROOT, NameTrie


class NameTokenFinder:
    """Notes each tool's first distinguishing token while records pass by.

    Which token distinguishes depends on the menu; the first menu that offers the tool counts.

    Args:
        loaded: the model.
        wire: its format.
        names_only: as in `collect`.
    """

    def __init__(self, loaded: LoadedModel, wire: WireFormat, *, names_only: bool = False) -> None:
        self._loaded = loaded
        self._wire = wire
        self._writer = PromptWriter(loaded, wire, names_only=names_only)
        self._tokens: dict[str, int] = {}
        self._prefix: tuple[int, ...] | None = None

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records unchanged."""
        for record in records:
            if record.tools and not self._tokens.keys() >= set(record.menu.names):
                self._look(record)
            yield record

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """Tokens from the prompt's end to the decision token, on the first menu met.

        Raises:
            CalibrationError: if no record could be rendered.
        """
        if self._prefix is None:
            raise CalibrationError("no record could be rendered, so there is no decision token")
        return self._prefix

    def rows(self, names: Sequence[str]) -> NameRows:
        """Return the rows of these tools, float32 on the CPU.

        Raises:
            CalibrationError: if a tool was in no menu met.
        """
        if missing := [name for name in names if name not in self._tokens]:
            raise CalibrationError(f"no menu offered {', '.join(missing)}")
        unembedding = self._loaded.view.unembedding.detach()
        ids = torch.tensor([self._tokens[name] for name in names], device=unembedding.device)
        return NameRows(
            rows=unembedding[ids].to("cpu", torch.float32),
            mean=unembedding.mean(dim=0, dtype=torch.float32).cpu(),
        )

    def _look(self, record: Record) -> None:
        try:
            context = self._writer.text(record)
            found = name_tokens(self._loaded.tokenizer, self._wire, record.menu.names, context)
        except ConfigError:
            return  # collection reports the record
        trie = NameTrie(found.paths)
        for name, path in found.paths.items():
            self._tokens.setdefault(name, distinguishing_token(trie, path))
        if self._prefix is None:
            self._prefix = found.prefix_ids


def distinguishing_token(trie: NameTrie, path: Sequence[int]) -> int:
    """Return the token by which a path leaves its first branch; its first token if none has any."""
    node = ROOT
    for token in path:
        following = trie.advance(node, token)
        if len(trie.children(node)) > 1 or following is None:
            return token
        node = following
    return path[0]
