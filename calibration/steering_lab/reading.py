"""What the model does unsteered: its choices, and the states that the means are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.reading.collect import Observation, collect
from toolguard.calibration.reading.prompts import PromptWriter
from toolguard.calibration.steering_lab.pairs import Choice, grouped_prompts
from toolguard.calibration.steering_lab.state_means import MeanSums, Opening, StateMeans
from toolguard.calibration.steering_lab.trials import Trial, TrialBench
from toolguard.guard.errors import ToolguardError
from toolguard.guard.trie import ROOT, NameTrie


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chosen:
    """The choices on some records.

    Args:
        choices: of the records that could be read.
        right: ids of those where the model's choice counts as right.
        skipped: records that have no prompt.
    """

    choices: tuple[Choice, ...]
    right: frozenset[str]
    skipped: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabReader:
    """Reads records with one model, format and recipe.

    Args:
        loaded: the model.
        wire: how calls are written.
        layers: blocks whose outputs are wanted.
        names_only: tell the model the tools' names alone.
        batch_tokens: most new tokens in one forward.
    """

    loaded: LoadedModel
    wire: WireFormat
    layers: tuple[int, ...]
    names_only: bool
    batch_tokens: int

    def writer(self) -> PromptWriter:
        """Return what writes the prompts that are read here."""
        return PromptWriter(self.loaded, self.wire, names_only=self.names_only)

    def choices(self, records: Sequence[Record]) -> Chosen:
        """Return the model's choices on these records."""
        found, skipped = self._observe(records, ())
        by_id = {record.id: record for record in records}
        return Chosen(
            choices=tuple(
                Choice(record=by_id[one.record_id], chosen=one.menu_names[one.chosen])
                for one in found
            ),
            right=frozenset(one.record_id for one in found if one.is_right),
            skipped=skipped,
        )

    def means(self, bench: TrialBench, records: Sequence[Record], fewest: int) -> StateMeans:
        """Return the means over the records that the model gets right.

        Args:
            bench: reads the states behind the decision token.
            records: none of them is steered.
            fewest: least calls that a mean is made of.
        """
        sums = MeanSums(layers=self.layers)
        by_id = {record.id: record for record in records}
        found, _ = self._observe(records, self.layers)
        right = [one for one in found if one.is_right]
        for one in right:
            sums.add((), one.menu_names[one.chosen], one.hidden)
        chosen = {one.record_id: one.menu_names[one.chosen] for one in right}
        self._add_partings(bench, [by_id[record_id] for record_id in chosen], chosen, sums)
        return sums.means(fewest)

    def _add_partings(
        self,
        bench: TrialBench,
        records: Sequence[Record],
        chosen: dict[str, str],
        sums: MeanSums,
    ) -> None:
        """Add the states at the later tokens where the chosen name parts from another one."""
        for group in grouped_prompts(self.writer(), records):
            trials = [
                Trial(prompt=prompt, opening=opening)
                for prompt in group.prompts
                for opening in _later_partings(prompt.trie, chosen[prompt.record.id])
            ]
            for trial, written in zip(
                trials, bench.run(group.shared, trials, "start", self.layers), strict=True
            ):
                sums.add(trial.opening, chosen[trial.prompt.record.id], written.hidden)

    def _observe(
        self, records: Sequence[Record], layers: Sequence[int]
    ) -> tuple[list[Observation], int]:
        skipped: list[ToolguardError] = []
        found = collect(
            self.loaded,
            self.wire,
            records,
            layers=layers,
            batch_tokens=self.batch_tokens,
            names_only=self.names_only,
            on_skip=lambda _record, error: skipped.append(error),
        )
        return list(found), len(skipped)


def _later_partings(trie: NameTrie, name: str) -> Iterator[Opening]:
    """Yield what of a name stands where others of the menu part from it, not at its first token."""
    path = trie.path_of(name)
    node: int | None = ROOT
    for depth, token in enumerate(path):
        if node is not None and depth and len(trie.children(node)) > 1:
            yield path[:depth]
        node = None if node is None else trie.advance(node, token)
