"""Queries a second of reading for calibration, against the two ways a user would write first.

    collect   ours: the shared prefix once, the queries in packs; rendering, tokenising and the walk
              over the names included
    plain     one forward a query with `output_hidden_states=True`
    nnsight   one trace a query that saves the same blocks' outputs

Both baselines get tokens that are ready, and compute logits for the last position alone. In each
round ours reads all queries and each baseline the round's own few; the order turns. Every hidden
state that a baseline reads must equal ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, cast

import torch
from agents import Agent
from figures import Figure, Goal
from timing import seconds, spread_of, steady_clock
from torch import Tensor
from workloads import Workload

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.nnsight_oracle import import_nnsight
from toolguard.adapters.wire import detect_format
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.reading.collect import collect
from toolguard.calibration.reading.prompts import PromptWriter
from toolguard.guard.errors import ReadoutError, ToolguardError

TOLERANCE = 1e-4  # of the largest number in the two hidden states, or of 1
_COLLECT = "collect"

Reader = Callable[[Tensor], Tensor]
"""Gets (tokens,) int64 ids; returns (layers, dim) at the last one."""


def measure(agent: Agent, workload: Workload, *, rounds: int, queries: int) -> list[Figure]:
    """Return the speed-up against both baselines; each reads `queries` queries a round."""
    run = _Run.of(agent.loaded, workload)
    readers: dict[str, Reader] = {
        "plain": _PlainReader(agent.loaded, run.layers),
        "nnsight": _TracedReader(agent.loaded, run.layers),
    }
    rates = run.rounds(readers, rounds=rounds, queries=queries)
    note = (
        f"{workload.title}: {len(run.ids)} queries, prompts of {run.median_tokens} tokens in the "
        f"median; blocks {', '.join(map(str, run.layers))}; "
        f"{spread_of(rates[_COLLECT]).median:.1f} queries/s"
    )
    return [
        Figure(
            name=f"calibrate_speedup_{name}",
            spread=spread_of(
                [ours / theirs for ours, theirs in zip(rates[_COLLECT], rates[name], strict=True)]
            ),
            unit="x",
            goal=Goal(limit=10, at_least=True),
            note=f"{note} against {spread_of(rates[name]).median:.2f}; largest difference of a "
            f"hidden state {run.differences[name]:.1e} of {rounds * queries} queries compared",
        )
        for name in readers
    ]


@dataclass(slots=True, kw_only=True)
class _Run:
    """The queries, what ours read of them, and how far the others were off.

    Args:
        loaded: the model.
        workload: records.
        ids: (tokens,) int64 of each record that has a prompt, by id; ends at the decision token.
        layers: blocks that are read: all but the last, whose output `output_hidden_states` does not
            give (it is normed there).
        hidden: (layers, dim) that ours read last, by record id.
        differences: largest one found, by baseline.
    """

    loaded: LoadedModel
    workload: Workload
    ids: Mapping[str, Tensor]
    layers: tuple[int, ...]
    hidden: dict[str, Tensor] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, loaded: LoadedModel, workload: Workload) -> _Run:
        return cls(
            loaded=loaded,
            workload=workload,
            ids=_whole_prompts(loaded, workload.records),
            layers=tuple(range(max(1, len(loaded.view.blocks) - 1))),
        )

    @property
    def median_tokens(self) -> int:
        return int(spread_of([float(len(ids)) for ids in self.ids.values()]).median)

    def rounds(
        self, readers: Mapping[str, Reader], *, rounds: int, queries: int
    ) -> dict[str, list[float]]:
        """Return queries a second of ours and of each reader, a value a round."""
        keys = list(self.ids)
        rates: dict[str, list[float]] = {name: [] for name in (_COLLECT, *readers)}
        self._collect(0)
        for name, reader in readers.items():  # warms up
            self._compare(name, keys[-1], reader(self.ids[keys[-1]]))
        with steady_clock():
            for number in range(rounds):
                chosen = [keys[(number * queries + at) % len(keys)] for at in range(queries)]
                for name in _turned((_COLLECT, *readers), number):
                    rates[name].append(
                        self._collect(number)
                        if name == _COLLECT
                        else self._read(name, readers[name], chosen)
                    )
        return rates

    def _collect(self, turn: int) -> float:
        def work(_turn: int) -> None:
            observed = collect(
                self.loaded,
                detect_format(self.loaded.tokenizer),
                self.workload.records,
                layers=self.layers,
                on_skip=_ignore,
            )
            self.hidden = {one.record_id: one.hidden for one in observed}

        return len(self.ids) / seconds(work, turn)

    def _read(self, name: str, reader: Reader, chosen: Sequence[str]) -> float:
        found: dict[str, Tensor] = {}

        def work(_turn: int) -> None:
            for key in chosen:
                found[key] = reader(self.ids[key])

        rate = len(chosen) / seconds(work, 0)
        for key, hidden in found.items():
            self._compare(name, key, hidden)
        return rate

    def _compare(self, name: str, key: str, theirs: Tensor) -> None:
        """Note how far a reading is from ours.

        Raises:
            ReadoutError: if it is further than the tolerance.
        """
        ours, theirs = self.hidden[key], theirs.to("cpu", torch.float32)
        largest = max(1.0, float(theirs.abs().max()))
        difference = float((ours - theirs).abs().max()) / largest
        self.differences[name] = max(difference, self.differences.get(name, 0.0))
        if not difference <= TOLERANCE:
            raise ReadoutError(
                f"{key}: ours and {name} differ by {difference:.1e}, allowed are {TOLERANCE:.0e}"
            )


def _ignore(_record: Record, _error: ToolguardError) -> None:
    """Leave out a record longer than the context: it is in no figure."""


def _turned(names: Sequence[str], by: int) -> list[str]:
    place = by % len(names)
    return [*names[place:], *names[:place]]


def _whole_prompts(loaded: LoadedModel, records: Sequence[Record]) -> dict[str, Tensor]:
    writer = PromptWriter(loaded, detect_format(loaded.tokenizer))
    found: dict[str, Tensor] = {}
    for record in records:
        # Written alone, a record shares nothing: its suffix is the whole prompt.
        for prompt in writer.write([record], _ignore).prompts:
            found[record.id] = torch.from_numpy(prompt.suffix).to(loaded.device, torch.int64)
    return found


class _PlainReader:
    """One forward a query."""

    def __init__(self, loaded: LoadedModel, layers: Sequence[int]) -> None:
        self._model = cast("Any", loaded.model)
        self._layers = layers

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        output = self._model(
            input_ids=ids[None], output_hidden_states=True, use_cache=False, logits_to_keep=1
        )
        # hidden_states[0] is the embedding, so block i's output stands at i + 1.
        return torch.stack([output.hidden_states[layer + 1][0, -1] for layer in self._layers])


class _TracedReader:
    """One nnsight trace a query, on a copy of the model: nnsight replaces its forwards."""

    def __init__(self, loaded: LoadedModel, layers: Sequence[int]) -> None:
        self._nnsight = import_nnsight()
        self._layers = layers
        self._model = self._nnsight.TransformersModel(
            copy.deepcopy(loaded.model),
            tokenizer=copy.deepcopy(loaded.tokenizer),
            task="text-generation",
        )
        self._blocks = attrgetter(loaded.view.path)(self._model)

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        nnsight, layers, blocks = self._nnsight, self._layers, self._blocks
        with self._model.trace(ids[None], use_cache=False, logits_to_keep=1):
            rows = nnsight.save([])
            for layer in layers:
                rows.append(blocks[layer].output[0, -1])
        return torch.stack(cast("list[Tensor]", rows))
