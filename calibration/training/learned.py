"""Which records an agent of this project learned from: figures on those would be too good."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from toolguard.adapters.loading import REFERENCE, reference_folder
from toolguard.calibration.datasets.dataset import Dataset
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.training.examples import tenth_of
from toolguard.calibration.training.facts import TRAINING_FILE, TrainingFacts


def agent_facts(model: str) -> TrainingFacts | None:
    """Return what is known of an agent's training; None for a model that was trained elsewhere.

    Args:
        model: folder, hub id, or "reference".

    Raises:
        ConfigError: if the folder's training file is no such file.
    """
    folder = reference_folder() if model == REFERENCE else Path(model)
    return TrainingFacts.read(folder) if (folder / TRAINING_FILE).is_file() else None


def unseen(records: Iterable[Record], facts: TrainingFacts | None) -> Iterator[Record]:
    """Yield the records that the agent did not learn from, in their order."""
    learned = frozenset(facts.tenths if facts else ())
    sources = frozenset(facts.records_sha256 if facts else ())
    for record in records:
        if record.source not in sources or tenth_of(record.id) not in learned:
            yield record


def learned_files(dataset: Dataset, facts: TrainingFacts | None) -> list[Path]:
    """Return the files, known by their content, some of whose records the agent learned from."""
    known = set(facts.records_sha256.values() if facts else ())
    return [file.records for file in dataset.files if known and _digest(file.records) in known]


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
