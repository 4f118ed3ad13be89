"""What a training run says of itself, beside the weights: recipe, data, time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from toolguard.guard.errors import ConfigError

TRAINING_FILE = "training.json"


class TrainingFacts(BaseModel):
    """What `toolguard train agent` writes beside the weights, as `training.json`.

    Args:
        parameters: number of weights.
        recipe: the `Recipe` of the run.
        tenths: tenths of the human-written records that were learned from.
        records_sha256: of each source's records file.
        seconds: wall time.
        cpu_seconds: of all threads; None if it was not recorded.
        device: torch device.
        threads: CPU threads.
        optimizer: what moved the weights.
        note: what else to know of the run; shown in the card.
        steps_done: steps behind these weights, if the run went on after them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: int
    recipe: dict[str, Any]
    tenths: tuple[int, ...]
    records_sha256: dict[str, str]
    seconds: float
    cpu_seconds: float | None = None
    device: str
    threads: int
    optimizer: str = "AdamW"
    note: str = ""
    steps_done: int | None = None

    @classmethod
    def read(cls, folder: Path) -> TrainingFacts:
        """Return the facts that lie in an agent's folder.

        Raises:
            ConfigError: if there are none, or they are not what a training run writes.
        """
        path = folder / TRAINING_FILE
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"there is no {path}",
                hint="name the folder that `toolguard train agent` wrote, OUT/agent",
            ) from None
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise ConfigError(f"cannot use {path}: {error}") from None
