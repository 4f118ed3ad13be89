"""The agent's model card: what it is, what it was made from, and what was measured, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.training.attribution import SOURCES, PublicSource
from toolguard.calibration.training.catalog import curated_queries, load_catalog
from toolguard.calibration.training.facts import TrainingFacts
from toolguard.calibration.training.measurement import Figure, Measurement, Quantity
from toolguard.guard.errors import ConfigError

CARD_FILE, NUMBERS_FILE = "README.md", "numbers.json"
_TITLES: dict[Quantity, str] = {
    "tool_accuracy": "Tool accuracy",
    "arguments_valid": "Valid calls",
    "calls": "Calls where one is right",
    "answers_in_words": "Words where no call is right",
}
_METHODS: dict[Quantity, str] = {
    "tool_accuracy": (
        "The greedy choice of a whole name over the menu, at the token that decides it, against "
        "the label. The prompt holds full tool definitions."
    ),
    "arguments_valid": (
        "The opening of a call is given, the agent writes name and arguments freely (greedy). "
        "Valid: it parses, the tool is in the menu, the arguments fit its JSON Schema."
    ),
    "calls": ("The turn is written freely (greedy); counted is whether it opens a call at once."),
    "answers_in_words": (
        "The whole turn is written freely (greedy); counted is whether it opens no call."
    ),
}
_QUERIES = {
    "curated": "own curated queries, 10-tool base menu",
    "frames": "own test frames, shuffled 10-tool menus from all 50",
    "snips": "SNIPS, 7 tools",
    "clinc150": "CLINC150, 15-tool domain menus",
    "hwu64": "HWU64, 16-tool menus, half the rest from the same scenario",
    "all": "all of these together",
    "no_tool": "own no-tool queries, shuffled 10-tool menus",
    "absent_tool": "own test frames, the right tool not in the menu",
    "clinc150_out_of_scope": "CLINC150 out-of-scope queries",
}


def write_card(
    folder: Path,
    loaded: LoadedModel,
    wire: WireFormat,
    facts: TrainingFacts,
    measurement: Measurement,
) -> None:
    """Write README.md and numbers.json into the agent's folder.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    numbers = json.dumps(measurement.to_dict(), indent=2, allow_nan=False)
    try:
        (folder / NUMBERS_FILE).write_text(f"{numbers}\n", encoding="utf-8")
        (folder / CARD_FILE).write_text(
            render_card(loaded, wire, facts, measurement), encoding="utf-8"
        )
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror}") from error


def render_card(
    loaded: LoadedModel, wire: WireFormat, facts: TrainingFacts, measurement: Measurement
) -> str:
    """Return the model card as Markdown."""
    public = [source for source in SOURCES if source.name in facts.records_sha256]
    parts = [
        _what_it_is(loaded, wire, facts),
        _numbers(measurement),
        _data(facts, public),
        _attributions(public),
        _recipe(facts),
        _use_and_limits(public),
    ]
    return "\n\n".join(parts) + "\n"


def _what_it_is(loaded: LoadedModel, wire: WireFormat, facts: TrainingFacts) -> str:
    config = loaded.model.config
    rows = {
        "architecture": f"{config.architectures[0] if config.architectures else config.model_type}",
        "parameters": f"{facts.parameters:,}",
        "blocks": config.num_hidden_layers,
        "hidden size": config.hidden_size,
        "MLP size": config.intermediate_size,
        "attention heads": f"{config.num_attention_heads} ({config.num_key_value_heads} for keys "
        f"and values), {config.head_dim} wide",
        "vocabulary": f"{config.vocab_size:,}, byte-level BPE, trained on the same data",
        "positions": f"{config.max_position_embeddings:,}",
        "embeddings": "tied" if config.tie_word_embeddings else "untied",
        "format of calls": wire.name,
        "weights": f"safetensors; fingerprint as {loaded.dtype}: `{loaded.fingerprint}`",
        "licence": "Apache-2.0; the training data: see Attribution",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return (
        "# Reference agent\n\n"
        "A small language model that calls tools: it reads a menu of tools and a user's request "
        "and answers with one call, or in words where no tool fits. It was trained from scratch "
        "so that calibration, the guard and every command can be tried without a download.\n\n"
        f"| | |\n|---|---|\n{table}"
    )


def _numbers(measurement: Measurement) -> str:
    quantities = dict.fromkeys(figure.quantity for figure in measurement.figures)
    sections = [_section(measurement, quantity) for quantity in quantities]
    options = measurement.options
    sizes = "all queries" if options.limit is None else f"at most {options.limit} queries a source"
    return (
        "## Numbers\n\n"
        "On queries and frames that training never saw: rates with Wilson's 95 % interval; met "
        "compares the rate itself with the bar. "
        f"Tool accuracy over {sizes}, generated text over at most {options.generated} a row; "
        f"seed {options.seed}. The same in `{NUMBERS_FILE}`.\n\n" + "\n\n".join(sections)
    )


def _section(measurement: Measurement, quantity: Quantity) -> str:
    figures = [figure for figure in measurement.figures if figure.quantity == quantity]
    return f"### {_TITLES[quantity]}\n\n{_METHODS[quantity]}\n\n{figure_table(figures)}"


def figure_lines(measurement: Measurement) -> str:
    """Return the figures as lines for a terminal."""
    lines = [
        f"{figure.quantity:18} {figure.source:22} {figure.rate.n:6} "
        f"{_value(figure):>8}  {_interval(figure):18} {_bar(figure):24} {_verdict(figure)}"
        for figure in measurement.figures
    ]
    head = f"{'quantity':18} {'queries':22} {'n':>6} {'rate':>8}  {'95 % interval':18} bar"
    return "\n".join(line.rstrip() for line in [head, *lines])


def figure_table(figures: Sequence[Figure]) -> str:
    """Return a Markdown table of the figures, a row each."""
    head = "| queries | n | rate | 95 % interval | bar | |\n|---|---:|---:|---|---|---|"
    return "\n".join([head, *(_row(figure) for figure in figures)])


def _row(figure: Figure) -> str:
    verdict = _verdict(figure).replace("not met", "**not met**")
    queries, n = _QUERIES[figure.source], f"{figure.rate.n:,}"
    cells = (queries, n, _value(figure), _interval(figure), _bar(figure), verdict)
    return f"| {' | '.join(cells)} |"


def _value(figure: Figure) -> str:
    return "-" if figure.rate.value is None else _percent(figure.rate.value)


def _interval(figure: Figure) -> str:
    low, high = figure.rate.low, figure.rate.high
    return "-" if low is None or high is None else f"{_percent(low)} to {_percent(high)}"


def _verdict(figure: Figure) -> str:
    value, bar = figure.rate.value, figure.bar
    if value is None or bar is None:
        return ""
    if not figure.met:
        return "not met"
    return "met, aim not reached" if bar.aim is not None and value < bar.aim else "met"


def _bar(figure: Figure) -> str:
    if figure.bar is None:
        return "none"
    aim = f", aim {_percent(figure.bar.aim)}" if figure.bar.aim else ""
    return f">= {_percent(figure.bar.least)}{aim}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _data(facts: TrainingFacts, public: Sequence[PublicSource]) -> str:
    catalog = load_catalog()
    frames = sum(len(tool.train) for tool in catalog.tools.values())
    tests = sum(len(tool.test) for tool in catalog.tools.values())
    text = (
        "## Data\n\n"
        f"- The project's own catalogue: {len(catalog.tools)} tools, {frames} sentence templates "
        f"for training and {tests} others for tests, word lists for their slots, and "
        f"{len(catalog.no_tool_train)} templates of requests that no tool answers. Expanded anew "
        f"on every draw. {len(curated_queries())} further queries over {len(catalog.base)} base "
        "tools were written one by one and are never trained on."
    )
    if not public:
        return text
    tenths = ", ".join(map(str, facts.tenths))
    hashes = "\n".join(
        f"- {source.title}: records file SHA-256 `{facts.records_sha256[source.name]}`."
        for source in public
    )
    return (
        f"{text}\n{hashes}\n\n"
        f"Of the public records only those of tenths {tenths} were learned from "
        f"({10 * len(facts.tenths)} %); the others are left for calibration and tests. A record's "
        "tenth is `int(sha256(id.encode()).hexdigest(), 16) % 10` of its id. Tenths do not keep "
        "alike queries together: a query measured here may resemble one that was learned."
    )


def _attributions(public: Sequence[PublicSource]) -> str:
    if not public:
        return "## Attribution\n\nNo public data set was used."
    return "## Attribution\n\n" + "\n\n".join(source.notice() for source in public)


def _recipe(facts: TrainingFacts) -> str:
    settings = ", ".join(
        f"{k} {v:g}" for k, v in facts.recipe.items() if isinstance(v, int | float)
    )
    stages = "\n".join(f"- {_stage(stage)}." for stage in facts.recipe.get("stages", ()))
    cpu = "not recorded" if facts.cpu_seconds is None else _hours(facts.cpu_seconds)
    note = f"\n\n{facts.note}" if facts.note else ""
    return (
        "## Recipe\n\n"
        "`toolguard train agent --out RUN --data FOLDER`. The first weights can copy already: what "
        "followed a token before follows it again. Rows of up to 2,048 tokens: one drawn menu of 2 "
        "to 20 tools (with everything, without descriptions, or names alone), then many "
        "conversations, each blind to the others. Values in queries and calls are exchanged or "
        "made up, and some rows have made-up tools, so that names and values are read and not "
        f"learned by heart. {facts.optimizer}, cosine schedule after a warm-up, dropout on "
        "embedding, attention and MLP outputs, bfloat16 autocast; what ships is the moving average "
        "of the weights.\n\n"
        f"Settings: {settings}. Stages:\n\n{stages}\n\n"
        f"Wall time {_hours(facts.seconds)}, CPU time {cpu}, on {facts.device}; "
        f"threads: {facts.threads}.{note}"
    )


def _stage(stage: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{name} {share:g}" for name, share in stage["shares"])
    more = f"dropout {stage['dropout']:g}, rate times {stage['rate']:g}"
    # The rows of a stage have one length, whatever the mixes of its pools say.
    own = "".join(
        f"; {name} with {_mix({**mix, 'budget': stage['mix']['budget']})}"
        for name, mix in stage.get("own", ())
    )
    return (
        f"{stage['length']} parts of the steps: rows from {shares}; {_mix(stage['mix'])}, "
        f"{more}{own}"
    )


def _mix(mix: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in mix.items())


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min ({round(seconds):,} s)"


def _use_and_limits(public: Sequence[PublicSource]) -> str:
    domains = " and of the public sources" if public else ""
    return (
        "## Intended use\n\n"
        "Trying out, testing and teaching: a real tool-calling model, small enough to calibrate "
        "and guard on two CPU cores in minutes. It is not meant to run an agent.\n\n"
        "## Limits\n\n"
        f"- It knows the tools of its catalogue{domains}. Nothing here shows how it does with a "
        "tool it was not trained on; expect little.\n"
        "- English only, short requests, one call a turn. Several calls at once, long "
        "conversations and reasoning were not trained.\n"
        "- It was trained on prompts of up to about 2,000 tokens. Longer ones fit its positions "
        "but were never seen.\n"
        "- Valid arguments fit the schema; they need not be the right values.\n"
        "- Many descriptions of the public tools were generated from intent names, and their "
        "labels hold some noise: the rates are bounded by both.\n"
        "- Its answers in words are a few fixed sentences, not knowledge.\n"
        "- That a guard separates its right calls from wrong ones does not show that it would "
        "for a large model: calibrate and evaluate each model itself."
    )
