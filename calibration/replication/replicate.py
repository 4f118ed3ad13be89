"""All models on all sources, and the steps of a training: one result that the table is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolguard.adapters.loading import LoadedModel, load_model
from toolguard.adapters.wire import choose_format
from toolguard.calibration.replication.measure import Depth, MeasureOptions, measure_source
from toolguard.calibration.replication.sources import Need, source_records
from toolguard.calibration.training.learned import agent_facts
from toolguard.guard.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to measure.

    Args:
        name: its column.
        model: folder, hub id, or "reference".
    """

    name: str
    model: str

    @classmethod
    def parse(cls, text: str) -> Subject:
        """Return the subject that `NAME=MODEL` or `MODEL` names.

        Raises:
            ConfigError: if there is nothing on one side of the sign.
        """
        name, sign, model = text.partition("=")
        if not sign:
            return cls(name=text, model=text)
        if not name or not model:
            raise ConfigError(f"--model {text!r}: expected NAME=MODEL or MODEL")
        return cls(name=name, model=model)


def replicate(
    subjects: Sequence[Subject],
    steps: Path | None,
    sources: Sequence[str],
    data: Path | None,
    work: Path,
    options: MeasureOptions,
    report: Callable[[str], object] = lambda _line: None,
) -> dict[str, Any]:
    """Return every measurement, as plain JSON values.

    Args:
        subjects: models, each a column.
        steps: `OUT/steps` of a training: agents as they were after so many steps; None for none.
        sources: see `sources.SOURCES`.
        data: folder of the public sources.
        work: measurements are kept here, so that a run goes on where it stopped.
        options: how much is measured.
        report: told what is being measured.

    Raises:
        ConfigError: if a name occurs twice, a source is unknown, or a folder holds no steps.
        DatasetError: if a source's folder is missing.
    """
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise ConfigError(f"two models have one name: {', '.join(names)}", hint="pass NAME=MODEL")
    runner = _Runner(sources=sources, data=data, work=work, options=options, report=report)
    measured = {subject.name: runner.measure(subject, "all") for subject in subjects}
    early = {
        str(step): runner.measure(Subject(name=f"step {step}", model=str(folder)), "read")
        for step, folder in (kept_steps(steps) if steps else {}).items()
    }
    return {
        "options": asdict(options),
        "sources": list(sources),
        "models": {name: told.facts for name, told in measured.items()},
        "measured": {name: told.by_source for name, told in measured.items()},
        "steps": {step: told.by_source for step, told in early.items()},
    }


def kept_steps(folder: Path) -> dict[int, Path]:
    """Return the agents that a training kept, by the number of steps done, rising.

    Raises:
        ConfigError: if there is none.
    """
    found = {int(path.name): path for path in folder.glob("*") if re.fullmatch(r"\d+", path.name)}
    if not found:
        raise ConfigError(
            f"{folder} holds no kept steps",
            hint="train with `toolguard train agent --keep N` and pass OUT/steps",
        )
    return dict(sorted(found.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What was measured of one model."""

    facts: dict[str, Any]
    by_source: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Runner:
    """What all models share."""

    sources: Sequence[str]
    data: Path | None
    work: Path
    options: MeasureOptions
    report: Callable[[str], object]

    def measure(self, subject: Subject, depth: Depth) -> _Told:
        """Return what is measured of one model on every source."""
        loaded = load_model(subject.model)
        wire = choose_format(None, loaded.tokenizer)
        facts = agent_facts(subject.model)
        found: dict[str, Any] = {}
        for source in self.sources:
            self.report(f"{subject.name}: {source}")
            need = Need(
                data=self.data,
                learned=facts.tenths if facts else (),
                limit=self.options.limit,
                seed=self.options.seed,
            )
            records = source_records(source, need)
            folder = self.work / re.sub(r"\W+", "-", subject.name) / source
            found[source] = measure_source(loaded, wire, records, folder, self.options, depth)
        return _Told(facts=_facts(loaded), by_source=found)


def _facts(loaded: LoadedModel) -> dict[str, Any]:
    return {
        "family": loaded.view.family,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "blocks": len(loaded.view.blocks),
        "hidden_size": loaded.view.hidden_size,
        "fingerprint": loaded.fingerprint,
    }
