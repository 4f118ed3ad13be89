"""Whole calls under a given tool's name: what a redirect would write, and whether it is right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.call_check import Outcome, check_call, check_name
from toolguard.calibration.reading.generation import turn_text
from toolguard.calibration.reading.prompt_groups import prompt_groups
from toolguard.calibration.reading.prompts import OnSkip, PromptWriter
from toolguard.calibration.reading.row_packs import BATCH_TOKENS
from toolguard.calibration.steering_lab.trials import Trial, TrialBench

Target = tuple[str, str]
"""A record's id and the tool whose name is forced."""


def written_outcomes(
    loaded: LoadedModel,
    wire: WireFormat,
    wanted: Iterable[tuple[Record, str]],
    *,
    on_skip: OnSkip,
    names_only: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    new_tokens: int = 96,
) -> dict[Target, Outcome]:
    """Return what the next call of each record is under each forced name, written greedily.

    A pair that is wanted twice is written once. In a format without arguments the name is all.

    Args:
        loaded: the model.
        wire: how it writes calls.
        wanted: records, each with a tool of its menu.
        on_skip: told of each record that has no prompt; its pairs are not in the result.
        names_only: tell the model the tools' names alone.
        batch_tokens: most new tokens in one forward.
        new_tokens: most tokens behind a name.
    """
    records: dict[str, Record] = {}
    tools: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for record, tool in wanted:
        records[record.id] = record
        tools[record.id][tool] = None
    if not wire.writes_arguments:
        return {(id_, tool): check_name(records[id_], tool) for id_ in tools for tool in tools[id_]}
    writer = PromptWriter(loaded, wire, names_only=names_only)
    bench = TrialBench(loaded, batch_tokens=batch_tokens, new_tokens=new_tokens)
    found: dict[Target, Outcome] = {}
    for group in prompt_groups(writer, list(records.values()), on_skip):
        pairs = [(prompt, tool) for prompt in group.prompts for tool in tools[prompt.record.id]]
        trials = [Trial(prompt=prompt, opening=prompt.trie.path_of(tool)) for prompt, tool in pairs]
        written = bench.run(group.shared, trials, until="end")
        for (prompt, tool), one in zip(pairs, written, strict=True):
            text = turn_text(loaded, prompt, one.tokens)
            found[prompt.record.id, tool] = _outcome(wire, prompt.record, text)
    return found


def _outcome(wire: WireFormat, record: Record, text: str) -> Outcome:
    """Return what the turn's first call is; what follows it is another decision."""
    turn, _ = wire.parse_written(text, menu=record.menu)
    return check_call(record, turn.calls[0]) if turn.calls else "malformed"
