"""How well an agent does what it was trained for, in rates with intervals and bars beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from toolguard.adapters.decision_token import name_tokens
from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.schema_fit import fits_schema
from toolguard.calibration.reading.collect import BATCH_TOKENS, collect
from toolguard.calibration.reading.generation import continue_prompts
from toolguard.calibration.training.card_records import (
    absent_tool_records,
    capped,
    curated_records,
    frame_records,
    hwu64_records,
    silent_records,
    unseen_records,
)
from toolguard.calibration.training.examples import TRAINING_TENTHS
from toolguard.guard.errors import ConfigError, ParseError, ToolguardError
from toolguard.guard.rate import Rate, wilson

Quantity = Literal["tool_accuracy", "arguments_valid", "calls", "answers_in_words"]
Report = Callable[[str], None]
"""Told what is being measured."""

NEW_TOKENS = 96  # a call takes about 30
OPENING_TOKENS = 16  # a turn that is a call opens it with its first tokens
_GENERATION_TOKENS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What a rate should reach, in [0, 1].

    Args:
        least: met or not met.
        aim: what was hoped for beyond that; None if nothing.
    """

    least: float
    aim: float | None = None


ACCURACY_BARS: dict[str, Bar] = {
    "curated": Bar(least=0.95),
    "frames": Bar(least=0.95),
    "snips": Bar(least=0.95),
    "clinc150": Bar(least=0.75, aim=0.84),
    "hwu64": Bar(least=0.75, aim=0.85),
}
ARGUMENTS_BAR = Bar(least=0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured rate.

    Args:
        quantity: what was counted.
        source: over which queries.
        rate: with Wilson's 95 % interval.
        bar: what it should reach; None if nothing was asked.
    """

    quantity: Quantity
    source: str
    rate: Rate
    bar: Bar | None = None

    @property
    def met(self) -> bool | None:
        """Whether the rate reaches the bar; None without a bar or without a value."""
        if self.bar is None or self.rate.value is None:
            return None
        return self.rate.value >= self.bar.least

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        bar = {"bar": self.bar.least, "aim": self.bar.aim, "met": self.met} if self.bar else {}
        return {**self.rate.to_dict(), **bar}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementOptions:
    """What to measure.

    Args:
        data: folder with snips/, hwu64/ and clinc150/; None measures the agent's own tools alone.
        learned: tenths of the human records that the agent learned from; the others are measured.
        seed: fixes frames, menus and samples.
        limit: most queries a source for the tool accuracy; None takes all.
        generated: most queries a source and quantity for which text is generated.
    """

    data: Path | None = None
    learned: tuple[int, ...] = tuple(range(TRAINING_TENTHS))
    seed: int = 0
    limit: int | None = None
    generated: int = 300


DEFAULT_OPTIONS = MeasurementOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """All that was measured; seconds: wall time it took."""

    figures: tuple[Figure, ...]
    options: MeasurementOptions
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return `{quantity: {source: rate}}` with the options, as plain JSON values."""
        result: dict[str, Any] = {}
        for figure in self.figures:
            result.setdefault(figure.quantity, {})[figure.source] = figure.to_dict()
        options = self.options
        result |= {"seed": options.seed, "limit": options.limit, "generated": options.generated}
        return result | {"seconds": round(self.seconds, 1)}


def measure_agent(
    loaded: LoadedModel,
    wire: WireFormat,
    options: MeasurementOptions = DEFAULT_OPTIONS,
    report: Report | None = None,
) -> Measurement:
    """Return how often the agent picks the right tool, writes valid calls, and stays silent.

    Args:
        loaded: the agent.
        wire: how it writes calls.
        options: data, seed and sample sizes.
        report: told of each step.

    Raises:
        DatasetError: if `options.data` lacks a source.
        ConfigError: if the agent learned from every tenth.
    """
    if options.data is not None and set(options.learned) >= set(range(10)):
        raise ConfigError(
            "the agent learned from all human records, so none are left to measure it on",
            hint="train with --tenths below 10, or leave out --data",
        )
    started = time.monotonic()
    tell = report or _ignore
    figures: list[Figure] = []
    sources = _call_sources(options)
    for source, records in sources.items():
        tell(f"tool accuracy, {source}: {len(records)} queries")
        rate = tool_accuracy(loaded, wire, records)
        bar = ACCURACY_BARS.get(source)
        figures.append(Figure(quantity="tool_accuracy", source=source, rate=rate, bar=bar))
    for source, records in sources.items():
        sample = capped(records, options.generated, options.seed)
        tell(f"generated calls, {source}: {len(sample)} queries")
        figures += _generated(loaded, wire, source, sample)
    figures.append(_pooled("arguments_valid", figures))
    for source, records in _silent_sources(options).items():
        tell(f"answers in words, {source}: {len(records)} queries")
        called = opened_calls(loaded, wire, records, NEW_TOKENS)
        rate = wilson(len(records) - called, len(records))
        figures.append(Figure(quantity="answers_in_words", source=source, rate=rate))
    seconds = time.monotonic() - started
    return Measurement(figures=tuple(figures), options=options, seconds=seconds)


def _ignore(_step: str) -> None:
    pass


def _call_sources(options: MeasurementOptions) -> dict[str, list[Record]]:
    sources = {"curated": curated_records(), "frames": frame_records(options.seed)}
    if options.data is not None:
        sources |= {
            "snips": unseen_records(options.data, "snips", options.learned),
            "clinc150": unseen_records(options.data, "clinc150", options.learned),
            "hwu64": hwu64_records(options.data, options.learned, options.seed),
        }
    return {name: capped(found, options.limit, options.seed) for name, found in sources.items()}


def _silent_sources(options: MeasurementOptions) -> dict[str, list[Record]]:
    sources = {
        "no_tool": silent_records(options.seed, options.generated),
        "absent_tool": absent_tool_records(options.seed, options.generated),
    }
    if options.data is not None:
        unseen = unseen_records(options.data, "clinc150", options.learned, calls=False)
        sources["clinc150_out_of_scope"] = capped(unseen, options.generated, options.seed)
    return sources


def _generated(
    loaded: LoadedModel, wire: WireFormat, source: str, records: Sequence[Record]
) -> tuple[Figure, Figure]:
    valid = wilson(valid_calls(loaded, wire, records), len(records))
    opened = wilson(opened_calls(loaded, wire, records, OPENING_TOKENS), len(records))
    return (
        Figure(quantity="arguments_valid", source=source, rate=valid, bar=ARGUMENTS_BAR),
        Figure(quantity="calls", source=source, rate=opened),
    )


def _pooled(quantity: Quantity, figures: Sequence[Figure]) -> Figure:
    """Return the rate over the samples of all sources together."""
    rates = [figure.rate for figure in figures if figure.quantity == quantity]
    right = round(sum((rate.value or 0.0) * rate.n for rate in rates))
    rate = wilson(right, sum(rate.n for rate in rates))
    return Figure(quantity=quantity, source="all", rate=rate, bar=ARGUMENTS_BAR)


def tool_accuracy(loaded: LoadedModel, wire: WireFormat, records: Sequence[Record]) -> Rate:
    """Return how often the greedy whole-name choice at the decision token is right.

    Raises:
        ToolguardError: if a record has no prompt, for example one longer than the context.
    """
    seen = collect(loaded, wire, records, layers=(0,), on_skip=_refuse, batch_tokens=BATCH_TOKENS)
    right = [observation.is_right for observation in seen]
    return wilson(sum(right), len(right))


def _refuse(_record: Record, error: ToolguardError) -> NoReturn:
    raise error


def valid_calls(loaded: LoadedModel, wire: WireFormat, records: Sequence[Record]) -> int:
    """Return how many calls written after the forced opening parse and fit their tool's schema.

    The model chooses the name too: a tool that is not in the menu is not valid.
    """
    prompts: list[list[int]] = []
    turns: list[str] = []
    for record in records:
        text = _prompt(loaded, wire, record)
        forced = name_tokens(loaded.tokenizer, wire, record.menu.names, text).prefix_ids
        prompts.append([*_encode(loaded, text), *forced])
        turns.append(_decode(loaded, forced))
    written = continue_prompts(
        loaded, prompts, new_tokens=NEW_TOKENS, batch_tokens=_GENERATION_TOKENS
    )
    texts = [turn + _decode(loaded, tokens) for turn, tokens in zip(turns, written, strict=True)]
    return sum(_is_valid(wire, text, record) for text, record in zip(texts, records, strict=True))


def _is_valid(wire: WireFormat, text: str, record: Record) -> bool:
    try:
        calls = wire.parse(text, menu=record.menu).calls
    except ParseError:
        return False
    tools = [record.menu.get(call.name) for call in calls]
    return bool(calls) and all(
        tool is not None and fits_schema(call.arguments, tool.parameters)
        for tool, call in zip(tools, calls, strict=True)
    )


def opened_calls(
    loaded: LoadedModel, wire: WireFormat, records: Sequence[Record], new_tokens: int
) -> int:
    """Return in how many freely generated turns a call is opened within `new_tokens` tokens."""
    prompts = [_encode(loaded, _prompt(loaded, wire, record)) for record in records]
    written = continue_prompts(
        loaded, prompts, new_tokens=new_tokens, batch_tokens=_GENERATION_TOKENS
    )
    return sum(wire.find_name(_decode(loaded, tokens)) is not None for tokens in written)


def _prompt(loaded: LoadedModel, wire: WireFormat, record: Record) -> str:
    return wire.render(loaded.tokenizer, record.conversation_with_system(), record.menu)


def _encode(loaded: LoadedModel, text: str) -> list[int]:
    return list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def _decode(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    return str(loaded.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))
