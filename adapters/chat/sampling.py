"""Choosing tokens: greedily, as the model's own settings say, or drawn from a seed of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from toolguard.guard.errors import ConfigError

if TYPE_CHECKING:
    from transformers import GenerationConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn; what is None comes from the model's generation config.

    Args:
        temperature: 0 takes the likeliest token always.
        top_p: share of the probability that is drawn from, in (0, 1].
        top_k: likeliest tokens that are drawn from.
        seed: makes the turn the same each time, whatever other threads draw meanwhile.

    Raises:
        ConfigError: if a value is out of its range.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        ranges = {
            "temperature": self.temperature is None or self.temperature >= 0,
            "top_p": self.top_p is None or 0 < self.top_p <= 1,
            "top_k": self.top_k is None or self.top_k > 0,
        }
        if wrong := [name for name, fits in ranges.items() if not fits]:
            raise ConfigError(
                f"{wrong[0]}={getattr(self, wrong[0])} is out of range",
                hint="temperature >= 0, 0 < top_p <= 1, top_k > 0",
                option=wrong[0],
            )

    def options(self, config: GenerationConfig) -> dict[str, Any]:
        """Return the keyword arguments of HF `generate`, over a model with this config."""
        asked = {
            name: value
            for name in ("temperature", "top_p", "top_k")
            if (value := getattr(self, name)) is not None
        }
        draws = bool(asked) or bool(config.do_sample)
        if self.temperature == 0 or (not draws and self.seed is not None):
            return {"do_sample": False}
        if self.seed is None:
            return {"do_sample": True, **asked} if asked else {}
        # torch's generator is shared by all threads, so its seed would promise nothing.
        return {"do_sample": False, "logits_processor": [self._seeded(config, self.seed)]}

    def _seeded(self, config: GenerationConfig, seed: int) -> SeededSampling:
        temperature = _first(self.temperature, config.temperature)
        top_k = _first(self.top_k, config.top_k)
        top_p = _first(self.top_p, config.top_p)
        warpers: list[LogitsProcessor] = []
        if temperature not in (None, 0, 1):
            warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_k:
            warpers.append(TopKLogitsWarper(int(top_k)))
        if top_p is not None and top_p < 1:
            warpers.append(TopPLogitsWarper(float(top_p)))
        return SeededSampling(seed, warpers)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


class SeededSampling(LogitsProcessor):
    """Adds noise under which the likeliest token is a draw from the distribution.

    What comes after may still close tokens: the draw is then from those left.

    Args:
        seed: of this turn's noise.
        warpers: applied first.

    Source: the Gumbel-max trick: argmax(logits - log(E)) with E exponential is a sample of the
        softmax.
    """

    def __init__(self, seed: int, warpers: list[LogitsProcessor]) -> None:
        self._seed = seed
        self._warpers = LogitsProcessorList(warpers)
        self._generator: torch.Generator | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return (rows, vocab) float32 scores with noise."""
        if self._generator is None:
            self._generator = torch.Generator(device=scores.device).manual_seed(self._seed)
        warped: Any = self._warpers(cast("torch.LongTensor", input_ids), scores)
        noise = torch.empty_like(warped, dtype=torch.float32)
        noise.exponential_(generator=self._generator)
        return cast("Tensor", warped.float() - noise.log())
