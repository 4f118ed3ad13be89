"""From margins to the calibrated probability that the chosen tool is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolguard.guard.errors import ConfigError, ReadoutError, ShapeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrator:
    """P(wrong) = sigmoid(intercept + sum_i weight_i * clip((margin_i - centre_i) / scale_i)).

    Scaled distances are clipped to [-clip, clip]. No weight is positive, so a larger margin never
    gives a larger probability. Clipping keeps the fit from extrapolating, and gives the margins
    +inf (a menu of one tool) and -inf a finite meaning.

    Args:
        features: names of the margins used, in order.
        weights: one per feature, <= 0, in log-odds per scaled unit.
        intercept: log-odds at the centres.
        centres: one per feature, in the margin's unit.
        scales: one per feature, > 0, in the margin's unit.
        clip: largest scaled distance from the centre that still counts, > 0.

    Raises:
        ConfigError: if lengths differ, a value is not finite, a weight is positive, or a scale or
            the clip is not.
    """

    features: tuple[str, ...]
    weights: tuple[float, ...]
    intercept: float
    centres: tuple[float, ...]
    scales: tuple[float, ...]
    clip: float

    def __post_init__(self) -> None:
        count = len(self.features)
        if not count or len(set(self.features)) != count:
            raise ConfigError(f"a calibrator needs distinct feature names, found {self.features}")
        if {len(self.weights), len(self.centres), len(self.scales)} != {count}:
            raise ConfigError(
                f"a calibrator of {count} features needs {count} weights, centres and scales"
            )
        if not all(
            math.isfinite(v)
            for v in (*self.weights, *self.centres, *self.scales, self.intercept, self.clip)
        ):
            raise ConfigError("a calibrator's numbers must be finite")
        if max(self.weights) > 0 or min(self.scales) <= 0 or self.clip <= 0:
            raise ConfigError("a calibrator needs weights <= 0, scales > 0 and clip > 0")

    def probability(self, margins: Mapping[str, float]) -> float:
        """Return P(wrong) in [0, 1] for one decision; further keys in `margins` are ignored.

        Raises:
            ReadoutError: if a feature is missing or NaN.
        """
        return float(self.probabilities({name: [value] for name, value in margins.items()})[0])

    def probabilities(self, margins: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """Return P(wrong) for many decisions; bit for bit what `probability` gives for each.

        Args:
            margins: feature -> (rows,) margins; further keys are ignored.

        Returns:
            (rows,) float64 in [0, 1].

        Raises:
            ReadoutError: if a feature is missing or holds a NaN.
            ShapeError: if the features have different lengths.
        """
        columns = [self._scaled(position, margins) for position in range(len(self.features))]
        if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
            raise ShapeError(
                f"margins must be (rows,) of one length, found {[c.shape for c in columns]}"
            )
        log_odds = np.full(columns[0].shape, self.intercept)
        for weight, column in zip(self.weights, columns, strict=True):
            log_odds = log_odds + weight * column
        # math.exp one by one: a vectorised exp may round differently with the array's length, and a
        # threshold between two roundings of one margin would treat equal calls differently.
        return np.fromiter(
            (_sigmoid(value) for value in log_odds.tolist()), np.float64, len(log_odds)
        )

    def _scaled(self, position: int, margins: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        name = self.features[position]
        if name not in margins:
            raise ReadoutError(
                f"the margin {name!r} is missing, found {sorted(margins)}", feature=name
            )
        values = np.asarray(margins[name], dtype=np.float64)
        if np.isnan(values).any():
            raise ReadoutError(f"the margin {name!r} is NaN", feature=name)
        return scaled_margin(values, self.centres[position], self.scales[position], self.clip)

    def to_dict(self) -> dict[str, Any]:
        """Return the calibrator as plain JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibrator:
        """Return the calibrator that `to_dict` wrote.

        Raises:
            ConfigError: if a key is missing, unknown, or of the wrong type.
        """
        expected = {"features", "weights", "intercept", "centres", "scales", "clip"}
        if set(data) != expected:
            raise ConfigError(f"a calibrator has the keys {sorted(expected)}, found {sorted(data)}")
        names = data["features"]
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"calibrator features must be a list of names, found {names!r:.80}")
        try:
            return cls(
                features=tuple(names),
                weights=tuple(float(value) for value in data["weights"]),
                intercept=float(data["intercept"]),
                centres=tuple(float(value) for value in data["centres"]),
                scales=tuple(float(value) for value in data["scales"]),
                clip=float(data["clip"]),
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"a calibrator's numbers cannot be read: {error}") from error


def scaled_margin(
    values: NDArray[np.float64], centre: float, scale: float, clip: float
) -> NDArray[np.float64]:
    """Return (values - centre) / scale, held within about [-clip, clip]; rises with `values`."""
    # Clipping comes first, so that no finite margin can overflow.
    return (np.clip(values, centre - clip * scale, centre + clip * scale) - centre) / scale


def _sigmoid(log_odds: float) -> float:
    """Return 1 / (1 + exp(-x)) without overflow."""
    if log_odds >= 0:
        return 1.0 / (1.0 + math.exp(-log_odds))
    power = math.exp(log_odds)
    return power / (1.0 + power)
