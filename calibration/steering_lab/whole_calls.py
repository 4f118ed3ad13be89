"""What becomes of the call after a switch: does it parse, fit the schema, keep its values?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.argument_match import accepted_arguments, same_value
from toolguard.calibration.labels.schema_fit import fits_schema
from toolguard.calibration.reading.generation import turn_text
from toolguard.calibration.steering_lab.directions import Directions
from toolguard.calibration.steering_lab.pairs import Pair
from toolguard.calibration.steering_lab.settings import Setting, try_settings
from toolguard.calibration.steering_lab.trials import TrialBench, Written
from toolguard.guard.rate import wilson
from toolguard.guard.tools import ToolCall


@dataclass(slots=True, kw_only=True)
class CallCounts:
    """Counts over the pairs of one setting.

    Args:
        n: pairs tried.
        switched: the text names the tool wanted: the target, or without a change the source.
        parsed: and the turn is whole calls without a fault, the first of them to that tool.
        schema_valid: and its arguments fit the tool's schema.
        shared: pairs whose label has arguments that the tool wanted has too, by name.
        values_kept: of these, those where the call has all of them with the label's values.
        without_means: pairs that could not be tried, for want of a mean.
    """

    n: int = 0
    switched: int = 0
    parsed: int = 0
    schema_valid: int = 0
    shared: int = 0
    values_kept: int = 0
    without_means: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CallCell:
    """What one setting does to the calls of some pairs."""

    setting: Setting
    counts: CallCounts = field(default_factory=CallCounts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, rates with 95 % intervals.

        In rates over all pairs a call that did not switch counts as failed; the rates
        `after_switch` are over the pairs that did.
        """
        c = self.counts
        return {
            **self.setting.to_dict(),
            "n": c.n,
            "switched": wilson(c.switched, c.n).to_dict(),
            "parsed": wilson(c.parsed, c.n).to_dict(),
            "schema_valid": wilson(c.schema_valid, c.n).to_dict(),
            "schema_valid_after_switch": wilson(c.schema_valid, c.switched).to_dict(),
            "values_kept": wilson(c.values_kept, c.shared).to_dict(),
            "without_means": c.without_means,
        }


def measure_calls(
    bench: TrialBench,
    reader: CallReader,
    directions: Directions,
    pairs: Sequence[Pair],
    settings: Sequence[Setting],
    *,
    on_done: Callable[[int], object] | None = None,
) -> list[CallCell]:
    """Return one cell a setting, over all pairs; each writes its turn to the end.

    Args:
        bench: runs the model.
        reader: takes the turns apart.
        directions: where to push.
        pairs: those whose prompts begin alike stand together.
        settings: what is done to each of them.
        on_done: told of each pair that is through.
    """
    cells = [CallCell(setting=setting) for setting in settings]
    for pair, told in try_settings(bench, directions, pairs, settings, "end"):
        for cell, written in zip(cells, told, strict=True):
            if written is None:
                cell.counts.without_means += 1
            else:
                wanted = pair.source if cell.setting.method == "none" else pair.target
                _count(cell.counts, pair.prompt.record, wanted, *reader.read(pair, written))
        if on_done is not None:
            on_done(1)
    return cells


@dataclass(frozen=True, slots=True, kw_only=True)
class CallReader:
    """Takes written turns apart.

    Args:
        loaded: its tokenizer wrote the prompts.
        wire: how calls are written.
    """

    loaded: LoadedModel
    wire: WireFormat

    def read(self, pair: Pair, written: Written) -> tuple[str | None, ToolCall | None]:
        """Return the first name in the text, and the first call if the whole turn parses."""
        text = turn_text(self.loaded, pair.prompt, written.tokens)
        span = self.wire.find_name(text, 0)
        turn, fault = self.wire.parse_written(text, menu=pair.prompt.offered.menu)
        call = turn.calls[0] if turn.calls and fault is None else None
        return None if span is None else span.name, call


def _count(
    counts: CallCounts, record: Record, wanted: str, name: str | None, call: ToolCall | None
) -> None:
    tool = record.menu.get(wanted)
    schema = {} if tool is None else tool.parameters
    counts.n += 1
    expected = shared_arguments(record, schema)
    counts.shared += bool(expected)
    if name != wanted:
        return
    counts.switched += 1
    if call is None or call.name != wanted:
        return
    counts.parsed += 1
    counts.schema_valid += fits_schema(call.arguments, schema)
    counts.values_kept += bool(expected) and keeps_values(call.arguments, record, expected)


def shared_arguments(record: Record, schema: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the label's arguments that a tool's schema has, too."""
    properties = schema.get("properties")
    if record.call is None or not isinstance(properties, Mapping):
        return frozenset()
    return frozenset(record.call.arguments) & frozenset(properties)


def keeps_values(arguments: Mapping[str, Any], record: Record, names: frozenset[str]) -> bool:
    """Return whether the arguments of these names have the values of the record's label."""
    if record.call is None:
        return False
    own = record.call.name
    listed = next((entry[own] for entry in record.accept if own in entry), {})
    return all(
        name in arguments and _is_right(name, arguments[name], record.call.arguments, listed)
        for name in names
    )


def _is_right(name: str, value: Any, label: Mapping[str, Any], listed: Mapping[str, Any]) -> bool:
    if name in listed:
        return accepted_arguments({name: value}, {name: listed[name]}, {})
    return same_value(value, label[name])
