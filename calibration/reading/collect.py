"""Reading what a model decides on labelled records, as fast as the model allows.

Records are taken in windows of fixed size and grouped by menu; what the prompts of a group share
goes through the model once, the rest in packs (`packed_rows`). What is run together hangs on the
records alone, never on which of them are done: an interrupted run that goes on gives, bit for bit,
what an unbroken one does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.near_duplicates import query_fingerprint
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.reading.decisions import Edit, read_decisions
from toolguard.calibration.reading.name_walk import FirstBranch, NameChoice, walk_names
from toolguard.calibration.reading.prompt_groups import prompt_groups
from toolguard.calibration.reading.prompts import OnSkip, Prompt, PromptWriter
from toolguard.calibration.reading.row_packs import BATCH_TOKENS, RowPacker
from toolguard.calibration.reading.shared_text import Ids
from toolguard.guard.errors import ConfigError, ReadoutError, ToolguardError

__all__ = ["BATCH_TOKENS", "WINDOW", "Observation", "collect"]

WINDOW = 2048  # records looked at together; bounds the memory


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """What was read at the decision token of one record.

    Args:
        record_id: the record's.
        query_hash: `query_fingerprint` of its query, unsigned 64 bits.
        menu_names: names of the tools offered, in menu order.
        menu_hashes: their content hashes, of what the model was told.
        label: index of the right call's name; None if no tool should be called.
        right: indices of all names that count as right; empty if there is no label.
        chosen: index of the model's greedy whole-name choice.
        scores: (names,) float32, whole-name log-probabilities as `NameTrie.scores_after` has them.
        hidden: (layers, dim) float32, the tapped blocks' outputs.
        branch: where the menu's names first part; None on a menu of one name, or from a spool.
    """

    record_id: str
    query_hash: int
    menu_names: tuple[str, ...]
    menu_hashes: tuple[str, ...]
    label: int | None
    right: frozenset[int]
    chosen: int
    scores: Tensor
    hidden: Tensor
    branch: FirstBranch | None = None

    @property
    def is_right(self) -> bool:
        """Whether the model's choice counts as right."""
        return self.chosen in self.right


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """Prompts to run together; kept: see `pack_plan.Pack`; None runs the one prompt plainly."""

    shared: Ids
    prompts: tuple[Prompt, ...]
    kept: tuple[int, ...] | None


def collect(  # noqa: PLR0913 - all but three have defaults
    loaded: LoadedModel,
    wire: WireFormat,
    records: Iterable[Record],
    *,
    layers: Sequence[int],
    on_skip: OnSkip,
    batch_tokens: int = BATCH_TOKENS,
    window: int = WINDOW,
    names_only: bool = False,
    share_prefix: bool = True,
    edit: Edit | None = None,
    done: Container[str] = (),
    on_done: Callable[[int], None] | None = None,
    on_plain: Callable[[str], None] | None = None,
) -> Iterator[Observation]:
    """Yield one observation a record, in an order that depends on the records alone.

    The order is not the records': within a window those that run together come together.

    Args:
        loaded: the model.
        wire: how it writes calls.
        records: read lazily, a window at a time.
        layers: distinct block indices to read.
        on_skip: told of each record that has no prompt: no tools, a name the format cannot carry,
            a conversation the template refuses, longer than the context.
        batch_tokens: most new tokens in one forward; a longer prompt goes alone. Also the most
            prefix tokens kept. On a CPU smaller packs are used where they are faster.
        window: records looked at together; memory grows with it, and larger ones share more.
        names_only: tell the model the tools' names alone.
        share_prefix: False runs each prompt whole and alone, which is what the fast way must equal.
        edit: changes the tapped blocks' outputs at the decision tokens; see `decisions.Edit`.
        done: ids of records that need no observation.
        on_done: told how many more records are dealt with, those done before and skipped included.
        on_plain: told why, if the model cannot run packed prompts and each runs alone.

    Raises:
        ConfigError: if a layer is no block of the model, or listed twice.
        UnsupportedModel: if the tokenizer cannot tell the decision token.
        ReadoutError: if a reading is not finite; names the record.
    """
    _check_layers(loaded, layers)
    if window < 1:
        raise ConfigError(f"window must be at least 1, found {window}")
    packer = RowPacker(loaded, batch_tokens=batch_tokens, share_prefix=share_prefix)
    if packer.plain_because is not None and on_plain is not None:
        on_plain(packer.plain_because)
    collector = _Collector(
        loaded=loaded,
        writer=PromptWriter(loaded, wire, names_only=names_only),
        packer=packer,
        layers=tuple(layers),
        window=window,
        edit=edit,
        done=done,
        on_skip=on_skip,
        on_done=on_done or _ignore,
    )
    return collector.run(records)


def _ignore(_count: int) -> None:
    pass


def _check_layers(loaded: LoadedModel, layers: Sequence[int]) -> None:
    blocks = len(loaded.view.blocks)
    if len(set(layers)) != len(layers) or not all(0 <= layer < blocks for layer in layers):
        raise ConfigError(
            f"layers {list(layers)}: expected distinct block indices from 0 to {blocks - 1}",
            layers=tuple(layers),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Collector:
    """One call of `collect`; its arguments, checked."""

    loaded: LoadedModel
    writer: PromptWriter
    packer: RowPacker
    layers: tuple[int, ...]
    window: int
    edit: Edit | None
    done: Container[str]
    on_skip: OnSkip
    on_done: Callable[[int], None]

    def run(self, records: Iterable[Record]) -> Iterator[Observation]:
        stream = iter(records)
        while taken := list(itertools.islice(stream, self.window)):
            if all(record.id in self.done for record in taken):
                self.on_done(len(taken))
            else:
                yield from self._window(taken)

    def _window(self, window: Sequence[Record]) -> Iterator[Observation]:
        for job in self._jobs(window):
            fresh = [prompt.record.id not in self.done for prompt in job.prompts]
            # All of a job or none: what runs together decides the last bits.
            observations = self._observe(job) if any(fresh) else ()
            yield from itertools.compress(observations, fresh)
            self.on_done(len(job.prompts))

    def _jobs(self, window: Sequence[Record]) -> Iterator[_Job]:
        for group in prompt_groups(self.writer, window, self._skip):
            shared, prompts = group.shared, group.prompts
            for batch in self.packer.batches(shared, [prompt.suffix for prompt in prompts]):
                members = tuple(prompts[member] for member in batch.members)
                yield _Job(shared=shared, prompts=members, kept=batch.kept)

    def _skip(self, record: Record, error: ToolguardError) -> None:
        self.on_skip(record, error)
        self.on_done(1)

    def _observe(self, job: _Job) -> list[Observation]:
        try:
            return self._read(job)
        except ReadoutError:
            if job.kept is None:
                raise
        # A NaN times a mask's zero is NaN: one row spoils its pack. Alone, each speaks for itself.
        alone = (_Job(shared=job.shared, prompts=(row,), kept=None) for row in job.prompts)
        return [observation for row in alone for observation in self._read(row)]

    @torch.inference_mode()
    def _read(self, job: _Job) -> list[Observation]:
        ids = [prompt.record.id for prompt in job.prompts]
        rows = self.packer.rows(job.shared, [prompt.suffix for prompt in job.prompts], job.kept)
        state = read_decisions(
            self.loaded, rows, layers=self.layers, record_ids=ids, edit=self.edit
        )
        tries = [prompt.trie for prompt in job.prompts]
        choices = walk_names(state.rows, state.logits, tries, ids)
        # Off the inference-mode tensors, which no later fit could differentiate through.
        with torch.inference_mode(mode=False):
            return [
                _observation(prompt, choice, hidden.clone())
                for prompt, choice, hidden in zip(
                    job.prompts, choices, state.hidden.unbind(), strict=True
                )
            ]


def _observation(prompt: Prompt, choice: NameChoice, hidden: Tensor) -> Observation:
    record, offered = prompt.record, prompt.offered
    names = offered.menu.names
    return Observation(
        record_id=record.id,
        query_hash=query_fingerprint(record.query),
        menu_names=names,
        menu_hashes=offered.hashes,
        label=None if record.call is None else names.index(record.call.name),
        right=frozenset(names.index(name) for name in record.right_names),
        chosen=choice.chosen,
        scores=choice.scores.clone(),
        hidden=hidden,
        branch=None if choice.branch is None else choice.branch.detached(),
    )
