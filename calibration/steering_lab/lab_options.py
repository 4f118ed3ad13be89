"""What the steering laboratory compares, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from toolguard.calibration.reading.collect import BATCH_TOKENS
from toolguard.calibration.steering_lab.settings import METHODS, Method
from toolguard.guard.errors import ConfigError

_LAYERS = 6  # by default, spread over the model


@dataclass(frozen=True, slots=True, kw_only=True)
class LabOptions:
    """What to compare and how much of it.

    Args:
        layers: blocks whose outputs are pushed, beside the profile's own; None spreads six over
            the model.
        alphas: multiples of each vector.
        methods: see `settings.METHODS`.
        pairs: pairs wanted in each cell.
        calls: of these, how many write whole calls; 0 leaves that out.
        call_alpha: strength with which they do, at the profile's layer.
        donors_a_tool: most records whose states give one tool's mean.
        fewest_donors: least right calls that a mean is made of.
        new_tokens: most tokens of a turn.
        batch_tokens: bound on one batch.
        seed: of all draws.
    """

    layers: tuple[int, ...] | None = None
    alphas: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    methods: tuple[Method, ...] = METHODS
    pairs: int = 300
    calls: int = 300
    call_alpha: float = 1.0
    donors_a_tool: int = 30
    fewest_donors: int = 3
    new_tokens: int = 96
    batch_tokens: int = BATCH_TOKENS
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def chosen_layers(wanted: Sequence[int] | None, blocks: int, own: int) -> tuple[int, ...]:
    """Return the layers to push, rising: those wanted, or six over the model; always with `own`.

    Raises:
        ConfigError: if one is no block index.
    """
    steps = min(_LAYERS, blocks)
    spread = [round(step * (blocks - 1) / max(1, steps - 1)) for step in range(steps)]
    found = tuple(sorted({own, *(spread if wanted is None else wanted)}))
    if found[0] < 0 or found[-1] >= blocks:
        raise ConfigError(
            f"layers {', '.join(map(str, found))}: expected block indices from 0 to {blocks - 1}",
            layers=found,
        )
    return found
